"""Feed-forward layers: SwiGLU, and the sparse layer of text and vision experts beside a shared expert."""

import numpy as np
import onnx_ir as ir

from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import TextConfig
from ernie_export.graphs.layers.linear import linear
from ernie_export.graphs.layers.quantized import group_size, quantized_weight, storage
from ernie_export.graphs.weight_spec import Interleaved, Quantization, Role, Rows, SourceSlice, Weight

FLOAT = ir.DataType.FLOAT


def swiglu(g: GraphBuilder, x: ir.Value, tensor: str, hidden: int, width: int, bias: bool) -> ir.Value:
    """Compute down(silu(gate(x)) · up(x)) for x (T, hidden); gate and up are one matrix, so that x is read once."""
    parts = [f"{tensor}.{name}_proj" for name in ("gate", "up")]
    with g.scope(tensor.rsplit(".", 1)[-1]):
        both = linear(g, x, f"{tensor}.gate_up_proj", 2 * width, hidden, bias, parts)
        gate, up = g.op_outputs("Split", both, axis=1, num_outputs=2, outputs=2, name="gate_up")
        silu = g.op("Mul", gate, g.op("Sigmoid", gate), name="silu")
        return linear(g, g.op("Mul", silu, up), f"{tensor}.down_proj", hidden, width, bias)


def sparse(g: GraphBuilder, x: ir.Value, token_types: ir.Value | None, mlp: str, text: TextConfig) -> ir.Value:
    """Compute the routed experts plus the shared expert for x (T, hidden); `mlp` is the prefix in the checkpoint.

    Without `token_types` every token is text and the vision experts are left out.
    """
    routing = {"k": text.experts_per_token, "norm_min": text.norm_min}
    how = None
    prefix = ""
    if g.bits is not None:
        group = group_size(mlp, text.hidden_size, *text.moe_intermediate_size)
        how = Quantization(g.bits, group, g.float8 and g.bits == 8, g.expert_tiles)
        prefix, attributes = storage(how)
        routing |= attributes
    with g.scope("mlp"):
        experts = expert_group(g, mlp, "text", text, how)
        if token_types is None:
            (routed,) = g.call(f"{prefix}ExpertGroup", [x, *experts], routing, outputs=1)
        else:
            experts += expert_group(g, mlp, "vision", text, how)
            routed, _ = g.custom(f"{prefix}MoEDispatch", x, token_types, *experts, **routing)
        if not text.num_shared_experts:
            return routed
        width = text.moe_intermediate_size[0] * text.num_shared_experts
        shared = swiglu(g, x, f"{mlp}.shared_experts", text.hidden_size, width, text.use_bias)
        return g.op("Add", routed, shared)


def expert_group(g: GraphBuilder, mlp: str, group: str, text: TextConfig, how: Quantization | None) -> list[ir.Value]:
    """Return gate (H, E), bias (E,), gate_up (E, 2I, H) and down (E, H, I) of one group, stacked over its experts.

    Text experts come first in the checkpoint, and their gate is `weight`, that of the vision experts `weight_1`.
    With `how`, gate_up and down are two values each: quantized weights and scales.
    """
    index = {"text": 0, "vision": 1}[group]
    hidden = text.hidden_size
    experts = text.num_experts
    width = text.moe_intermediate_size[index]
    sources = [f"{mlp}.experts.{index * experts + e}" for e in range(experts)]
    correction = f"{mlp}.moe_statics.e_score_correction_bias"
    of_group = (SourceSlice(correction, index, index + 1),)
    gate_up = tuple(Interleaved(f"{s}.gate_proj.weight", f"{s}.up_proj.weight") for s in sources)
    down = tuple(Rows(f"{s}.down_proj.weight") for s in sources)
    values = [
        g.tensor(f"{mlp}.gate.weight" + "_1" * index, (hidden, experts), Role.ROUTER, FLOAT),
        g.weight(Weight(f"{correction}.{group}", np.dtype(np.float32), (experts,), of_group, role=Role.ROUTER)),
    ]
    for name, shape, pieces in (
        ("gate_up_proj", (experts, 2 * width, hidden), gate_up),
        ("down_proj", (experts, hidden, width), down),
    ):
        stacked = f"{mlp}.experts.{group}.{name}"
        if how is None:
            values.append(g.weight(Weight(stacked, g.dtype.numpy(), shape, pieces, role=Role.EXPERT)))
        else:
            stored = (*shape[:-1], shape[-1] * how.bits // 8)
            values += quantized_weight(g, stacked, stored, shape, pieces=pieces, how=how, role=Role.EXPERT)
    return values
