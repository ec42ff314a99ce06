"""ONNX function bodies of VisionAttention.

`onnxruntime` takes com.microsoft's MultiHeadAttention, whose CPU kernel works in blocks: an image of 24,000 patches
would need 37 GB for 16 heads' scores if they were formed whole.
"""

PORTABLE = """
VisionAttention <num_heads> (q, k, v) => (y) {
    y = Attention <q_num_heads: int = @num_heads, kv_num_heads: int = @num_heads> (q, k, v)
}
"""

ONNXRUNTIME = """
VisionAttention <num_heads> (q, k, v) => (y) {
    y = com.microsoft.MultiHeadAttention <num_heads: int = @num_heads> (q, k, v)
}
"""


def bodies(lowering: str, dtype: str) -> list[str]:
    """Function text for `lowering` (portable, onnxruntime, rtx); the same for every dtype."""
    return [ONNXRUNTIME if lowering == "onnxruntime" else PORTABLE]
