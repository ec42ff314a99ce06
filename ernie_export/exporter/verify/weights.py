"""Compare the weights of a bundle with the checkpoint's: every tensor, every row, in a few blocks of memory.

The graphs of the bundle's target say what each tensor is made of; the comparison reads both files by itself, so a fault
of the exporter's writer shows as a fault of the file would. A tensor that is stored as it was has the same bits after
the cast to its dtype. A quantized one is held to the least error that a scale for each group allows: see `Rounding`.
"""

import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from ernie_export.common.expert_layout import TILE_OUTPUTS, to_rows
from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import TensorEntry, read_header
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.verify.pieces import (
    locate_pieces,
    read_bytes,
    source_names,
    stored_weights,
)
from ernie_export.exporter.verify.rounding import CALIBRATED, OPTIMAL, Rounding
from ernie_export.exporter.weights.writer import FORMAT_NAMES
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.weight_spec import (
    Constant,
    Interleaved,
    Piece,
    ScalesOf,
    SourceSlice,
    Weight,
    scales_by_weight,
)

MAX_LINES = 20  # of faults
BLOCK = 2**21  # values compared at a time


@dataclass(frozen=True)
class WeightFault:
    """A tensor of the bundle that is not the checkpoint's.

    Attributes:
        tensor: The bundle's name of it.
        source: The checkpoint's name of the part that differs; empty if the tensor as a whole is at fault.
        reason: What was expected and found, with the first row that differs.
    """

    tensor: str
    source: str
    reason: str

    @property
    def where(self) -> str:
        """Return what is at fault, by the checkpoint's name if there is one."""
        return self.source or self.tensor

    def __str__(self) -> str:
        return f"weights: {self.where}: {self.reason}"


@dataclass
class WeightReport:
    """What was compared.

    Attributes:
        exact: Tensors that have the checkpoint's bits after the cast to their dtype.
        rounded: Quantized tensors whose error is what their bits and groups allow.
        nbytes: Bytes of the bundle's data file that were compared.
        faults: Every tensor part that differs, in file order.
    """

    exact: int = 0
    rounded: int = 0
    nbytes: int = 0
    faults: list[WeightFault] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """Return a line for each of the first faults, and how many more there are."""
        more = len(self.faults) - MAX_LINES
        return [str(fault) for fault in self.faults[:MAX_LINES]] + ([f"weights: {more} more"] if more > 0 else [])


