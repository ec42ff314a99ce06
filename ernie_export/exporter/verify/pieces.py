"""A bundle's tensors, where the checkpoint's lie in them, and the bytes there."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import TensorEntry
from ernie_export.exporter.targets import find_target
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.weight_spec import Constant, Interleaved, Piece, ScalesOf, SourceSlice, Weight


def stored_weights(manifest: Manifest, checkpoint: Path) -> tuple[Weight, ...]:
    """Return the tensors of a bundle of this target and precision, as made from the checkpoint's."""
    precision = find_target(manifest.target).precision(manifest.precision)
    return tuple(all_weights(build_graphs(ErnieConfig.from_hf(checkpoint), precision)))


def locate_pieces(weight: Weight, checkpoint: Checkpoint) -> Iterator[tuple[Piece, int, tuple[str, ...]]]:
    """Yield the pieces of a tensor, the number of values before each, and the checkpoint's names of its parts."""
    begin = 0
    for piece in weight.pieces:
        names = source_names(piece)
        yield piece, begin, names
        shapes = [checkpoint.tensors[name].shape for name in names]
        if isinstance(piece, Constant):
            begin += piece.array.size
        elif isinstance(piece, SourceSlice):
            begin += (piece.stop - piece.start) * math.prod(shapes[0][1:])
        else:
            begin += sum(map(math.prod, shapes))


def source_names(piece: Piece) -> tuple[str, ...]:
    """Return the checkpoint's names of the tensors that a piece is made of."""
    if isinstance(piece, Interleaved):
        return piece.gate, piece.up
    return () if isinstance(piece, Constant | ScalesOf) else (piece.source,)


def read_bytes(entry: TensorEntry, skip: int, nbytes: int) -> NDArray[np.uint8]:
    """Return `nbytes` bytes of a tensor after its first `skip`."""
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.offset + skip)
        return np.frombuffer(file.read(nbytes), np.uint8)
