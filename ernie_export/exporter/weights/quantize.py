"""Quantize floating-point weights to 4 or 8 bits or to e4m3 numbers, with a scale a group, without calibration.

The value of a group that is largest in magnitude gets the lowest code, -2^(bits - 1), which has no positive partner:
that is one code more than a scale for the symmetric range would use, and the scale's sign tells which side it is. A
smaller scale clips that value and serves the others better: for each of `CLIPS` the quantized values are found, then
the scale that fits these quantized values best, ⟨w, c⟩ / ⟨c, c⟩. The quantized values that leave the least squared
error, ‖w‖² - ⟨w, c⟩² / ⟨c, c⟩, win.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np

from ernie_export.graphs.weight_spec import Quantization

# Shares of the largest value that the lowest code may stand for. On normally distributed values in groups of 128 these
# three leave an error of 9.8% with 4 bits, where 1.0 alone leaves 10.2% and a search over sixteen 9.7%. With 8 bits any
# clipping loses.
CLIPS = {4: (1.0, 0.92, 0.84), 8: (1.0,)}
LARGEST_FLOAT8 = np.float32(448)  # of e4m3
# Values of one task. In shorter ones the threads wait for the interpreter's lock, in longer ones for memory: with
# 4 bits 140 M values/s by 2^16, 290 by 2^18 and 150 by 2^19, on two cores.
PART = 2**18


class Quantizer:
    """A quantizer on all cores; NumPy releases the interpreter's lock while it computes."""

    def __init__(self) -> None:
        self.cores = ThreadPoolExecutor(os.cpu_count())
        self.scales: list[np.ndarray] = []

    def __enter__(self) -> "Quantizer":
        return self

    def __exit__(self, *error: object) -> None:
        self.cores.shutdown(cancel_futures=True)

    def quantize(self, values: np.ndarray, how: Quantization) -> np.ndarray:
        """Quantize `values` (float32, 1-D, whole groups) to packed uint8, and keep their scales."""
        qweight = np.empty(values.size * how.bits // 8, np.uint8)
        scales = np.empty(values.size // how.group, np.float32)

        def part(first: int) -> None:
            span = slice(first, first + PART)
            packed = slice(first * how.bits // 8, (first + PART) * how.bits // 8)
            groups = values[span].reshape(-1, how.group)
            if how.float8:
                qweight[packed], scale = float8_groups(groups)
            else:
                integers, scale = quantize_groups(groups, how.bits)
                qweight[packed] = pack(integers, how.bits)
            scales[first // how.group : (first + PART) // how.group] = scale

        for _ in self.cores.map(part, range(0, values.size, PART)):
            pass
        self.scales.append(scales)
        return qweight

    def take_scales(self) -> np.ndarray:
        """Return the scales (float32, 1-D) of all values quantized since the last call, one a group."""
        scales = np.concatenate(self.scales)
        self.scales = []
        return scales


def quantize_groups(
    values: np.ndarray, bits: int, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Quantize groups of weights, choosing the scale with the smallest squared error.

    Args:
        values: (groups, group) float32.
        bits: 4 or 8.
        importance: (group,) weight of each position's squared error; None weighs all alike.

    Returns:
        Integers from -2^(bits - 1) as (groups, group) float32, and the scale of each group.
    """
    lowest = np.float32(-(2 ** (bits - 1)))
    low, high = values.min(axis=1), values.max(axis=1)
    widest = np.where(high > -low, high, low) / lowest
    widest[widest == 0] = 1
    best = np.empty_like(values)
    best_fit = np.full(len(values), -1, np.float32)
    scales = np.zeros(len(values), np.float32)
    for clip in CLIPS[bits]:
        qweight = values * (1 / (widest * np.float32(clip)))[:, None]
        np.rint(qweight, out=qweight)
        np.clip(qweight, lowest, -1 - lowest, out=qweight)
        weighed = qweight if importance is None else qweight * importance
        along = np.einsum("gi,gi->g", values, weighed)
        size = np.einsum("gi,gi->g", qweight, weighed)
        scale = along / np.where(size > 0, size, 1)
        fit = along * scale
        better = fit > best_fit
        best_fit[better] = fit[better]
        scales[better] = scale[better]
        best[better] = qweight[better]
    return best, scales


def float8_groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the e4m3 numbers (uint8, 1-D) for `values` (groups, group) float32, and the scale of each group.

    A group's largest value gets the largest number.
    """
    scales = np.abs(values).max(axis=1) / LARGEST_FLOAT8
    scales[scales < np.finfo(np.float32).tiny] = 1
    numbers = np.clip(values / scales[:, None], -LARGEST_FLOAT8, LARGEST_FLOAT8)
    return numbers.astype(ml_dtypes.float8_e4m3fn).view(np.uint8).reshape(-1), scales


def pack(qweight: np.ndarray, bits: int) -> np.ndarray:
    """Return `qweight` (float32) as bytes, moved up to begin at 0; with 4 bits two a byte, the lower half first."""
    stored = (qweight.reshape(-1) + np.float32(2 ** (bits - 1))).astype(np.uint8)
    return stored if bits == 8 else stored[0::2] | stored[1::2] << 4
