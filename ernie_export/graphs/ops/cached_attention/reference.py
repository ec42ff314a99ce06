"""NumPy reference of CachedAttention; shapes as in spec.py, computed in float32."""

import numpy as np


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """Reshape (B, S, N·D) to (B, N, S, D)."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).transpose(0, 2, 1, 3)


def cached_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    past_key: np.ndarray,
    past_value: np.ndarray,
    past_lengths: np.ndarray,
    lengths: np.ndarray,
    num_heads: int,
    kv_num_heads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return y, present_key and present_value; y is zero at padding. q is scaled already."""
    queries, keys, values = split_heads(q, num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    present_key = past_key.copy()
    present_value = past_value.copy()
    y = np.zeros_like(q)
    for row, (past, new) in enumerate(zip(past_lengths, lengths, strict=True)):
        present_key[row, :, past : past + new] = keys[row, :, :new]
        present_value[row, :, past : past + new] = values[row, :, :new]
        group = num_heads // kv_num_heads
        all_keys = np.repeat(present_key[row, :, : past + new], group, axis=0)
        all_values = np.repeat(present_value[row, :, : past + new], group, axis=0)
        scores = queries[row, :, :new] @ all_keys.transpose(0, 2, 1)
        future = np.arange(past + new)[None] > (past + np.arange(new))[:, None]
        scores = np.where(future, -np.inf, scores)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        y[row, :new] = (weights @ all_values).transpose(1, 0, 2).reshape(new, -1)
    return y, present_key, present_value
