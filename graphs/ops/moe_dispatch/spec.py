"""Declaration of ExpertBank and MoEDispatch.

T tokens, H hidden size, E experts in a bank, I the bank's expert width, k experts a token.

| input | shape | dtype |
| --- | --- | --- |
| x | (T, H) | the graph's |
| token_types | (T,) | int64; 0 text bank, anything else vision bank |
| gate | (H, E) | float32 |
| bias | (E,) | float32, added for the choice only |
| gate_up | (E, 2I, H) | the graph's; gate and up rows in turn |
| down | (E, H, I) | the graph's |
| output y | (T, H) | the graph's |
| output experts | (T, k) | int64, best first; the vision bank counts from E on |

Attributes: `k`; `norm_min`, the least divisor of the weights' normalisation.
"""

from ernie_export.graphs.ops.spec import OpSpec

BANK = ("gate", "bias", "gate_up", "down")

EXPERT_BANK = OpSpec("ExpertBank", ("x", *BANK), ("y", "experts"), ("k", "norm_min"))
MOE_DISPATCH = OpSpec(
    "MoEDispatch",
    ("x", "token_types", *(f"text_{n}" for n in BANK), *(f"vision_{n}" for n in BANK)),
    ("y", "experts"),
    ("k", "norm_min"),
)
