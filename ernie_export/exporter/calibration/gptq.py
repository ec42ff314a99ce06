"""GPTQ: codes that make up for each other's errors on the inputs that a layer has been seen to get.

A layer multiplies its inputs x by the rows of W, and rounding a row w to ŵ costs (w - ŵ) H (w - ŵ)ᵀ, H = mean of xᵀx.
Columns are rounded one after the other; the error of each is spread over the columns still to come, by the row of U
that belongs to it, where H⁻¹ = UᵀU and U is upper triangular (Frantar et al. 2022, arXiv:2210.17323). A group's scale
is settled when its first column comes, on values that carry the earlier columns' errors, each weighted by 1 / U[k, k]²:
what an error in that column costs once the later ones have made up for it as well as they can.

The libraries that hold this algorithm want the model as one in-memory graph of MatMul nodes (ONNX Runtime's
matmul_nbits_quantizer), or PyTorch's modules (llm-compressor, modelopt): none takes matrices by themselves, experts
stacked in one operator, or a checkpoint larger than memory.
"""

import numpy as np

from ernie_export.exporter.weights.quantize import pack, quantize_groups
from ernie_export.graphs.weight_spec import Quantization

DAMPING = 0.01  # of the mean diagonal, added to it: keeps directions that no input had from being sacrificed at will
SLAB = 4096  # columns that are taken together: bounds H at 128 MiB. Errors are not spread from one slab to another.


def slabs(columns: int) -> list[slice]:
    """`columns` in parts of at most SLAB, which whole groups fill."""
    return [slice(first, min(first + SLAB, columns)) for first in range(0, columns, SLAB)]


def factor(hessian: np.ndarray) -> np.ndarray:
    """U of a (K, K) mean of xᵀx in float64, float32; the identity's for inputs that were all zero.

    With the order of rows and columns reversed, H = L Lᵀ is U⁻¹ U⁻ᵀ: no inverse of H itself is rounded.
    """
    size = len(hessian)
    level = float(np.trace(hessian)) / size
    damped = hessian / (level or 1.0)
    damped.flat[:: size + 1] += DAMPING if level else 1.0
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    return np.triu(np.linalg.inv(lower)[::-1, ::-1]).astype(np.float32)


def quantize_rows(
    weights: np.ndarray, factors: list[tuple[slice, np.ndarray]], how: Quantization
) -> tuple[np.ndarray, np.ndarray]:
    """Codes (uint8, packed, 1-D) and scales (float32, 1-D) of `weights` (rows, K) float32; `factors`: U of each slab.

    The layout is that of `Quantizer`: rows one after the other, a scale for each group of a row.
    """
    rows, columns = weights.shape
    codes = np.empty((rows, columns), np.float32)
    scales = np.empty((rows, columns // how.group), np.float32)
    for slab, upper in factors:
        left = np.array(weights[:, slab].T, order="C")  # a copy, (K, rows): a column's values lie together
        for first in range(0, len(left), how.group):
            group = slice(first, first + how.group)
            block = upper[group, group]
            weight = 1 / np.diagonal(block) ** 2
            _, scale = quantize_groups(left[group].T, how.bits, weight)
            scales[:, (slab.start + first) // how.group] = scale
            codes[:, slab.start + first : slab.start + first + how.group] = round_group(
                left[group], scale, block, how.bits
            )
            # `left[group]` now holds each column's error over U[k, k].
            left[group.stop :] -= upper[group, group.stop :].T @ left[group]
    return pack(codes, how.bits), scales.reshape(-1)


def round_group(left: np.ndarray, scale: np.ndarray, block: np.ndarray, bits: int) -> np.ndarray:
    """Codes (rows, group) of a group's columns `left` (group, rows), which become their errors over U[k, k]."""
    lowest = -(2 ** (bits - 1))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    codes = np.empty_like(left)
    for column, values in enumerate(left):
        code = np.clip(np.rint(values * inverse), lowest, -1 - lowest, out=codes[column])
        values -= code * scale
        values /= block[column, column]
        left[column + 1 :] -= block[column, column + 1 :, None] * values
    return codes.T
