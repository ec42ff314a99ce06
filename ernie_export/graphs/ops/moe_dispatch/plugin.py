"""The TensorRT plugins of ExpertBank and MoEDispatch: chains of plugins, one kernel a plugin.

ExpertBank is what decode steps call: BankLogits -> BankRoute -> BankGateUp -> BankDown -> BankCombine. MoEDispatch has
two banks and may have many tokens: DispatchLogits -> DispatchRoute -> DispatchSort -> DispatchGateUp -> DispatchDown ->
DispatchCombine. The kernels are the same, but for Sort, whose launch would cost a decode step more than it saves.
Weights in codes have plugins of their own for GateUp and Down, QuantizedBankGateUp and so on, which take codes in words
of 32 bits (see graphs/ops/quantized_linear/plugin.py) and scales. function_tensorrt.py writes the ONNX functions that
call them. Intermediate tensors, of T tokens, S = T·k slots, X experts over all banks:

| tensor | shape | dtype | |
| --- | --- | --- | --- |
| partial | (16, T, E) | float32 | router logits, the hidden size cut into shares |
| slots, weights | (T, k) | int32, float32 | each token's experts in ascending order, and their weights |
| offsets, order | (X + 1,), (S,) | int32 | slots grouped by expert |
| act | (S, widest I) | the graph's | weight · silu(gate) · up, by slot |
| out | (S, H) | the graph's | by slot |

Tactics differ in block sizes only; TensorRT times them at a profile's optimum. The first GateUp and Down tactics ask
for at most 48 KiB of shared memory, which needs no opt-in of whoever launches them.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.graphs.ops.kernel_plugin import (
    FLOATS,
    GRAPH_DTYPE,
    Attributes,
    Constants,
    KernelPlugin,
    Output,
    Shapes,
    Size,
    Tactic,
    ceil_div,
    gemm,
    maximum,
    minimum,
    power_of_two,
)
from ernie_export.graphs.ops.quantized_linear.plugin import check_storage, depth, storage_constants
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

SPLITS = 16  # programs that share the router's product: enough to read its weights at speed for one token


# (slots, rows of output, depth), weight rows first, warps, stages. GateUp reads two weight rows for one of output.
# For one token 6 experts make 288 programs of GateUp: tiles of 60 KiB let three share a multiprocessor of an H100 or
# H200, so that all run at once.
GATE_UP = (
    gemm(16, 32, 64, True, 4, 4),
    gemm(64, 32, 32, False, 4, 3),
    gemm(16, 32, 128, True, 4, 3),
    gemm(16, 16, 128, True, 4, 4),
    gemm(64, 64, 64, False, 4, 3),
    gemm(128, 64, 64, False, 8, 3),
    gemm(128, 128, 64, False, 8, 3),
)
DOWN = (
    gemm(16, 64, 64, True, 4, 4),
    gemm(64, 64, 32, False, 4, 3),
    gemm(16, 64, 128, True, 4, 3),
    gemm(16, 32, 128, True, 4, 4),
    gemm(64, 128, 64, False, 4, 3),
    gemm(128, 128, 64, False, 8, 3),
    gemm(128, 256, 64, False, 8, 3),
)


def kernel_plugins(vision: bool, storage: str = "") -> tuple[KernelPlugin, ...]:
    """The plugins, in order, of ExpertBank or (`vision`) MoEDispatch, with weights stored as STORAGES says."""
    prefix = "Dispatch" if vision else "Bank"
    grouping = {"offsets": "int32", "order": "int32"} if vision else {"slots": "int32"}
    types = {"token_types": "int64"} if vision else {}
    coded = {"k": int} | dict.fromkeys(STORAGES[storage], int)

    def banks(name: str, dtype: str) -> dict[str, str]:
        return {f"{bank}_{name}": dtype for bank in (("text", "vision") if vision else ("text",))}

    def weights(name: str) -> dict[str, str]:
        if not storage:
            return banks(name, GRAPH_DTYPE)
        return {
            key: kind
            for bank in banks(name, "int32")
            for key, kind in ((bank, "int32"), (f"{bank}_scales", GRAPH_DTYPE))
        }

    def tiled(shapes: Shapes, a: Attributes, weight: str, hidden: int, widths: tuple[int, int]) -> Constants:
        each = shapes[f"text_{weight}"][0]
        total = each * (1 + vision)
        counts = {"E": each, "EXPERTS": total, "BLOCK_X": power_of_two(total), "BLOCK_S": 128}
        sizes = {"K": a["k"], "H": hidden, "I_TEXT": widths[0], "I_VISION": widths[1]}
        return counts | sizes | storage_constants(storage, a)

    def widths(shapes: Shapes) -> tuple[Size, Size]:
        text = shapes["text_gate_up"][1] // 2
        return text, (shapes["vision_gate_up"][1] // 2 if vision else text)

    def down_widths(shapes: Shapes, a: Attributes) -> tuple[Size, Size]:
        text = depth(shapes, "text_down", storage, a)
        return text, (depth(shapes, "vision_down", storage, a) if vision else text)

    def route_outputs(shapes: Shapes, a: Attributes) -> tuple[Output, ...]:
        shape = (shapes["partial"][1], a["k"])
        return Output("experts", shape, "int64"), Output("slots", shape, "int32"), Output("weights", shape, "float32")

    def sort_outputs(shapes: Shapes, a: Attributes) -> tuple[Output, ...]:
        total = shapes["text_bias"][0] * 2
        order = Output("order", (shapes["slots"][0] * a["k"],), "int32")
        return Output("offsets", (total + 1,), "int32"), order

    sort = KernelPlugin(
        "DispatchSort",
        {"slots": "int32"} | banks("bias", "float32"),
        {"k": int},
        partial(_routing, "sort"),
        outputs=sort_outputs,
        size=lambda s, a: s["slots"][0],
        constants=lambda s, a: {"K": a["k"], "EXPERTS": s["text_bias"][0] * 2},
        grid=lambda n, c: (c["EXPERTS"], 1, 1),
        tactics=(Tactic({"BLOCK_S": 512}, 4), Tactic({"BLOCK_S": 4096}, 8)),
    )
    return (
        KernelPlugin(
            f"{prefix}Logits",
            {"x": GRAPH_DTYPE} | types | banks("gate", "float32"),
            {},
            partial(_routing, "logits"),
            outputs=lambda s, a: (Output("partial", (SPLITS, s["x"][0], s["text_gate"][1]), "float32"),),
            size=lambda s, a: s["x"][0],
            constants=lambda s, a: {
                "H": s["text_gate"][0],
                "E": s["text_gate"][1],
                "SPLITS": SPLITS,
                "BLOCK_E": max(16, power_of_two(s["text_gate"][1])),
            },
            grid=lambda n, c: (ceil_div(n, c["BLOCK_T"]), SPLITS, 1),
            tactics=(Tactic({"BLOCK_T": 16, "BLOCK_H": 32}, 4, 2), Tactic({"BLOCK_T": 64, "BLOCK_H": 32}, 8, 2)),
        ),
        KernelPlugin(
            f"{prefix}Route",
            {"partial": "float32"} | types | banks("bias", "float32"),
            {"k": int, "norm_min": float},
            partial(_routing, "route"),
            outputs=route_outputs,
            size=lambda s, a: s["partial"][1],
            constants=lambda s, a: {
                "E": s["text_bias"][0],
                "K": a["k"],
                "NORM_MIN": a["norm_min"],
                "SPLITS": SPLITS,
                "BLOCK_E": power_of_two(s["text_bias"][0]),
            },
            grid=lambda n, c: (ceil_div(n, c["BLOCK_T"]), 1, 1),
            tactics=(Tactic({"BLOCK_T": 4}, 4), Tactic({"BLOCK_T": 1}, 1)),
        ),
        *((sort,) if vision else ()),
        KernelPlugin(
            f"{storage}{prefix}GateUp",
            {"x": GRAPH_DTYPE} | grouping | {"weights": "float32"} | weights("gate_up"),
            coded,
            partial(_experts, "gate_up"),
            outputs=lambda s, a: (Output("act", (s["x"][0] * a["k"], maximum(*widths(s))), GRAPH_DTYPE),),
            size=lambda s, a: s["x"][0],
            constants=lambda s, a: tiled(s, a, "gate_up", depth(s, "text_gate_up", storage, a), widths(s)),
            grid=lambda n, c: (_tiles(n, c) * _blocks(max(c["I_TEXT"], c["I_VISION"]), c), 1, 1),
            tactics=GATE_UP,
        ),
        KernelPlugin(
            f"{storage}{prefix}Down",
            {"act": GRAPH_DTYPE} | grouping | weights("down"),
            coded,
            partial(_experts, "down"),
            outputs=lambda s, a: (Output("out", (s["act"][0], s["text_down"][1]), GRAPH_DTYPE),),
            size=lambda s, a: s["act"][0] // a["k"],
            constants=lambda s, a: tiled(s, a, "down", s["text_down"][1], down_widths(s, a)),
            grid=lambda n, c: (_tiles(n, c) * _blocks(c["H"], c), 1, 1),
            tactics=DOWN,
        ),
        KernelPlugin(
            f"{prefix}Combine",
            {"out": GRAPH_DTYPE},
            {"k": int},
            partial(_experts, "combine"),
            outputs=lambda s, a: (Output("y", (s["out"][0] // a["k"], s["out"][1]), GRAPH_DTYPE),),
            size=lambda s, a: s["out"][0],
            constants=lambda s, a: {"K": a["k"], "H": s["out"][1]},
            grid=lambda n, c: (n // c["K"], (c["H"] + c["BLOCK_H"] - 1) // c["BLOCK_H"], 1),
            tactics=(Tactic({"BLOCK_H": 1024}, 4), Tactic({"BLOCK_H": 512}, 2)),
        ),
    )


def check(
    dtype: str,
    hidden: int,
    experts: tuple[int, int],
    widths: tuple[int, int],
    k: int,
    storage: str = "",
    group: int | None = None,
    archs: Sequence[str] = (),
) -> None:
    """Refuse, by name, what the kernels can't serve; called at export.

    `experts` and `widths` of text, vision; `storage` of the weights as STORAGES says, with `group` values that share a
    scale; `archs` that kernels are wanted for, as sm89.
    """
    if dtype not in FLOATS:
        raise UserError(f"mixture of experts as a TensorRT plugin: dtype {dtype}, expected one of {', '.join(FLOATS)}")
    if experts[0] != experts[1]:
        raise UserError(f"mixture of experts: {experts[0]} text and {experts[1]} vision experts, expected as many")
    if not 1 <= k <= experts[0]:
        raise UserError(f"mixture of experts: {k} experts a token, expected 1 to {experts[0]}")
    if 2 * max(widths) * hidden >= 2**31:
        raise UserError(f"mixture of experts: expert of {max(widths)} x {hidden}, expected under 2**30 elements")
    if storage:
        check_storage("mixture of experts", storage, group, (hidden, *widths), archs)


def _routing(name: str) -> Any:
    from ernie_export.graphs.ops.moe_dispatch import kernel_route

    return getattr(kernel_route, name)


def _experts(name: str) -> Any:
    from ernie_export.graphs.ops.moe_dispatch import kernel_experts

    return getattr(kernel_experts, name)


def _tiles(tokens: Size, c: Constants) -> Size:
    """The most tiles that tokens can need: every expert that is chosen may leave one tile part empty."""
    slots = tokens * c["K"]
    return (slots + minimum(slots, c["EXPERTS"]) * (c["BLOCK_M"] - 1)) // c["BLOCK_M"]


def _blocks(rows: int, c: Constants) -> int:
    return -(-rows // c["BLOCK_N"])
