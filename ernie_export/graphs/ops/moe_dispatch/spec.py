"""Declaration of ExpertGroup and MoEDispatch.

T tokens, H hidden size, E experts in a group (text or vision), I the group's expert width, k experts a token.

| input | shape | dtype |
| --- | --- | --- |
| x | (T, H) | the graph's |
| token_types | (T,) | int64; 0 text experts, anything else vision experts |
| gate | (H, E) | float32 |
| bias | (E,) | float32, added for the choice only |
| gate_up | (E, 2I, H) | the graph's; gate and up rows in turn |
| down | (E, H, I) | the graph's |
| output y | (T, H) | the graph's |
| output experts | (T, k) | int64, best first; vision experts are numbered from E on |

Attributes: `k`; `norm_min`, the smallest divisor of the weights' normalisation.

QuantizedExpertGroup and QuantizedMoEDispatch take quantized gate_up and down (uint8, `bits` a value, in the same order)
with scales, (E, 2I, H/g) and (E, H, I/g) in the graph's dtype, after each; see quantized_linear/spec.py. Further
attributes: `bits`; `group`, the g values that share a scale. Float8ExpertGroup and Float8MoEDispatch are the same with
quantized values of float8e4m3fn, and without `bits`.
"""

from ernie_export.graphs.ops.quantized_linear.spec import STORAGES
from ernie_export.graphs.ops.spec import OpSpec

GROUP = ("gate", "bias", "gate_up", "down")
QUANTIZED_GROUP = ("gate", "bias", "gate_up", "gate_up_scales", "down", "down_scales")
ROUTING = ("k", "norm_min")


def group_inputs(storage: str) -> tuple[str, ...]:
    """Return the names of one expert group's inputs, with weights stored as STORAGES says."""
    return QUANTIZED_GROUP if storage else GROUP


def both_groups(group: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the text experts' inputs, then of the vision experts'."""
    return (*(f"text_{name}" for name in group), *(f"vision_{name}" for name in group))


def _declared(storage: str) -> tuple[OpSpec, OpSpec]:
    """Return the operator of one group of experts, and that of both groups."""
    group = group_inputs(storage)
    attributes = (*ROUTING, *STORAGES[storage])
    outputs = ("y", "experts")
    both = OpSpec(f"{storage}MoEDispatch", ("x", "token_types", *both_groups(group)), outputs, attributes)
    return OpSpec(f"{storage}ExpertGroup", ("x", *group), outputs, attributes), both


EXPERT_GROUP, MOE_DISPATCH = _declared("")
QUANTIZED_EXPERT_GROUP, QUANTIZED_MOE_DISPATCH = _declared("Quantized")
FLOAT8_EXPERT_GROUP, FLOAT8_MOE_DISPATCH = _declared("Float8")
