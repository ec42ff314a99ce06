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
attributes: `bits`; `group`, the g values that share a scale. Float8ExpertBank and Float8MoEDispatch are the same with
codes of float8e4m3fn, and without `bits`.
"""

from ernie_export.graphs.ops.quantized_linear.spec import STORAGES
from ernie_export.graphs.ops.spec import OpSpec

BANK = ("gate", "bias", "gate_up", "down")
QUANTIZED_BANK = ("gate", "bias", "gate_up", "gate_up_scales", "down", "down_scales")
ROUTING = ("k", "norm_min")


def bank_inputs(storage: str) -> tuple[str, ...]:
    """Names of a bank's inputs, with weights stored as STORAGES says."""
    return QUANTIZED_BANK if storage else BANK


def both_banks(bank: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the text bank's inputs, then of the vision bank's."""
    return (*(f"text_{name}" for name in bank), *(f"vision_{name}" for name in bank))


def _declared(storage: str) -> tuple[OpSpec, OpSpec]:
    """One bank's operator, and that of both."""
    bank, attributes, outputs = bank_inputs(storage), (*ROUTING, *STORAGES[storage]), ("y", "experts")
    both = OpSpec(f"{storage}MoEDispatch", ("x", "token_types", *both_banks(bank)), outputs, attributes)
    return OpSpec(f"{storage}ExpertBank", ("x", *bank), outputs, attributes), both


EXPERT_BANK, MOE_DISPATCH = _declared("")
QUANTIZED_EXPERT_BANK, QUANTIZED_MOE_DISPATCH = _declared("Quantized")
FLOAT8_EXPERT_BANK, FLOAT8_MOE_DISPATCH = _declared("Float8")
