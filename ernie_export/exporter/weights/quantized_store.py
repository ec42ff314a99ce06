"""Codes found before the data file is written, kept on the disk until it is."""

import shutil
from pathlib import Path
from typing import Self

import numpy as np

from ernie_export.graphs.weight_spec import Piece


class QuantizedStore:
    """Codes and scales by the piece that they are of, in a new `folder` for scratch files that goes with the block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.file = (folder / "codes").open("w+b")
        self.places: dict[Piece, tuple[int, int, int]] = {}  # offset, codes, scales
        self.end = 0

    def put(self, piece: Piece, codes: np.ndarray, scales: np.ndarray) -> None:
        """Keep a piece's `codes` (uint8, 1-D, packed) and `scales` (float32, 1-D)."""
        self.places[piece] = self.end, codes.size, scales.size
        self.end += self.file.write(codes.tobytes()) + self.file.write(scales.tobytes())

    def take(self, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
        """What `put` was given for the piece."""
        offset, codes, scales = self.places[piece]
        self.file.seek(offset)
        stored = np.fromfile(self.file, np.uint8, codes)
        return stored, np.fromfile(self.file, np.float32, scales)

    def __contains__(self, piece: Piece) -> bool:
        return piece in self.places

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        shutil.rmtree(self.folder)
