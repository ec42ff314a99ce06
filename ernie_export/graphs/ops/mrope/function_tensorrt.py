"""ONNX function bodies of MultimodalRope for TensorRT: its tables as constants, and one plugin.

The plugin computes cos and sin where it rotates: nothing takes those of RotaryTables, which goes with all unused nodes.
"""

from ernie_export.graphs.ops.mrope.function import TABLES
from ernie_export.graphs.ops.mrope.plugin import kernel_plugin


def tensorrt(dtype: str) -> list[str]:
    """Return the bodies of plugins; the same for every dtype."""
    rope = f"""
MultimodalRope <num_heads, kv_num_heads, inv_freq, axes> (q, k, position_ids, q_cos, q_sin, k_cos, k_sin)
        => (q_rotated, k_rotated) {{
    inv_freq = Constant <value_floats: floats = @inv_freq> ()
    axes_64 = Constant <value_ints: ints = @axes> ()
    axes = Cast <to = 6> (axes_64)
    {kernel_plugin().call()}
}}
"""
    return [TABLES, rope]
