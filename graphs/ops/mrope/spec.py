"""Declaration of MultimodalRope.

B rows, S tokens, D head size, Nq and Nkv heads.

| input | shape | dtype |
| --- | --- | --- |
| q | (B, S, Nq·D) | the graph's |
| k | (B, S, Nkv·D) | the graph's |
| position_ids | (3, B, S) | int64; temporal, height, width |
| output q_rotated, k_rotated | as q and k | |

Attributes: `num_heads`, `kv_num_heads`; `inv_freq` (D/2 floats) and `axes` (D/2 ints: 0 temporal, 1 height, 2 width),
the frequency and the position axis of each pair of elements (2j, 2j + 1).
"""

from ernie_export.graphs.ops.spec import OpSpec

MROPE = OpSpec(
    "MultimodalRope",
    ("q", "k", "position_ids"),
    ("q_rotated", "k_rotated"),
    ("num_heads", "kv_num_heads", "inv_freq", "axes"),
)
