"""ONNX function bodies of MultimodalRope and RotaryTables: for every target that takes standard operators.

The tables are the same in every layer, and are made once: ONNX Runtime does not see that inlined copies have equal
constants.
"""

TABLES = """
RotaryTables <inv_freq, axes, scale> (position_ids) => (q_cos, q_sin, k_cos, k_sin) {
    frequencies = Constant <value_floats: floats = @inv_freq> ()
    pair_axes = Constant <value_ints: ints = @axes> ()
    by_pair = Gather <axis = 0> (position_ids, pair_axes)
    positions = Transpose <perm = [1, 2, 0]> (by_pair)
    positions32 = Cast <to = 1> (positions)
    angles = Mul (positions32, frequencies)
    k_cos = Cos (angles)
    k_sin = Sin (angles)
    scale = Constant <value_float: float = @scale> ()
    q_cos = Mul (k_cos, scale)
    q_sin = Mul (k_sin, scale)
}
"""

ROPE = """
MultimodalRope <num_heads, kv_num_heads, inv_freq, axes> (q, k, position_ids, q_cos, q_sin, k_cos, k_sin)
        => (q_rotated, k_rotated) {
    q32 = Cast <to = 1> (q)
    k32 = Cast <to = 1> (k)
    q_turned = RotaryEmbedding <interleaved = 1, num_heads: int = @num_heads> (q32, q_cos, q_sin)
    k_turned = RotaryEmbedding <interleaved = 1, num_heads: int = @kv_num_heads> (k32, k_cos, k_sin)
    q_rotated = CastLike (q_turned, q)
    k_rotated = CastLike (k_turned, k)
}
"""


def standard(dtype: str) -> list[str]:
    """Return the bodies in standard operators; the same for every dtype."""
    return [TABLES, ROPE]
