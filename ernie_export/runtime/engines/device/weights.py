"""Weights of a bundle in device memory: the data file in one piece."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.safetensors_header import TensorEntry, read_header
from ernie_export.runtime.engines.device.memory import ALIGNMENT, Memory, read_file
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


def load_weights(memory: Memory, path: Path) -> dict[str, DeviceWeight]:
    """Copy a safetensors file to the device; returns its tensors by name.

    Raises UserError if the file is malformed or there is too little memory.
    """
    weights, begin = allocate_weights(memory, path)
    if weights:
        first = next(iter(weights.values()))
        read_file(memory, first.address, path, begin)
    return weights


def allocate_weights(memory: Memory, path: Path) -> tuple[dict[str, DeviceWeight], int]:
    """Allocate memory for a safetensors file's tensors; returns them by name, and where they begin in the file.

    Raises UserError if the file is malformed or there is too little memory.
    """
    entries = read_header(path)
    if not entries:
        return {}, path.stat().st_size
    begin = next(iter(entries.values())).offset
    start = memory.allocate(path.stat().st_size - begin)
    return {name: DeviceWeight(start + entry.offset - begin, entry) for name, entry in entries.items()}, begin


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
