"""Weights that calibration quantizes before the data file is written, kept on the disk until it is."""

import shutil
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Self

import numpy as np

from ernie_export.graphs.weight_spec import Piece, Weight, scales_by_weight


class QuantizedStore:
    """Quantized weights and scales by piece, in a new scratch `folder` that is removed when the `with` block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = (folder / "qweights").open("w+b")
        self.positions: dict[Piece, tuple[int, int, int]] = {}  # offset, number of bytes, number of scales
        self.end = 0
        self._crcs: dict[Piece, int] = {}  # of the quantized weights

    def put(self, piece: Piece, qweight: np.ndarray, scales: np.ndarray) -> None:
        """Store a piece's quantized weights (uint8, 1-D, packed) and scales (float32, 1-D)."""
        self.positions[piece] = (self.end, qweight.size, scales.size)
        self.end += self.file.write(qweight.tobytes())
        self.end += self.file.write(scales.tobytes())
        self._crcs[piece] = zlib.crc32(qweight.tobytes())

    def take(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Return the piece's quantized weights and scales, as `put` received them."""
        offset, nbytes, count = self.positions[piece]
        self.file.seek(offset)
        qweight = np.fromfile(self.file, np.uint8, nbytes)
        return qweight, np.fromfile(self.file, np.float32, count)

    def checksums(self, weights: Collection[Weight]) -> dict[str, tuple[int | None, ...]]:
        """Return the CRC-32 of each piece of the calibrated `weights`, by name; None for a piece that is not.

        It is that of the quantized weights as `put` received them, then of the scales in the dtype they are stored in.
        """
        scales = scales_by_weight(weights)
        return {
            weight.name: tuple(self._checksum(piece, np.dtype(scales[weight.name].dtype)) for piece in weight.pieces)
            for weight in weights
            if weight.quantization is not None and any(piece in self for piece in weight.pieces)
        }

    def _checksum(self, piece: Piece, scale_dtype: np.dtype) -> int | None:
        if piece not in self:
            return None
        return zlib.crc32(self.take(piece)[1].astype(scale_dtype).tobytes(), self._crcs[piece])

    def __contains__(self, piece: Piece) -> bool:
        return piece in self.positions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        shutil.rmtree(self.folder)
