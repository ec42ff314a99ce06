"""ONNX function body of MultimodalRope for TensorRT for RTX, whose parser wants each head's size as a number.

Twice the number of frequencies is the head's size. RotaryEmbedding over (B, N, S, D) takes cos and sin of (B, S, D/2).
"""

from ernie_export.graphs.ops.mrope.function import TABLES

RTX = """
MultimodalRope <num_heads, kv_num_heads, inv_freq, axes> (q, k, position_ids, q_cos, q_sin, k_cos, k_sin)
        => (q_rotated, k_rotated) {
    frequencies = Constant <value_floats: floats = @inv_freq> ()
    first = Constant <value_ints = [0]> ()
    two = Constant <value_ints = [2]> ()
    pairs = Shape (frequencies)
    dim = Mul (pairs, two)
    heads_0d = Constant <value_int: int = @num_heads> ()
    heads = Unsqueeze (heads_0d, first)
    kv_heads_0d = Constant <value_int: int = @kv_num_heads> ()
    kv_heads = Unsqueeze (kv_heads_0d, first)
    batch_length = Shape <start = 0, end = 2> (q)
    q_shape = Concat <axis = 0> (batch_length, heads, dim)
    k_shape = Concat <axis = 0> (batch_length, kv_heads, dim)
    q32 = Cast <to = 1> (q)
    k32 = Cast <to = 1> (k)
    q_split = Reshape (q32, q_shape)
    k_split = Reshape (k32, k_shape)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_split)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k_split)
    q_turned = RotaryEmbedding <interleaved = 1> (q_heads, q_cos, q_sin)
    k_turned = RotaryEmbedding <interleaved = 1> (k_heads, k_cos, k_sin)
    q_rows = Transpose <perm = [0, 2, 1, 3]> (q_turned)
    k_rows = Transpose <perm = [0, 2, 1, 3]> (k_turned)
    q_width = Mul (heads, dim)
    k_width = Mul (kv_heads, dim)
    q_flat_shape = Concat <axis = 0> (batch_length, q_width)
    k_flat_shape = Concat <axis = 0> (batch_length, k_width)
    q_flat = Reshape (q_rows, q_flat_shape)
    k_flat = Reshape (k_rows, k_flat_shape)
    q_rotated = CastLike (q_flat, q)
    k_rotated = CastLike (k_flat, k)
}
"""


def rtx(dtype: str) -> list[str]:
    """Return the bodies for TensorRT for RTX; the same for every dtype."""
    return [TABLES, RTX]
