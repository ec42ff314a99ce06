"""Weights that calibration quantizes before the data file is written, kept on the disk until it is."""

import shutil
from pathlib import Path
from typing import Self

import numpy as np

from ernie_export.graphs.weight_spec import Piece


class QuantizedStore:
    """Quantized weights and scales by piece, in a new scratch `folder` that is removed when the `with` block ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = (folder / "qweights").open("w+b")
        self.positions: dict[Piece, tuple[int, int, int]] = {}  # offset, number of bytes, number of scales
        self.end = 0

    def put(self, piece: Piece, qweight: np.ndarray, scales: np.ndarray) -> None:
        """Store a piece's quantized weights (uint8, 1-D, packed) and scales (float32, 1-D)."""
        self.positions[piece] = (self.end, qweight.size, scales.size)
        self.end += self.file.write(qweight.tobytes())
        self.end += self.file.write(scales.tobytes())

    def take(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """Return the piece's quantized weights and scales, as `put` received them."""
        offset, nbytes, count = self.positions[piece]
        self.file.seek(offset)
        qweight = np.fromfile(self.file, np.uint8, nbytes)
        return qweight, np.fromfile(self.file, np.float32, count)

    def __contains__(self, piece: Piece) -> bool:
        return piece in self.positions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        shutil.rmtree(self.folder)
