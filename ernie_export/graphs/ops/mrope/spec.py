"""Declaration of MultimodalRope, and of RotaryTables, which makes what every layer's rotation has in common.

B rows, S tokens, D head size, Nq and Nkv heads.

| input | shape | dtype |
| --- | --- | --- |
| q | (B, S, Nq·D) | the graph's |
| k | (B, S, Nkv·D) | the graph's |
| position_ids | (3, B, S) | int64; temporal, height, width |
| q_cos, q_sin, k_cos, k_sin | (B, S, D/2) | float32; by RotaryTables, for bodies that compute none themselves |
| output q_rotated | as q | q rotated, times 1/sqrt(D): the scale of attention |
| output k_rotated | as k | |

The scale stands in q's tables, in float32: it costs nothing there, and is not rounded to the graph's dtype as
TensorRT's parser does with an attention's own.

Attributes: `num_heads`, `kv_num_heads`; `inv_freq` (D/2 floats) and `axes` (D/2 ints: 0 temporal, 1 height, 2 width),
the frequency and the position axis of each pair of elements (2j, 2j + 1).

RotaryTables takes position_ids, `inv_freq`, `axes` and `scale`, 1/sqrt(D); its outputs are the tables.
"""

from ernie_export.graphs.ops.spec import OpSpec

MROPE = OpSpec(
    "MultimodalRope",
    ("q", "k", "position_ids", "q_cos", "q_sin", "k_cos", "k_sin"),
    ("q_rotated", "k_rotated"),
    ("num_heads", "kv_num_heads", "inv_freq", "axes"),
)
ROTARY_TABLES = OpSpec(
    "RotaryTables", ("position_ids",), ("q_cos", "q_sin", "k_cos", "k_sin"), ("inv_freq", "axes", "scale")
)
