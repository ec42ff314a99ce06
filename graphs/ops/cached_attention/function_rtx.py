"""ONNX function body of CachedAttention for TensorRT for RTX.

Its parser takes TensorScatter (as a KV-cache update) and Attention without past, but wants every head's size as a
figure of the graph: it is read off the cache's shape, where the portable body leaves it to Reshape.
"""

RTX = """
CachedAttention <num_heads, kv_num_heads> (q, k, v, past_key, past_value, past_lengths, lengths, capacity)
        => (y, present_key, present_value) {
    first = Constant <value_ints = [0]> ()
    heads_0d = Constant <value_int: int = @num_heads> ()
    heads = Unsqueeze (heads_0d, first)
    kv_heads_0d = Constant <value_int: int = @kv_num_heads> ()
    kv_heads = Unsqueeze (kv_heads_0d, first)
    dim = Shape <start = 3, end = 4> (past_key)
    batch_length = Shape <start = 0, end = 2> (q)
    q_shape = Concat <axis = 0> (batch_length, heads, dim)
    kv_shape = Concat <axis = 0> (batch_length, kv_heads, dim)
    q_split = Reshape (q, q_shape)
    k_split = Reshape (k, kv_shape)
    v_split = Reshape (v, kv_shape)
    q_heads = Transpose <perm = [0, 2, 1, 3]> (q_split)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k_split)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)
    present_key = TensorScatter <axis = 2> (past_key, k_heads, past_lengths)
    present_value = TensorScatter <axis = 2> (past_value, v_heads, past_lengths)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    length_1d = Shape <start = 1, end = 2> (q)
    length = Squeeze (length_1d, first)
    capacity_0d = Squeeze (capacity, first)
    new = Range (zero, length, one)
    places = Range (zero, capacity_0d, one)
    column_axes = Constant <value_ints = [1, 2, 3]> ()
    row_axes = Constant <value_ints = [0, 1, 3]> ()
    place_axes = Constant <value_ints = [0, 1, 2]> ()
    past_4d = Unsqueeze (past_lengths, column_axes)
    new_4d = Unsqueeze (new, row_axes)
    places_4d = Unsqueeze (places, place_axes)
    last_visible = Add (past_4d, new_4d)
    mask = LessOrEqual (places_4d, last_visible)
    y_heads = Attention (q_heads, present_key, present_value, mask)
    y_split = Transpose <perm = [0, 2, 1, 3]> (y_heads)
    width = Mul (heads, dim)
    y_shape = Concat <axis = 0> (batch_length, width)
    y = Reshape (y_split, y_shape)
}
"""


def bodies(lowering: str, dtype: str) -> list[str]:
    """Function text, the same for every dtype."""
    return [RTX]
