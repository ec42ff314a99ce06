"""Resize uint8 frames bicubically in the integer arithmetic of PyTorch's CPU kernel.

The reference resizes videos with torchvision's `resize`, which calls PyTorch's antialiased bicubic kernel on uint8. It
resembles Pillow's, but is not the same: weights are rounded to int16 (Pillow keeps 22 bits), and columns are always
resized before rows (Pillow takes the cheaper order), so the two differ by 1 or 2 on most frames, and by 28 on noise.
Formulas: ATen/native/cpu/UpSampleKernel.cpp, `_compute_index_ranges_int16_weights`, and its basic loops. Everything is
whole numbers below 2**53, so float64 matrix products compute them exactly in any order of summation.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_A = -0.5  # the cubic's parameter with antialiasing, as in Pillow
_SUPPORT = 2.0  # the cubic's reach in source pixels, before widening for a reduction
_BLOCK = 64  # outputs computed by one product; a block reads only the band of inputs that its outputs reach

_ROWS = 256  # resized at once: float64 takes eight times the memory of pixels


@dataclass(frozen=True)
class _Band:
    """The weights that make outputs start..stop of one axis from inputs low..high.

    `weights` is float64 (stop − start, high − low).
    """

    start: int
    stop: int
    low: int
    high: int
    weights: NDArray[np.float64]


def resize_bicubic(planes: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize uint8 (C, H, W) to uint8 (C, height, width), bit-identical to PyTorch's kernel on the CPU."""
    if planes.shape[2] != width:
        bands, precision = _bands(planes.shape[2], width)
        narrow = np.empty((*planes.shape[:2], width), np.uint8)
        for top in range(0, planes.shape[1], _ROWS):
            source = planes[:, top : top + _ROWS].astype(np.float64)
            parts = [source[:, :, b.low : b.high] @ b.weights.T for b in bands]
            narrow[:, top : top + _ROWS] = _round(np.concatenate(parts, axis=2), precision)
        planes = narrow
    if planes.shape[1] != height:
        bands, precision = _bands(planes.shape[1], height)
        source = planes.astype(np.float64)
        parts = [b.weights @ source[:, b.low : b.high] for b in bands]
        planes = _round(np.concatenate(parts, axis=1), precision)
    return planes


def _round(sums: NDArray[np.float64], precision: int) -> NDArray[np.uint8]:
    """Shift fixed-point sums back to pixels: add one half, floor, clamp."""
    pixels = sums.astype(np.int32)
    pixels += 1 << (precision - 1)
    pixels >>= precision
    return np.clip(pixels, 0, 255).astype(np.uint8)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


@functools.lru_cache(maxsize=16)
def _bands(size_in: int, size_out: int) -> tuple[tuple[_Band, ...], int]:
    """Return the int16 weights of one axis, in blocks, and the number of their fractional bits."""
    scale = size_in / size_out
    support = _SUPPORT * scale if scale >= 1.0 else _SUPPORT
    inverse = 1.0 / scale if scale >= 1.0 else 1.0
    taps = math.ceil(support) * 2 + 1
    centre = scale * (np.arange(size_out) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.clip(np.minimum((centre + support + 0.5).astype(np.int64), size_in) - first, 0, taps)
    tap = np.arange(taps)
    weights = _cubic((tap + first[:, None] - centre[:, None] + 0.5) * inverse)
    weights[tap >= count[:, None]] = 0.0
    total = np.zeros(size_out)
    for column in weights.T:  # one tap after another: the kernel's order of summation, which rounding depends on
        total += column
    weights /= total[:, None]
    precision, peak = 0, float(weights.max())
    while precision < 22 and int(0.5 + peak * (1 << (precision + 1))) < (1 << 15):
        precision += 1
    scaled = weights * (1 << precision)
    rounded = np.trunc(np.where(scaled < 0, scaled - 0.5, scaled + 0.5))
    bands = []
    for start in range(0, size_out, _BLOCK):
        stop = min(start + _BLOCK, size_out)
        low, high = int(first[start]), int((first + count)[start:stop].max())
        dense = np.zeros((stop - start, high - low))
        for row in range(start, stop):
            offset, n = int(first[row]) - low, int(count[row])
            dense[row - start, offset : offset + n] = rounded[row, :n]
        bands.append(_Band(start, stop, low, high, dense))
    return tuple(bands), precision