def compare_weights(
    bundle: Path, manifest: Manifest, checkpoint: Path, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> WeightReport:
    """Compare every tensor of a bundle's data file with the checkpoint.

    Args:
        bundle: The bundle.
        manifest: Its manifest.
        checkpoint: The checkpoint's folder.
        on_progress: Called with the bytes compared so far, and those of all tensors.

    Returns:
        The report; memory stays at a few blocks, whatever the checkpoint's size.

    Raises:
        InvalidFile: The checkpoint or the data file cannot be read.
    """
    source = Checkpoint.open(checkpoint)
    stored = read_header(bundle / DATA_FILE)
    weights = stored_weights(manifest, checkpoint)
    scales = scales_by_weight(weights)
    calibrated = manifest.calibration.checksums if manifest.calibration is not None else {}
    report = WeightReport()
    total = sum(entry.nbytes for entry in stored.values())
    report.faults += _check_graphs(bundle, manifest, stored)
    expected = {weight.name: weight for weight in weights}
    for name in sorted(stored.keys() - expected.keys()):
        report.faults.append(WeightFault(name, "", "expected no such tensor in the bundle"))
    with ThreadPoolExecutor(os.cpu_count()) as cores:
        for weight in sorted(weights, key=lambda weight: stored[weight.name].offset if weight.name in stored else -1):
            fault = _check_header(weight, stored)
            if fault is not None:
                report.faults.append(fault)
            elif weight.quantization is not None:
                scale_dtype = np.dtype(scales[weight.name].dtype)
                checksums = calibrated.get(weight.name, (None,) * len(weight.pieces))
                tensors = stored[weight.name], stored[scales[weight.name].name]
                rounding = Rounding(weight.quantization, scale_dtype)
                faults = list(_compare_quantized(weight, source, tensors, rounding, checksums, cores))
                report.faults += faults
                report.rounded += not faults
            elif not isinstance(weight.pieces[0], ScalesOf):
                faults = list(_compare_exactly(weight, source, stored[weight.name]))
                report.faults += faults
                report.exact += not faults
            report.nbytes += stored[weight.name].nbytes if weight.name in stored else 0
            on_progress(report.nbytes, total)
    return report


def _check_graphs(bundle: Path, manifest: Manifest, stored: dict[str, TensorEntry]) -> Iterator[WeightFault]:
    """Yield the initializers that read another place of the data file than that of the tensor of their name."""
    for file in manifest.graphs.values():
        if not file.endswith(".onnx"):
            continue
        for initializer in onnx.load(bundle / file, load_external_data=False).graph.initializer:
            if initializer.data_location != onnx.TensorProto.EXTERNAL:
                continue
            read = {entry.key: entry.value for entry in initializer.external_data}
            place = int(read.get("offset", 0)), int(read.get("length", 0))
            entry = stored.get(initializer.name)
            if entry is None or place != (entry.offset, entry.nbytes):
                expected = "a tensor of this name" if entry is None else f"bytes {entry.offset} + {entry.nbytes}"
                reason = f"expected {expected}, found bytes {place[0]} + {place[1]} in {file}"
                yield WeightFault(initializer.name, "", reason)


def _check_header(weight: Weight, stored: dict[str, TensorEntry]) -> WeightFault | None:
    """Return a fault if the tensor is missing, or of another dtype or shape."""
    kind = FORMAT_NAMES[np.dtype(weight.dtype)]
    entry = stored.get(weight.name)
    found = "no such tensor" if entry is None else f"{entry.dtype} {list(entry.shape)}"
    if entry is not None and (entry.dtype, entry.shape) == (kind, weight.shape):
        return None
    return WeightFault(weight.name, "", f"expected {kind} {list(weight.shape)}, found {found}")


def _compare_exactly(weight: Weight, checkpoint: Checkpoint, entry: TensorEntry) -> Iterator[WeightFault]:
    """Yield the first row of each piece that is not the checkpoint's, cast to the tensor's dtype."""
    dtype = np.dtype(weight.dtype)
    for piece, begin, _ in locate_pieces(weight, checkpoint):
        skip = begin * dtype.itemsize
        for first, rows in _source_rows(piece, checkpoint):
            with np.errstate(over="ignore"):
                expected = np.ascontiguousarray(rows, dtype)
            found = read_bytes(entry, skip, expected.nbytes)
            skip += expected.nbytes
            wrong = np.flatnonzero(expected.reshape(-1).view(np.uint8) != found)
            if wrong.size:
                row = int(wrong[0]) // (expected.nbytes // len(expected))
                yield _fault(weight, piece, first, row, "expected the checkpoint's bits, found others")
                break


def _compare_quantized(
    weight: Weight,
    checkpoint: Checkpoint,
    entries: tuple[TensorEntry, TensorEntry],
    rounding: Rounding,
    checksums: Sequence[int | None],
    cores: ThreadPoolExecutor,
) -> Iterator[WeightFault]:
    """Yield the first row of each piece whose quantized values and scales do not stand for the checkpoint's row.

    Args:
        weight: The quantized tensor.
        checkpoint: The source of its values.
        entries: The tensor and its scales in the bundle.
        rounding: How it is quantized.
        checksums: What calibration returned for each piece, see `CalibrationInfo`; None where it was not calibrated.
        cores: Computes parts at once.
    """
    group = rounding.how.group
    bits = rounding.how.bits
    scale_bytes = rounding.scale_dtype.itemsize
    for (piece, done, _), checksum in zip(locate_pieces(weight, checkpoint), checksums, strict=True):
        crc = 0  # of the quantized weights, then of the scales
        all_scales = bytearray()
        for first, rows in _source_rows(piece, checkpoint):
            values = np.ascontiguousarray(rows, np.float32)
            groups = values.size // group
            qweight = read_bytes(entries[0], done * bits // 8, values.size * bits // 8)
            if rounding.how.tiles:
                qweight = to_rows(qweight.reshape(len(values), -1)).reshape(-1)
            scales = read_bytes(entries[1], done // group * scale_bytes, groups * scale_bytes).view(
                rounding.scale_dtype
            )
            done += values.size
            crc = zlib.crc32(qweight.tobytes(), crc)
            all_scales += scales.tobytes()
            limit = OPTIMAL if checksum is None else CALIBRATED
            wrong = rounding.fault(values.reshape(-1, group), qweight, scales.astype(np.float32), limit, cores)
            if wrong is not None:
                yield _fault(weight, piece, first, wrong[0] * group // (values.size // len(values)), wrong[1])
                break
        else:
            if checksum is not None and zlib.crc32(all_scales, crc) != checksum:
                source = next(iter(source_names(piece)), "")
                reason = "expected what the calibration returned, found other quantized weights or scales"
                yield WeightFault(weight.name, source, reason)


def _source_rows(piece: Piece, checkpoint: Checkpoint) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a piece's values in rows as the bundle stores them, each block with the number of its first source row."""
    if isinstance(piece, Constant):
        yield 0, piece.array.reshape(len(piece.array) if piece.array.ndim else 1, -1)
        return
    names = source_names(piece)
    shape = checkpoint.tensors[names[0]].shape
    start, stop = (piece.start, piece.stop) if isinstance(piece, SourceSlice) else (0, shape[0])
    step = max(BLOCK // max(math.prod(shape[1:]) * len(names), 1) // TILE_OUTPUTS, 1) * TILE_OUTPUTS
    for first in range(start, stop, step):
        parts = [checkpoint.read_rows(name, first, min(first + step, stop)) for name in names]
        # Of gate and up in turn: row 2i of the tensor is gate's row i.
        yield (
            first,
            np.stack([part.reshape(len(part), -1) for part in parts], 1).reshape(len(names) * len(parts[0]), -1),
        )


def _fault(weight: Weight, piece: Piece, first: int, row: int, reason: str) -> WeightFault:
    """Return the fault of row `row` of a block that begins at source row `first`, by the checkpoint's name."""
    if isinstance(piece, Interleaved):
        return WeightFault(weight.name, (piece.gate, piece.up)[row % 2], f"row {first + row // 2}: {reason}")
    return WeightFault(weight.name, next(iter(source_names(piece)), ""), f"row {first + row}: {reason}")


def show_percent(progress: Callable[[str], None]) -> Callable[[int, int], None]:
    """Return a function of bytes compared and of all bytes that passes `progress` whole percents of the weights."""
    return lambda done, total: progress(f"weights {100 * done // max(total, 1)} %")
