"""Weights of a bundle in device memory: the data file in one piece, without what engines hold themselves."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.safetensors_header import TensorEntry, read_header
from ernie_export.runtime.engines.device.memory import ALIGNMENT, Memory
from ernie_export.runtime.engines.device.step import aligned_offsets


@dataclass(frozen=True)
class DeviceWeight:
    """A weight in device memory.

    Attributes:
        address: Where it begins.
        entry: Its name, dtype and shape, and where it lies in the file.
    """

    address: int
    entry: TensorEntry


def load_weights(memory: Memory, path: Path, without: Collection[str] = ()) -> dict[str, DeviceWeight]:
    """Copy a safetensors file's tensors to the device, but for those named in `without`; returns them by name.

    Raises UserError if the file is malformed or there is too little memory.
    """
    weights = allocate_weights(memory, path, without)
    pieces: list[tuple[int, int, int]] = []
    for weight in weights.values():
        address, offset, nbytes = pieces[-1] if pieces else (0, 0, 0)
        if pieces and offset + nbytes == weight.entry.offset:
            pieces[-1] = address, offset, nbytes + weight.entry.nbytes
        else:
            pieces.append((weight.address, weight.entry.offset, weight.entry.nbytes))
    with path.open("rb", buffering=0) as file:
        memory.fill(file, pieces)
    return weights


def allocate_weights(memory: Memory, path: Path, without: Collection[str] = ()) -> dict[str, DeviceWeight]:
    """Allocate memory for a safetensors file's tensors, but for those named in `without`; returns them by name.

    They lie as in the file, which orders them so that most begin aligned, and any choice of them does.

    Raises UserError if the file is malformed or there is too little memory.
    """
    entries = [entry for name, entry in read_header(path).items() if name not in without]
    if not entries:
        return {}
    address = memory.allocate(sum(entry.nbytes for entry in entries))
    weights = {}
    for entry in entries:
        weights[entry.name] = DeviceWeight(address, entry)
        address += entry.nbytes
    return weights


def aligned_addresses(memory: Memory, weights: Mapping[str, DeviceWeight]) -> dict[str, int]:
    """Return the weights' addresses by name, all of them aligned; copies those that are not.

    The exporter orders tensors so that few, and small ones, begin elsewhere.
    """
    addresses = {name: weight.address for name, weight in weights.items()}
    unaligned = [weight for weight in weights.values() if weight.address % ALIGNMENT]
    if unaligned:
        offsets = aligned_offsets([weight.entry.nbytes for weight in unaligned])
        start = memory.allocate(offsets[-1])
        pieces = []
        for weight, offset in zip(unaligned, offsets, strict=False):
            pieces.append((start + offset, weight.address, weight.entry.nbytes))
            addresses[weight.entry.name] = start + offset
        memory.copy(pieces)
    return addresses
