"""ONNX function bodies of VisionAttention.

`onnxruntime` takes com.microsoft's MultiHeadAttention, whose CPU kernel works in blocks: an image of 24,000 patches
would need 37 GB for 16 heads' scores if they were formed whole.
"""

PORTABLE = """
VisionAttention <num_heads> (q, k, v) => (y) {
    y = Attention <q_num_heads: int = @num_heads, kv_num_heads: int = @num_heads, scale = 1.0> (q, k, v)
}
"""

ONNXRUNTIME = """
VisionAttention <num_heads> (q, k, v) => (y) {
    y = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads, scale = 1.0> (q, k, v)
}
"""


def portable(dtype: str) -> list[str]:
    """Return the body in standard operators; the same for every dtype."""
    return [PORTABLE]


def onnxruntime(dtype: str) -> list[str]:
    """Return the body with ONNX Runtime's fused operator; the same for every dtype."""
    return [ONNXRUNTIME]
