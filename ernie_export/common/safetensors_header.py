"""Read and check the header of a safetensors file: dtype, shape and offset of each tensor.

A file is an 8-byte little-endian length N, N bytes of JSON, then the tensors without holes
(https://huggingface.co/docs/safetensors, "Format"). Reading a header touches no tensor data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common import git_lfs
from ernie_export.common.errors import InvalidFile
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
    """Where the data of one tensor is.

    Attributes:
        name: Name of the tensor.
        dtype: The format's name of its dtype, a key of BITS.
        shape: Its shape.
        file: The safetensors file.
        offset: Bytes from the start of the file.
        nbytes: Bytes of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of safetensors file `path`, in file order.

    Raises InvalidFile if it is missing, truncated or malformed.
    """
    size, header = _read_header_text(path)
    members = parse_json(path, header)
    metadata = members.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InvalidFile(path, "an object of strings", one_line(metadata), key="__metadata__")
    end = 8 + len(header)
    entries = [_read_entry(path, end, name, member) for name, member in members.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    for entry in entries:
        if entry.offset != end:
            raise InvalidFile(path, f"data at byte {end}", entry.offset, key=one_line(entry.name))
        end += entry.nbytes
    if end != size:
        hint = "truncated" if size < end else "bytes beyond the last tensor"
        raise InvalidFile(path, f"{end} bytes by its header", size, hint=hint)
    return {entry.name: entry for entry in entries}


def _read_header_text(path: Path) -> tuple[int, bytes]:
    """Return the size of a file in bytes, and the JSON of its header."""
    try:
        if not path.is_file():
            raise InvalidFile(path, "a safetensors file", "a folder" if path.is_dir() else "no file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if git_lfs.is_pointer(start + file.read(len(git_lfs.START))):
                raise InvalidFile(path, "safetensors", git_lfs.FOUND, hint=git_lfs.HINT)
            file.seek(len(start))
            if start.startswith((b"PK", b"\x80")) and length > HEADER_LIMIT:
                raise InvalidFile(path, "safetensors", "a zip or pickle file (never unpickled)")
            if len(start) < 8 or length > HEADER_LIMIT or 8 + length > size:
                expected = f"a safetensors header within {min(size, 8 + HEADER_LIMIT)} bytes"
                found = f"one of {8 + length}" if len(start) == 8 else f"a file of {size}"
                raise InvalidFile(path, expected, found, hint="truncated, or not safetensors")
            return size, file.read(length)
    except OSError as e:
        raise InvalidFile(path, "a readable file", e.strerror or e) from e


def _read_entry(path: Path, base: int, name: str, member: Any) -> TensorEntry:
    """Return one tensor of a header.

    Args:
        path: The safetensors file.
        base: Byte of the file at which the data begins.
        name: Name of the tensor.
        member: What the header says about it.

    Raises:
        InvalidFile: It is malformed, or its numbers contradict each other.
    """
    key = one_line(name)
    if not isinstance(member, dict) or set(member) != {"dtype", "shape", "data_offsets"}:
        raise InvalidFile(path, "dtype, shape and data_offsets", one_line(member), key=key)
    dtype = member["dtype"]
    shape = member["shape"]
    offsets = member["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise InvalidFile(path, "a safetensors dtype", one_line(dtype), key=key)
    if not _is_sizes(shape) or len(shape) > RANK_LIMIT:
        raise InvalidFile(path, f"a shape of at most {RANK_LIMIT} sizes", one_line(shape), key=key)
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise InvalidFile(path, "data_offsets [begin, end]", one_line(offsets), key=key)
    nbytes = offsets[1] - offsets[0]
    bits = math.prod(shape) * BITS[dtype]
    if bits != 8 * nbytes:
        expected = f"{bits / 8:.15g} bytes for {dtype} {one_line(shape)}"
        raise InvalidFile(path, expected, f"{nbytes} by its data_offsets", key=key)
    return TensorEntry(name, dtype, tuple(shape), path, base + offsets[0], nbytes)


def _is_sizes(value: object) -> bool:
    """Return whether `value` is a list of whole numbers from 0 that fit 64 bits."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
