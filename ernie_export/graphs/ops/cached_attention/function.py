"""ONNX function bodies of CachedAttention and CausalMask.

`portable`, and for both TensorRT libraries: opset-24 TensorScatter and Attention with an explicit mask. Their parsers
take TensorScatter for a KV-cache update and Attention without a past, but want every head's size as a number of the
graph: it is read off the cache's shape, and not left to Reshape. `onnxruntime`: com.microsoft's
GroupQueryAttention, which writes into the past buffer when the caller binds it as the present one, and never forms a
scores matrix of all tokens by all tokens. It reads total_sequence_length on the host: taken from the lengths, that
would be a copy from the device in every layer, and a decode step could not become a CUDA graph. The cache's capacity
does as well, since each row's own end decides what it attends to; but the operator then takes a call of several rows
for a decode step, and refuses it with more than one token a row.

On the CPU the operator has two kernels. By default it takes the one that goes over keys in blocks, which packs the keys
anew for every block of queries: 11 ms for 512 tokens of 16 heads, where the one that forms a head's scores whole takes
5, and single tokens gain as well. It takes the latter for what the former can't do, a sink among them: a score beside
the keys' own that stands in the softmax's sum, and that weighs nothing at -1e30.
"""

MASK = """
CausalMask (shape, past_lengths, capacity) => (mask) {
    first = Constant <value_ints = [0]> ()
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    length = Gather (shape, one)
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
}
"""

PORTABLE = """
CachedAttention <num_heads, kv_num_heads> (q, k, v, past_key, past_value, past_lengths, lengths, capacity, mask)
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
    y_heads = Attention <scale = 1.0> (q_heads, present_key, present_value, mask)
    y_split = Transpose <perm = [0, 2, 1, 3]> (y_heads)
    width = Mul (heads, dim)
    y_shape = Concat <axis = 0> (batch_length, width)
    y = Reshape (y_split, y_shape)
}
"""

ONNXRUNTIME = """
CachedAttention <num_heads, kv_num_heads> (q, k, v, past_key, past_value, past_lengths, lengths, capacity, mask)
        => (y, present_key, present_value) {{
    one = Constant <value_int = 1> ()
    ends = Add (past_lengths, lengths)
    last = Sub (ends, one)
    last32 = Cast <to = 6> (last)
    capacity32 = Cast <to = 6> (capacity)
    {sink}
    y, present_key, present_value = com.microsoft.GroupQueryAttention
        <num_heads: int = @num_heads, kv_num_heads: int = @kv_num_heads, do_rotary = 0,
        scale = 1.0>
        (q, k, v, past_key, past_value, last32, capacity32{with_sink})
}}
"""
SINK = """heads_0d = Constant <value_int: int = @num_heads> ()
    zero_1d = Constant <value_ints = [0]> ()
    heads = Unsqueeze (heads_0d, zero_1d)
    nothing = Constant <value = float {-1e30}> ()
    sink = Expand (nothing, heads)"""


def portable(dtype: str) -> list[str]:
    """Return the bodies in standard operators; the same for every dtype."""
    return [MASK, PORTABLE]


def onnxruntime(dtype: str) -> list[str]:
    """Return the body with ONNX Runtime's fused operator, for graphs of `dtype`."""
    # Graphs in 16 bits are those that may run on CUDA, whose kernels are others.
    filled = {"sink": SINK, "with_sink": ", , , , , sink"} if dtype == "float" else {"sink": "", "with_sink": ""}
    return [ONNXRUNTIME.format(**filled)]
