"""NumPy reference of VisionAttention; shapes as in spec.py, computed in float32."""

import numpy as np

from ernie_export.graphs.ops.cached_attention.reference import split_heads


def vision_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, num_heads: int) -> np.ndarray:
    """Compute the attention of every patch over the patches of its own frame; q is scaled already."""
    queries, keys, values = (split_heads(x, num_heads) for x in (q, k, v))
    scores = queries @ keys.transpose(0, 1, 3, 2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    y: np.ndarray = weights @ values
    return y.transpose(0, 2, 1, 3).reshape(q.shape)
