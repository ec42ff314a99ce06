"""NumPy reference of AddRMSNormalization; shapes as in spec.py."""

import numpy as np


def add_rms_norm(
    residual: np.ndarray, x: np.ndarray, weight: np.ndarray, epsilon: float
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the sum and its norm (class Ernie4_5_VLMoeRMSNorm): float32 until the product with the weight."""
    total = residual + x
    wide = total.astype(np.float32)
    scale = 1 / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    return total, (wide * scale).astype(total.dtype) * weight
