"""The header of one safetensors file: names -> (dtype, shape, place in the file), checked before anything is trusted.

A file is an 8-byte little-endian length N, N bytes of JSON, then the tensors without holes
(https://huggingface.co/docs/safetensors, "Format"). Reading a header touches no tensor data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import one_line, parse_json

HEADER_LIMIT = 100_000_000  # bytes; the format's own limit
RANK_LIMIT = 8
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `offset` counts bytes from the start of `file`, `dtype` is the format's name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """The tensors of safetensors file `path`, in file order; UserError if it is missing, truncated or malformed."""
    try:
        if not path.is_file():
            raise UserError(f"{path}: expected a safetensors file, found {'a folder' if path.is_dir() else 'no file'}")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start.startswith((b"PK", b"\x80")) and length > HEADER_LIMIT:
                raise UserError(f"{path}: expected safetensors, found a zip or pickle file (never unpickled)")
            if len(start) < 8 or length > HEADER_LIMIT or 8 + length > size:
                expected = f"a safetensors header within {min(size, 8 + HEADER_LIMIT)} bytes"
                found = f"one of {8 + length}" if len(start) == 8 else f"a file of {size}"
                raise UserError(f"{path}: expected {expected}, found {found} (truncated, or not safetensors)")
            header = file.read(length)
    except OSError as e:
        raise UserError(f"{path}: expected a readable file, found {e.strerror}") from e
    members = parse_json(path, header)
    metadata = members.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UserError(f"{path}: __metadata__: expected an object of strings, found {one_line(metadata)}")
    entries = [read_entry(path, 8 + length, name, member) for name, member in members.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    end = 8 + length
    for entry in entries:
        if entry.offset != end:
            raise UserError(f"{path}: {one_line(entry.name)}: expected data at byte {end}, found {entry.offset}")
        end += entry.nbytes
    if end != size:
        hint = "truncated" if size < end else "bytes beyond the last tensor"
        raise UserError(f"{path}: expected {end} bytes by its header, found {size} ({hint})")
    return {entry.name: entry for entry in entries}


def read_entry(path: Path, base: int, name: str, member: Any) -> TensorEntry:
    """One member of a header; `base` is where the data begins. UserError if a figure contradicts another."""
    where = f"{path}: {one_line(name)}"
    if not isinstance(member, dict) or set(member) != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where}: expected dtype, shape and data_offsets, found {one_line(member)}")
    dtype, shape, offsets = member["dtype"], member["shape"], member["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise UserError(f"{where}: expected a safetensors dtype, found {one_line(dtype)}")
    if not is_sizes(shape) or len(shape) > RANK_LIMIT:
        raise UserError(f"{where}: expected a shape of at most {RANK_LIMIT} sizes, found {one_line(shape)}")
    if not is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise UserError(f"{where}: expected data_offsets [begin, end], found {one_line(offsets)}")
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        expected = f"{bits / 8:.15g} bytes for {dtype} {one_line(shape)}"
        raise UserError(f"{where}: expected {expected}, found {offsets[1] - offsets[0]} by its data_offsets")
    return TensorEntry(name, dtype, tuple(shape), path, base + offsets[0], offsets[1] - offsets[0])


def is_sizes(found: object) -> bool:
    """Whether `found` is a list of whole numbers from 0 that fit 64 bits."""
    return isinstance(found, list) and all(type(n) is int and 0 <= n < 2**63 for n in found)
