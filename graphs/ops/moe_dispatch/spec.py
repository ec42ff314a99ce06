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

QuantizedExpertBank and QuantizedMoEDispatch take gate_up and down as codes (uint8, `bits` a value, in the same order)
with scales, (E, 2I, H/g) and (E, H, I/g) in the graph's dtype, after each: see the room quantized_linear. Further
attributes: `bits`; `group`, the g values that share a scale.
"""

from ernie_export.graphs.ops.spec import OpSpec

BANK = ("gate", "bias", "gate_up", "down")
QUANTIZED_BANK = ("gate", "bias", "gate_up", "gate_up_scales", "down", "down_scales")
ROUTING = ("k", "norm_min")
STORAGE = ("bits", "group")


def both_banks(bank: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the text bank's inputs, then of the vision bank's."""
    return (*(f"text_{name}" for name in bank), *(f"vision_{name}" for name in bank))


EXPERT_BANK = OpSpec("ExpertBank", ("x", *BANK), ("y", "experts"), ROUTING)
MOE_DISPATCH = OpSpec("MoEDispatch", ("x", "token_types", *both_banks(BANK)), ("y", "experts"), ROUTING)
QUANTIZED_EXPERT_BANK = OpSpec("QuantizedExpertBank", ("x", *QUANTIZED_BANK), ("y", "experts"), (*ROUTING, *STORAGE))
QUANTIZED_MOE_DISPATCH = OpSpec(
    "QuantizedMoEDispatch", ("x", "token_types", *both_banks(QUANTIZED_BANK)), ("y", "experts"), (*ROUTING, *STORAGE)
)
