"""NumPy reference of the multimodal rotary embedding, and its constants.

Formulas: class Ernie4_5_VLMoeTextRotaryEmbedding and apply_rotary_pos_emb in transformers. An operator's q is scaled as
well: `rotate` times `attention_scale`.
"""

import math

import numpy as np


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """Return theta^(-2j/dim) for j in 0..dim/2, float32 at each step as PyTorch computes it; shape (dim/2,)."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    # PyTorch's float32 pow is exact to the last bit but for rare cases; rounding a float64 power reproduces it best.
    powers = np.power(np.float64(theta), exponents.astype(np.float64)).astype(np.float32)
    return np.float32(1) / powers


def axes(mrope_section: tuple[int, int, int]) -> np.ndarray:
    """Return the position axis of each pair: height and width in turn over the two first sections, then temporal."""
    height, width, temporal = mrope_section
    return np.array([1, 2] * ((height + width) // 2) + [0] * temporal, np.int64)


def attention_scale(dim: int) -> np.float32:
    """Return 1/sqrt(dim) for heads of size `dim`, in float32."""
    return np.float32(1 / math.sqrt(dim))


def rotate(x: np.ndarray, position_ids: np.ndarray, inv_freq: np.ndarray, pair_axes: np.ndarray) -> np.ndarray:
    """Rotate x (B, S, N, D) by position_ids (3, B, S); returns x's shape and dtype, computed in float32."""
    angles = np.moveaxis(position_ids[pair_axes], 0, -1).astype(np.float32) * inv_freq  # (B, S, D/2)
    cos, sin = np.cos(angles)[:, :, None], np.sin(angles)[:, :, None]
    even, odd = x[..., 0::2].astype(np.float32), x[..., 1::2].astype(np.float32)
    out = np.empty(x.shape, np.float32)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = odd * cos + even * sin
    return out.astype(x.dtype)
