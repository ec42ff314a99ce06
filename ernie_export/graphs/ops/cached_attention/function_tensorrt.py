"""ONNX function body of CachedAttention for TensorRT's decode graph: the cache's update, and two plugins.

It is for one new token of each row, and takes no mask: none is made.
"""

from ernie_export.graphs.ops.cached_attention.plugin import kernel_plugins


def decode(dtype: str) -> list[str]:
    """Return the body; the same for every dtype."""
    attend, merge = kernel_plugins()
    body = f"""
CachedAttention <num_heads, kv_num_heads> (q, k, v, past_key, past_value, past_lengths, lengths, capacity, mask)
        => (y, present_key, present_value) {{
    first = Constant <value_ints = [0]> ()
    kv_heads_0d = Constant <value_int: int = @kv_num_heads> ()
    kv_heads = Unsqueeze (kv_heads_0d, first)
    dim = Shape <start = 3, end = 4> (past_key)
    batch_length = Shape <start = 0, end = 2> (q)
    kv_shape = Concat <axis = 0> (batch_length, kv_heads, dim)
    k_split = Reshape (k, kv_shape)
    v_split = Reshape (v, kv_shape)
    k_heads = Transpose <perm = [0, 2, 1, 3]> (k_split)
    v_heads = Transpose <perm = [0, 2, 1, 3]> (v_split)
    present_key = TensorScatter <axis = 2> (past_key, k_heads, past_lengths)
    present_value = TensorScatter <axis = 2> (past_value, v_heads, past_lengths)
    {attend.call()}
    {merge.call()}
}}
"""
    return [body]
