"""ONNX function body of MultimodalRope for TensorRT: its tables as constants, and one plugin."""

from ernie_export.graphs.ops.mrope.plugin import stage


def bodies(lowering: str, dtype: str) -> list[str]:
    """The function's text; the same for every dtype."""
    return [f"""
MultimodalRope <num_heads, kv_num_heads, inv_freq, axes> (q, k, position_ids) => (q_rotated, k_rotated) {{
    inv_freq = Constant <value_floats: floats = @inv_freq> ()
    axes_64 = Constant <value_ints: ints = @axes> ()
    axes = Cast <to = 6> (axes_64)
    {stage().call()}
}}
"""]
