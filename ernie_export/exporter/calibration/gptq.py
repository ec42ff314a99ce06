"""GPTQ: quantized weights that make up for each other's errors on the inputs that a layer has been observed to get.

A layer multiplies its inputs x by the rows of W, and rounding a row w to ŵ costs (w - ŵ) H (w - ŵ)ᵀ, H = mean of xᵀx.
Columns are rounded one after the other; the error of each is distributed over the columns still to come, by the row of
U that belongs to it, where H⁻¹ = UᵀU and U is upper triangular (Frantar et al. 2022, arXiv:2210.17323). A group's scale
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
MOST_ERROR = 50.0  # times the best squared error of a group: a row with a group beyond it is rounded for itself
BLOCK_COLUMNS = 4096  # columns quantized together: bounds H at 128 MiB; errors stay within a block


def column_blocks(columns: int, block_columns: int = BLOCK_COLUMNS) -> list[slice]:
    """Split `columns` into blocks of at most `block_columns`, which whole groups fill."""
    return [slice(first, min(first + block_columns, columns)) for first in range(0, columns, block_columns)]


def cholesky_factor(hessian: np.ndarray) -> np.ndarray:
    """Return U (float32) of a (K, K) mean of xᵀx in float64; the identity's if all inputs were zero.

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
    """Quantize a weight matrix, each column making up for the errors of the ones before it.

    Args:
        weights: (rows, K) float32.
        factors: Each column block with its Cholesky factor U.
        how: The integer type and the group size.

    Returns:
        Quantized weights (uint8, packed, 1-D) and scales (float32, 1-D), laid out as `Quantizer` does: rows one after
        the other, a scale for each group of a row.
    """
    rows, columns = weights.shape
    qweight = np.empty((rows, columns), np.float32)
    scales = np.empty((rows, columns // how.group), np.float32)
    for span, upper in factors:
        left = np.array(weights[:, span].T, order="C")  # a copy, (K, rows): a column's values lie together
        for first in range(0, len(left), how.group):
            group = slice(first, first + how.group)
            block = upper[group, group]
            weight = 1 / np.diagonal(block) ** 2
            _, scale = quantize_groups(left[group].T, how.bits, weight)
            scales[:, (span.start + first) // how.group] = scale
            qweight[:, span.start + first : span.start + first + how.group] = round_group(
                left[group], scale, block, how.bits
            )
            # `left[group]` now holds each column's error over U[k, k].
            left[group.stop :] -= upper[group, group.stop :].T @ left[group]
    replace_far_rows(weights, qweight, scales, how)
    return pack(qweight, how.bits), scales.reshape(-1)


def replace_far_rows(weights: np.ndarray, qweight: np.ndarray, scales: np.ndarray, how: Quantization) -> None:
    """Round the rows that make up for too much without their inputs, in place; rows do not depend on one another.

    Few inputs leave directions in which a group may move far at no cost, and inputs that were not seen pay for it.

    Args:
        weights: (rows, K) float32.
        qweight: Their quantized values (rows, K) float32.
        scales: (rows, groups of a row) float32.
        how: The integer type and the group size.
    """
    rows, columns = weights.shape
    groups = weights.reshape(-1, how.group)
    best, best_scales = quantize_groups(groups, how.bits)
    least = np.square(groups - best * best_scales[:, None]).sum(1)
    found = np.square(groups - qweight.reshape(groups.shape) * scales.reshape(-1, 1)).sum(1)
    far = (found > MOST_ERROR * least).reshape(rows, -1).any(1)
    qweight[far] = best.reshape(rows, columns)[far]
    scales[far] = best_scales.reshape(rows, -1)[far]


def round_group(left: np.ndarray, scale: np.ndarray, block: np.ndarray, bits: int) -> np.ndarray:
    """Quantize one group of columns.

    Args:
        left: The columns (group, rows), overwritten by their errors over U[k, k].
        scale: The group's scale in each row.
        block: The group's square of U.
        bits: 4 or 8.

    Returns:
        Quantized values (rows, group) float32.
    """
    lowest = -(2 ** (bits - 1))
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    qweight = np.empty_like(left)
    for column, values in enumerate(left):
        code = np.clip(np.rint(values * inverse), lowest, -1 - lowest, out=qweight[column])
        values -= code * scale
        values /= block[column, column]
        left[column + 1 :] -= block[column, column + 1 :, None] * values
    return qweight.T
