"""Declaration of CachedAttention.

B rows, S new tokens (right-padded where rows differ), C cache capacity, D head size, Nq and Nkv heads.

| input | shape | dtype |
| --- | --- | --- |
| q | (B, S, Nq·D) | the graph's; scaled by 1/sqrt(D), as MultimodalRope returns it |
| k, v | (B, S, Nkv·D) | the graph's |
| past_key, past_value | (B, Nkv, C, D) | the graph's; C >= past_lengths + S |
| past_lengths | (B,) | int64, tokens already in the cache |
| lengths | (B,) | int64, new tokens that are not padding |
| capacity | (1,) | int64, C: every layer's the same |
| mask | (B, 1, S, C) | bool, by CausalMask: every layer's the same |
| output y | (B, S, Nq·D) | rows of padding are undefined |
| output present_key, present_value | (B, Nkv, C, D) | may share memory with the inputs |

The `onnxruntime` lowering takes B > 1 only with S = 1, and refuses other calls.

Attributes: `num_heads`, `kv_num_heads`. The operator itself scales nothing.

CausalMask takes the shape [B, S] of the new tokens, past_lengths and capacity. Token i of a sequence attends
to places 0 to past_lengths + i of the cache. A body that needs no mask does not take it, and then none is made.
"""

from ernie_export.graphs.ops.spec import OpSpec

CACHED_ATTENTION = OpSpec(
    "CachedAttention",
    ("q", "k", "v", "past_key", "past_value", "past_lengths", "lengths", "capacity", "mask"),
    ("y", "present_key", "present_value"),
    ("num_heads", "kv_num_heads"),
)
CAUSAL_MASK = OpSpec("CausalMask", ("shape", "past_lengths", "capacity"), ("mask",), ())
