"""The checkpoint's tensors as a bundle stores them: rounded to its precision, as float32 again.

A reference that computes with them differs from the bundle by arithmetic alone, so a fault of a graph stands out from
the rounding of weights however coarse that is.
"""

from collections import defaultdict
from pathlib import Path

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ernie_export.common.expert_layout import to_rows
from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import TensorEntry, read_header
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.verify.pieces import locate_pieces, read_bytes, stored_weights
from ernie_export.exporter.verify.reference_weights import EMBEDDING, HEAD
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.ops.quantized_linear.reference import dequantize, dequantize_float8
from ernie_export.graphs.weight_spec import Interleaved, Piece, SourceSlice, Weight, scales_by_weight


class BundleTensors:
    """Reads the checkpoint's tensors out of a bundle's data file."""

    def __init__(self, bundle: Path, manifest: Manifest, checkpoint: Path) -> None:
        self._source = Checkpoint.open(checkpoint)
        self._stored = read_header(bundle / DATA_FILE)
        weights = stored_weights(manifest, checkpoint)
        self._scales = scales_by_weight(weights)
        self._pieces: dict[str, list[tuple[Weight, Piece, int]]] = defaultdict(list)
        for weight in weights:
            for piece, begin, names in locate_pieces(weight, self._source):
                for name in names:
                    self._pieces[HEAD if weight.name == HEAD else name].append((weight, piece, begin))

    def read(self, name: str) -> NDArray[np.float32]:
        """Return a tensor by the checkpoint's name."""
        return self._assemble(name, name)

    def read_head(self) -> NDArray[np.float32]:
        """Return the head's weights: a tied one is a tensor of its own where it alone is quantized."""
        if HEAD not in self._pieces:
            return self.read(EMBEDDING)
        return self._assemble(HEAD, HEAD if HEAD in self._source.tensors else EMBEDDING)

    def _assemble(self, key: str, name: str) -> NDArray[np.float32]:
        shape = self._source.tensors[name].shape
        result = np.empty(shape, np.float32)
        for weight, piece, begin in self._pieces[key]:
            start, stop = (piece.start, piece.stop) if isinstance(piece, SourceSlice) else (0, shape[0])
            count = result[start:stop].size * (2 if isinstance(piece, Interleaved) else 1)
            values = self._values(weight, begin, count)
            if isinstance(piece, Interleaved):
                values = values.reshape(-1, 2, *shape[1:])[:, 0 if name == piece.gate else 1]
            result[start:stop] = values.reshape(stop - start, *shape[1:])
        return result

    def _values(self, weight: Weight, begin: int, count: int) -> NDArray[np.float32]:
        """Return `count` values of a stored tensor from value `begin` on, in float32."""
        entry = self._stored[weight.name]
        how = weight.quantization
        if how is None:
            size = np.dtype(weight.dtype).itemsize
            return read_bytes(entry, begin * size, count * size).view(weight.dtype).astype(np.float32)
        scales_of = self._scales[weight.name]
        scales = _scales(
            self._stored[scales_of.name], np.dtype(scales_of.dtype), begin // how.group, count // how.group
        )
        qweight = read_bytes(entry, begin * how.bits // 8, count * how.bits // 8)
        if how.tiles:
            qweight = to_rows(qweight.reshape(-1, weight.shape[-1]))
        if how.float8:
            return dequantize_float8(qweight.view(ml_dtypes.float8_e4m3fn), scales)
        return dequantize(qweight, scales, how.bits)


def _scales(entry: TensorEntry, dtype: np.dtype, first: int, count: int) -> NDArray[np.float32]:
    stored = read_bytes(entry, first * dtype.itemsize, count * dtype.itemsize).view(dtype)
    return stored.astype(np.float32)
