"""How each initializer of a graph is made from the checkpoint's tensors: a description, no data.

A weight is a list of pieces written one after the other in C order, so that a stacked tensor of all experts streams
through memory one expert at a time.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


class Role(StrEnum):
    """What a weight does in a graph."""

    EXPERT = "expert"
    EMBEDDING = "embedding"
    HEAD = "head"
    PROJECTION = "projection"
    NORM = "norm"
    BIAS = "bias"
    ROUTER = "router"


@dataclass(frozen=True)
class Rows:
    """The rows of a source tensor, cast to the weight's dtype."""

    source: str


@dataclass(frozen=True)
class SourceSlice:
    """Rows start to stop (exclusive) of the source's first axis."""

    source: str
    start: int
    stop: int


@dataclass(frozen=True)
class Interleaved:
    """Rows of two (rows, columns) sources in turn: row 2i is gate[i], row 2i + 1 is up[i].

    The layout that the fused SwiGLU of ONNX Runtime's MoE op reads (`swiglu_fusion=1`).
    """

    gate: str
    up: str


@dataclass(frozen=True)
class Constant:
    """Values that the checkpoint does not hold."""

    array: np.ndarray


@dataclass(frozen=True)
class ScalesOf:
    """The scales of a quantized weight, computed while it is written.

    Attributes:
        qweight: The quantized weight's name.
    """

    qweight: str


Piece = Rows | SourceSlice | Interleaved | Constant | ScalesOf


@dataclass(frozen=True)
class Quantization:
    """A type of `bits` (4 or 8) for each weight; `group` neighbours along the last axis share a scale.

    With `tiles` the rows of 4-bit weights lie as CUDA's kernels for experts read them (common/expert_layout.py).

    A weight is scale · (q - 2^(bits - 1)), or with `float8` scale · q, an e4m3 number of 8 bits. With 4 bits the
    first of two neighbours is a byte's lower half.
    """

    bits: int
    group: int
    float8: bool = False
    tiles: bool = False


@dataclass(frozen=True)
class Weight:
    """One tensor of the bundle's data file: `shape` and NumPy `dtype` as stored, `pieces` in C order.

    With `quantization` the pieces' values are stored quantized, and `shape` counts bytes (uint8, or e4m3 numbers). A
    head that is tied to the embedding is one.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    quantization: Quantization | None = None
    role: Role = Role.PROJECTION

    @property
    def is_quantized(self) -> bool:
        """Return whether it is stored quantized, or is the scales of such a weight."""
        return self.quantization is not None or any(isinstance(piece, ScalesOf) for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        """Return the size in bytes as stored."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def scales_by_weight(weights: Iterable[Weight]) -> dict[str, Weight]:
    """Return the scales of each quantized weight, by the quantized weight's name."""
    return {piece.qweight: weight for weight in weights for piece in weight.pieces if isinstance(piece, ScalesOf)}
