"""All initializers of a bundle streamed into one safetensors file, whatever the checkpoint's size.

Every tensor is made of pieces that are read, cast and written block by block, so memory stays at a few blocks. The file
is plain safetensors: graphs point into it by offset, and any safetensors reader opens it.

Alignment: the format allows no holes between tensors, so tensors are ordered by the largest power of two (up to a page)
that divides their size. Each then starts at a multiple of that power: tensors of whole pages on a page, none ever off
its element size. The header is padded with spaces (which the format allows) to a whole page.

A quantized weight's scales follow it, so that memory holds the scales of one weight at a time.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import ml_dtypes
import numpy as np

from ernie_export.common.errors import CannotWrite
from ernie_export.common.expert_layout import to_tiles
from ernie_export.common.safetensors_header import TensorEntry
from ernie_export.exporter.weights.direct_file import BLOCKS, Blocks, DirectWriter
from ernie_export.exporter.weights.quantize import Quantizer
from ernie_export.exporter.weights.quantized_store import QuantizedStore
from ernie_export.graphs.checkpoint.reader import NUMPY, Checkpoint
from ernie_export.graphs.weight_spec import (
    Constant,
    Interleaved,
    Piece,
    ScalesOf,
    SourceSlice,
    Weight,
    scales_by_weight,
)

PAGE = 4096
FORMAT_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int64): "I64",
    np.dtype(np.int32): "I32",
    np.dtype(np.int8): "I8",
    np.dtype(np.uint8): "U8",
    np.dtype(np.bool_): "BOOL",
    np.dtype(ml_dtypes.float8_e4m3fn): "F8_E4M3",
}


@dataclass(frozen=True)
class Layout:
    """Where each tensor lies in the file.

    Attributes:
        header: The file's first bytes, a whole page or more.
        weights: The weights in file order.
        offsets: Bytes from the start of the file, by name.
        nbytes: The file's size.
    """

    header: bytes
    weights: tuple[Weight, ...]
    offsets: dict[str, int]
    nbytes: int


def plan(weights: Sequence[Weight]) -> Layout:
    """Order the weights and assign each an offset; raise ValueError if two share a name."""
    names = [weight.name for weight in weights]
    if len(set(names)) != len(names):
        raise ValueError(f"two weights named {next(name for name in names if names.count(name) > 1)}")
    scales = scales_by_weight(weights)
    units = [(weight, scales.pop(weight.name)) if weight.name in scales else (weight,) for weight in weights]
    units = [unit for unit in units if len(unit) == 2 or not isinstance(unit[0].pieces[0], ScalesOf)]
    if scales:
        raise ValueError(f"{next(iter(scales.values())).name}: scales of a weight that is not there")
    units.sort(key=lambda unit: -min(alignment(weight.nbytes) for weight in unit))
    ordered = [weight for unit in units for weight in unit]
    members = {}
    offsets = {}
    end = 0
    for weight in ordered:
        kind = FORMAT_NAMES[np.dtype(weight.dtype)]
        span = [end, end + weight.nbytes]
        members[weight.name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": span}
        offsets[weight.name] = end
        end += weight.nbytes
    text = json.dumps(members, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + offset for name, offset in offsets.items()}
    return Layout(header, tuple(ordered), offsets, len(header) + end)


def alignment(nbytes: int) -> int:
    """Return the largest power of two up to a page that divides `nbytes` (a page for 0)."""
    return math.gcd(nbytes, PAGE)


def write(
    layout: Layout,
    checkpoint: Checkpoint,
    path: Path,
    on_progress: Callable[[int], None],
    calibrated: QuantizedStore | None = None,
    block_sizes: Blocks = BLOCKS,
) -> str:
    """Write the file, flush it to the disk, and return its SHA-256; remove it if anything fails.

    Args:
        layout: What to write; see `plan`.
        checkpoint: The source of the weights.
        path: The new file.
        on_progress: Called with the bytes of each block.
        calibrated: Weights that calibration has quantized already; all others are quantized here.
        block_sizes: Sizes of the blocks that the file is made and written in.

    Returns:
        The SHA-256 in hexadecimal digits.

    Raises:
        CannotWrite: `path` exists already, or the disk is full or not writable.
        UserError: A source cannot be read.
        ValueError: A weight's pieces do not fill its shape.
    """
    for weight in layout.weights:
        check_pieces(weight, checkpoint)
    free = check_free_space(path, layout.nbytes)
    try:
        with DirectWriter(path, block_sizes) as out, Quantizer() as quantizer:
            out.put(np.frombuffer(layout.header, np.uint8))
            on_progress(len(layout.header))
            pieces = [(weight, piece) for weight in layout.weights for piece in weight.pieces]
            for (weight, piece), coming in zip_longest(pieces, pieces[1:]):
                for name in sources(coming[0], coming[1], calibrated) if coming else ():
                    checkpoint.read_ahead(name)
                for block in stored_blocks(weight, piece, checkpoint, out, quantizer, calibrated):
                    out.put(block)
                    on_progress(block.nbytes)
            return out.finish()
    except OSError as e:
        reason = f"{e.strerror or e} ({free} bytes free)"
        raise CannotWrite(path, f"a new file of {layout.nbytes} bytes", reason) from e


def check_free_space(path: Path, nbytes: int) -> int:
    """Return the free bytes on the disk of `path`; raise CannotWrite if fewer than `nbytes`, or without a folder."""
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError as e:
        raise CannotWrite(path.parent, "to the folder", e.strerror or str(e)) from e
    if free < nbytes:
        raise CannotWrite(path, f"{nbytes} bytes", f"the disk has {free} bytes free")
    return free


def sources(weight: Weight, piece: Piece, calibrated: QuantizedStore | None = None) -> tuple[str, ...]:
    """Return the names of the checkpoint tensors that a piece reads."""
    if isinstance(piece, Constant | ScalesOf) or is_calibrated(weight, piece, calibrated):
        return ()
    return (piece.gate, piece.up) if isinstance(piece, Interleaved) else (piece.source,)


def check_pieces(weight: Weight, checkpoint: Checkpoint) -> None:
    """Raise ValueError unless the pieces have as many elements as the weight."""
    count = 0
    for piece in weight.pieces:
        if isinstance(piece, ScalesOf):
            return
        shapes = [checkpoint.tensors[name].shape for name in sources(weight, piece)]
        if isinstance(piece, SourceSlice) and not 0 <= piece.start <= piece.stop <= shapes[0][0]:
            raise ValueError(f"{weight.name}: {piece} of {shapes[0]}")
        if isinstance(piece, Interleaved) and (shapes[0] != shapes[1] or not shapes[0]):
            raise ValueError(f"{weight.name}: {piece} of {shapes[0]} and {shapes[1]}")
        if isinstance(piece, Constant):
            count += piece.array.size
        elif isinstance(piece, SourceSlice):
            count += (piece.stop - piece.start) * math.prod(shapes[0][1:])
        else:
            count += sum(math.prod(shape) for shape in shapes)
    if weight.quantization is not None:
        count = count * weight.quantization.bits // 8
    if count != math.prod(weight.shape):
        raise ValueError(f"{weight.name}: pieces of {count} elements for shape {weight.shape}")


def is_calibrated(weight: Weight, piece: Piece, calibrated: QuantizedStore | None) -> bool:
    """Return whether the piece is quantized already."""
    return calibrated is not None and weight.quantization is not None and piece in calibrated


def stored_blocks(
    weight: Weight,
    piece: Piece,
    checkpoint: Checkpoint,
    out: DirectWriter,
    quantizer: Quantizer,
    calibrated: QuantizedStore | None,
) -> Iterator[np.ndarray]:
    """Yield the bytes of one piece as `weight` stores them: in its dtype, or quantized.

    Args:
        weight: The weight.
        piece: One of its pieces.
        checkpoint: The source.
        out: The file, whose blocks are used.
        quantizer: Quantizes, and keeps scales until their weight is done.
        calibrated: Weights that are quantized already.
    """
    if weight.quantization is not None and weight.quantization.tiles:
        rows = replace(weight, quantization=replace(weight.quantization, tiles=False))
        made = [np.array(block) for block in stored_blocks(rows, piece, checkpoint, out, quantizer, calibrated)]
        yield to_tiles(np.concatenate(made).reshape(weight.shape[1:])).reshape(-1)
    elif calibrated is not None and is_calibrated(weight, piece, calibrated):
        qweight, scales = calibrated.take(piece)
        quantizer.scales.append(scales)
        yield qweight
    elif isinstance(piece, ScalesOf):
        yield from array_blocks(quantizer.take_scales(), np.dtype(weight.dtype), out)
    elif weight.quantization is None:
        yield from blocks(piece, np.dtype(weight.dtype), checkpoint, out)
    else:
        for block in blocks(piece, np.dtype(np.float32), checkpoint, out):
            yield quantizer.quantize(block.view(np.float32), weight.quantization)


def blocks(piece: Piece, dtype: np.dtype, checkpoint: Checkpoint, out: DirectWriter) -> Iterator[np.ndarray]:
    """Yield the bytes of one piece, cast to `dtype`, in blocks (uint8) of `out`."""
    if isinstance(piece, ScalesOf):
        raise ValueError(f"scales of {piece.qweight} without its quantized weight")
    if isinstance(piece, Constant):
        yield from array_blocks(piece.array, dtype, out)
    elif isinstance(piece, Interleaved):
        yield from interleaved_blocks(checkpoint, piece, dtype, out)
    else:
        entry = checkpoint.tensors[piece.source]
        start, stop = 0, math.prod(entry.shape)
        if isinstance(piece, SourceSlice):
            start, stop = (row * math.prod(entry.shape[1:]) for row in (piece.start, piece.stop))
        yield from flat_blocks(checkpoint, entry, start, stop, dtype, out)


def array_blocks(array: np.ndarray, dtype: np.dtype, out: DirectWriter) -> Iterator[np.ndarray]:
    """Yield the bytes of an array in memory, block by block."""
    data = np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8)
    made_bytes = out.blocks.made_bytes
    for start in range(0, data.size, made_bytes):
        block = out.block(min(made_bytes, data.size - start))
        block[:] = data[start : start + made_bytes]
        yield block


def flat_blocks(
    checkpoint: Checkpoint, entry: TensorEntry, start: int, stop: int, dtype: np.dtype, out: DirectWriter
) -> Iterator[np.ndarray]:
    """Yield elements `start` to `stop` of a source tensor, read straight into the block where no cast is needed."""
    stored = NUMPY[entry.dtype]
    count = out.blocks.made_bytes // max(dtype.itemsize, stored.itemsize)
    raw = np.empty(0 if stored == dtype else min(count, stop - start), stored)
    for first in range(start, stop, count):
        size = min(count, stop - first)
        block = out.block(size * dtype.itemsize)
        if stored == dtype:
            checkpoint.read_into(entry, first * stored.itemsize, block)
        else:
            checkpoint.read_into(entry, first * stored.itemsize, raw[:size].view(np.uint8))
            block.view(dtype)[...] = raw[:size]
        yield block


def interleaved_blocks(
    checkpoint: Checkpoint, piece: Interleaved, dtype: np.dtype, out: DirectWriter
) -> Iterator[np.ndarray]:
    """Yield rows of two source tensors in turn."""
    entries = [checkpoint.tensors[name] for name in (piece.gate, piece.up)]
    rows = entries[0].shape[0]
    width = math.prod(entries[0].shape[1:])
    count = min(max(out.blocks.made_bytes // (2 * width * max(dtype.itemsize, 4)), 1), rows) if width else rows
    raws = [np.empty((count, width), NUMPY[entry.dtype]) for entry in entries]
    for first in range(0, rows, count):
        size = min(count, rows - first)
        block = out.block(2 * size * width * dtype.itemsize)
        pairs = block.view(dtype).reshape(size, 2, width)
        for place, (entry, raw) in enumerate(zip(entries, raws, strict=True)):
            checkpoint.read_into(entry, first * width * raw.itemsize, raw[:size].reshape(-1).view(np.uint8))
            pairs[:, place] = raw[:size]
        yield block
