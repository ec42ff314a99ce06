"""NumPy reference of quantized weights: the meaning that every kernel and body is tested against."""

import numpy as np


def dequantize(qweight: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Return weights (..., K) in the scales' dtype from qweight (..., K·bits/8) uint8 and scales (..., groups)."""
    if bits == 4:
        qweight = np.stack((qweight & 15, qweight >> 4), axis=-1)
    centred = qweight.reshape(*scales.shape, -1).astype(scales.dtype) - scales.dtype.type(2 ** (bits - 1))
    weights: np.ndarray = centred * scales[..., None]
    return weights.reshape(*scales.shape[:-1], -1)


def dequantize_float8(qweight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return weights (..., K) in the scales' dtype from qweight (..., K) float8_e4m3fn and scales (..., groups)."""
    numbers = qweight.astype(np.float32).astype(scales.dtype).reshape(*scales.shape, -1)
    weights: np.ndarray = numbers * scales[..., None]
    return weights.reshape(*scales.shape[:-1], -1)


def quantized_linear(x: np.ndarray, qweight: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Multiply x (T, K) by the transposed weights; shapes as in spec.py."""
    y: np.ndarray = x @ dequantize(qweight, scales, bits).T
    return y
