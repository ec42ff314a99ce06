"""The TensorRT plugins of ExpertGroup and MoEDispatch: chains of kernel plugins.

ExpertGroup is what decode steps call: ExpertsLogits -> GateUpOrRoute -> ExpertsGateUp -> ExpertsDown -> DownOrCombine.
MoEDispatch has two expert groups and may have many tokens: DispatchLogits -> DispatchRoute -> DispatchSort ->
DispatchGateUp -> DispatchDown -> DispatchCombine. The kernels are the same, but for Sort, whose launch would cost a
decode step more than it saves, and for steps of up to FEW tokens, which have kernels of their own: plugin_few.py
declares those, and the chain of engines whose steps are all so short. Quantized weights have plugins of their own where
weights are read, QuantizedExpertsGateUp and so on, which take quantized values in words of 32 bits (see
graphs/ops/quantized_linear/plugin.py) and scales. function_tensorrt.py writes the ONNX functions that call them.

Intermediate tensors, of T tokens, S = T·k slots, X experts over all expert groups:

| tensor | shape | dtype | |
| --- | --- | --- | --- |
| partial | (splits, T, E) | float32 | router logits, the hidden size cut into splits |
| slots, weights | (T, k) | int32, float32 | each token's experts in ascending order, and their weights |
| offsets, order | (X + 1,), (S,) | int32 | slots grouped by expert |
| act | (S, widest I) | the graph's | weight · silu(gate) · up, by slot |
| out | (S, H) | the graph's | by slot |

Tactics differ in block sizes only. TensorRT times those of the other plugins; the time of GateUp and Down depends on
which experts the tokens go to, and the inputs that TensorRT times kernels on say nothing of that. So each of these
offers one: decode steps that for few tokens, prompts that for many; the rest is for `benchmarks/gpu_kernels.py --only
sweep`. The first two tactics and the eighth ask for at most 48 KiB of shared memory, which needs no opt-in of whoever
launches them: where the first choice needs more, one of them is next.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from ernie_export.graphs.ops.kernel_plugin import (
    GRAPH_DTYPE,
    Attributes,
    Constants,
    KernelPlugin,
    Output,
    Shapes,
    Size,
    Tactic,
    by_size,
    ceil_div,
    gemm,
    maximum,
    minimum,
    power_of_two,
)
from ernie_export.graphs.ops.moe_dispatch import plugin_few
from ernie_export.graphs.ops.moe_dispatch.plugin_few import FEW
from ernie_export.graphs.ops.quantized_linear.plugin import depth, storage_constants
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

# Splits of the router's product. Those of a decode step are programs that read once and wait once; those of many tokens
# have so many programs anyway, and write every token's logits once for each split.
HIDDEN_OF_SPLIT = 64
SPLITS = 16

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
    gemm(64, 64, 64, True, 8, 3),
    gemm(64, 64, 128, True, 8, 3),
    gemm(128, 64, 64, True, 8, 3),
)
DOWN = (
    gemm(16, 64, 64, True, 4, 4),
    gemm(64, 64, 32, False, 4, 3),
    gemm(16, 64, 128, True, 4, 3),
    gemm(16, 32, 128, True, 4, 4),
    gemm(64, 128, 64, False, 4, 3),
    gemm(128, 128, 64, False, 8, 3),
    gemm(128, 256, 64, False, 8, 3),
    gemm(64, 128, 64, True, 8, 3),
    gemm(64, 128, 128, True, 8, 3),
    gemm(128, 128, 64, True, 8, 3),
)

# Numbers of GATE_UP and DOWN, the best first: for tokens whose time is reading weights, and for prompts. Quantized
# weights take the same for few tokens, though their tiles are read 4 (int4) or 8 bytes a thread: a warp's load is 128
# bytes in whole sectors all the same, one for every 10 cycles of a multiprocessor at the memory's full rate (12.9 bytes
# a cycle on an H100), and wider loads would save instructions of which there is no lack. A step's scales, 2 bytes a
# row, are asked for in the step that uses them: 20 steps wait some 0.6 µs each, which programs beside each other hide
# from 4 tokens on (at 8, 1,680 programs of GateUp for 396 places).
FOR_FEW = (3, 1)
FOR_MANY = (6, 2)
# The time of a prompt's quantized weights is making numbers of them. With the weight rows first a matrix unit takes
# these from registers, and a thread has the scales of two rows, not of 32 columns: 218 instructions for each 64 of the
# depth and 64 slots of int4 (sm90) where the tile of 128 slots has 473, a spill, and no other program beside it. Chunks
# of 1,024 tokens have 96 slots an expert, two tiles; one of 128 slots with the weight rows first has 266, but takes 197
# registers in place of 115, one program in place of two. The sweep of benchmarks/gpu_kernels.py times both.
FOR_MANY_QUANTIZED = (8,)


def kernel_plugins(vision: bool, storage: str = "", few: bool = False) -> tuple[KernelPlugin, ...]:
    """Return the plugins of an operator, in order.

    Args:
        vision: Whether it is MoEDispatch, which has experts for vision tokens, too; else it is ExpertGroup.
        storage: How the weights are stored; see STORAGES.
        few: Whether an ExpertGroup is for FEW tokens at most.
    """
    experts = _Experts(vision, storage)
    if vision:
        return (_logits(experts), _route(), _sort(), _gate_up(experts), _down(experts), _combine())
    first, last = plugin_few.kernel_plugins(storage, more=not few)
    products = () if few else (_gate_up(experts), _down(experts))
    return (_logits(experts), first, *products, last)


@dataclass(frozen=True)
class _Experts:
    """Text experts alone or (`vision`) both groups: what the plugins' declarations have in common."""

    vision: bool
    storage: str = ""

    @property
    def prefix(self) -> str:
        """Return the first part of the plugins' names."""
        return "Dispatch" if self.vision else "Experts"

    @property
    def types(self) -> dict[str, str]:
        """Return the input that tells vision tokens from text."""
        return {"token_types": "int64"} if self.vision else {}

    @property
    def grouping(self) -> dict[str, str]:
        """Return the inputs that assign slots to experts."""
        return {"offsets": "int32", "order": "int32"} if self.vision else {"slots": "int32"}

    @property
    def attributes(self) -> dict[str, type]:
        """Return the attributes of the matrix products."""
        attributes: dict[str, type] = {"k": int}
        attributes.update(dict.fromkeys(STORAGES[self.storage], int))
        return attributes

    @property
    def offered(self) -> tuple[int, ...]:
        """Return the numbers of the matrix products' tactics that TensorRT is offered."""
        if self.vision:
            return FOR_MANY_QUANTIZED if self.storage else FOR_MANY
        return FOR_FEW

    def splits(self, hidden: Size) -> Size:
        """Return the number of splits of the router's product."""
        return SPLITS if self.vision else ceil_div(hidden, HIDDEN_OF_SPLIT)

    def inputs(self, name: str, dtype: str) -> dict[str, str]:
        """Return input `name` of each group of experts, with its dtype."""
        return {f"{group}_{name}": dtype for group in (("text", "vision") if self.vision else ("text",))}

    def weights(self, name: str) -> dict[str, str]:
        """Return the weight `name` of each group of experts, followed by its scales if it is quantized."""
        if not self.storage:
            return self.inputs(name, GRAPH_DTYPE)
        inputs: dict[str, str] = {}
        for weight in self.inputs(name, "int32"):
            inputs |= {weight: "int32", f"{weight}_scales": GRAPH_DTYPE}
        return inputs

    def constants(self, shapes: Shapes, attributes: Attributes, weight: str) -> Constants:
        """Return the number of experts of a group and of all, and how `weight` is stored."""
        experts = shapes[f"text_{weight}"][0]
        total = experts * (1 + self.vision)
        k = attributes["k"]
        counts = {"E": experts, "EXPERTS": total, "BLOCK_X": power_of_two(total), "BLOCK_S": 128, "K": k}
        counts["FEW"] = 0 if self.vision else FEW * k
        return counts | storage_constants(self.storage, attributes)

    def gate_up_widths(self, shapes: Shapes) -> tuple[Size, Size]:
        """Return the widths of a text and of a vision expert, from the shapes of gate_up."""
        text = shapes["text_gate_up"][1] // 2
        return text, (shapes["vision_gate_up"][1] // 2 if self.vision else text)

    def down_widths(self, shapes: Shapes, attributes: Attributes) -> tuple[Size, Size]:
        """Return the widths of a text and of a vision expert, from the shapes of down."""
        text = depth(shapes, "text_down", self.storage, attributes)
        return text, (depth(shapes, "vision_down", self.storage, attributes) if self.vision else text)


def _logits(experts: _Experts) -> KernelPlugin:
    """Return the plugin that computes router logits, the hidden size cut into splits."""
    depth_of_step = 32 if experts.vision else HIDDEN_OF_SPLIT
    return KernelPlugin(
        f"{experts.prefix}Logits",
        {"x": GRAPH_DTYPE} | experts.types | experts.inputs("gate", "float32"),
        {},
        partial(_routing_kernel, "logits"),
        outputs=lambda s, a: (
            Output("partial", (experts.splits(s["text_gate"][0]), s["x"][0], s["text_gate"][1]), "float32"),
        ),
        size=lambda s, a: s["x"][0],
        constants=lambda s, a: {
            "H": s["text_gate"][0],
            "E": s["text_gate"][1],
            "SPLITS": experts.splits(s["text_gate"][0]),
            "BLOCK_E": max(16, power_of_two(s["text_gate"][1])),
        },
        grid=lambda n, c: (ceil_div(n, c["BLOCK_T"]), c["SPLITS"], 1),
        tactics=(
            Tactic({"BLOCK_T": 16, "BLOCK_H": depth_of_step}, 4, 2),
            Tactic({"BLOCK_T": 64, "BLOCK_H": depth_of_step}, 8, 2),
        ),
    )


def _route() -> KernelPlugin:
    """Return the plugin that chooses each token's experts."""
    experts = _Experts(vision=True)

    def outputs(shapes: Shapes, attributes: Attributes) -> tuple[Output, ...]:
        shape = (shapes["partial"][1], attributes["k"])
        return Output("experts", shape, "int64"), Output("slots", shape, "int32"), Output("weights", shape, "float32")

    return KernelPlugin(
        "DispatchRoute",
        {"partial": "float32"} | experts.types | experts.inputs("bias", "float32"),
        {"k": int, "norm_min": float},
        partial(_routing_kernel, "route"),
        outputs=outputs,
        size=lambda s, a: s["partial"][1],
        constants=lambda s, a: {
            "E": s["text_bias"][0],
            "K": a["k"],
            "NORM_MIN": a["norm_min"],
            "SPLITS": s["partial"][0],
            "BLOCK_E": power_of_two(s["text_bias"][0]),
        },
        grid=lambda n, c: (ceil_div(n, c["BLOCK_T"]), 1, 1),
        tactics=(Tactic({"BLOCK_T": 4}, 4), Tactic({"BLOCK_T": 1}, 1)),
    )


def _sort() -> KernelPlugin:
    """Return the plugin that groups slots by expert; decode does without."""

    def outputs(shapes: Shapes, attributes: Attributes) -> tuple[Output, ...]:
        offsets = Output("offsets", (shapes["text_bias"][0] * 2 + 1,), "int32")
        return offsets, Output("order", (shapes["slots"][0] * attributes["k"],), "int32")

    return KernelPlugin(
        "DispatchSort",
        {"slots": "int32"} | _Experts(vision=True).inputs("bias", "float32"),
        {"k": int},
        partial(_routing_kernel, "sort"),
        outputs=outputs,
        size=lambda s, a: s["slots"][0],
        constants=lambda s, a: {"K": a["k"], "EXPERTS": s["text_bias"][0] * 2},
        grid=lambda n, c: (c["EXPERTS"], 1, 1),
        tactics=(Tactic({"BLOCK_S": 512}, 4), Tactic({"BLOCK_S": 4096}, 8)),
    )


def _gate_up(experts: _Experts) -> KernelPlugin:
    """Return the plugin of the experts' first product and activation."""

    def constants(shapes: Shapes, attributes: Attributes) -> Constants:
        text, vision = experts.gate_up_widths(shapes)
        sizes = {"H": depth(shapes, "text_gate_up", experts.storage, attributes), "I_TEXT": text, "I_VISION": vision}
        return experts.constants(shapes, attributes, "gate_up") | sizes

    def outputs(shapes: Shapes, attributes: Attributes) -> tuple[Output, ...]:
        slots = shapes["x"][0] * attributes["k"]
        return (Output("act", (slots, maximum(*experts.gate_up_widths(shapes))), GRAPH_DTYPE),)

    return KernelPlugin(
        f"{experts.storage}{experts.prefix}GateUp",
        {"x": GRAPH_DTYPE} | experts.grouping | {"weights": "float32"} | experts.weights("gate_up"),
        experts.attributes,
        partial(_expert_kernel, "gate_up"),
        outputs=outputs,
        size=lambda s, a: s["x"][0],
        constants=constants,
        grid=lambda n, c: (_programs(n, max(c["I_TEXT"], c["I_VISION"]), c), 1, 1),
        tactics=GATE_UP,
        offered=experts.offered,
    )


def _down(experts: _Experts) -> KernelPlugin:
    """Return the plugin of the experts' second product."""

    def constants(shapes: Shapes, attributes: Attributes) -> Constants:
        text, vision = experts.down_widths(shapes, attributes)
        sizes = {"H": shapes["text_down"][1], "I_TEXT": text, "I_VISION": vision}
        return experts.constants(shapes, attributes, "down") | sizes

    return KernelPlugin(
        f"{experts.storage}{experts.prefix}Down",
        {"act": GRAPH_DTYPE} | experts.grouping | experts.weights("down"),
        experts.attributes,
        partial(_expert_kernel, "down"),
        outputs=lambda s, a: (Output("out", (s["act"][0], s["text_down"][1]), GRAPH_DTYPE),),
        size=lambda s, a: s["act"][0] // a["k"],
        constants=constants,
        grid=lambda n, c: (_programs(n, c["H"], c), 1, 1),
        tactics=DOWN,
        offered=experts.offered,
    )


def _combine() -> KernelPlugin:
    """Return the plugin that adds up each token's slots."""
    return KernelPlugin(
        "DispatchCombine",
        {"out": GRAPH_DTYPE},
        {"k": int},
        partial(_expert_kernel, "combine"),
        outputs=lambda s, a: (Output("y", (s["out"][0] // a["k"], s["out"][1]), GRAPH_DTYPE),),
        size=lambda s, a: s["out"][0],
        constants=lambda s, a: {"K": a["k"], "H": s["out"][1]},
        grid=lambda n, c: (n // c["K"], (c["H"] + c["BLOCK_H"] - 1) // c["BLOCK_H"], 1),
        tactics=(Tactic({"BLOCK_H": 1024}, 4), Tactic({"BLOCK_H": 512}, 2)),
    )


def _routing_kernel(name: str) -> Any:
    from ernie_export.graphs.ops.moe_dispatch import kernel_route

    return getattr(kernel_route, name)


def _expert_kernel(name: str) -> Any:
    from ernie_export.graphs.ops.moe_dispatch import kernel_experts

    return getattr(kernel_experts, name)


def _programs(tokens: Size, rows: int, c: Constants) -> Size:
    """Return the programs of a product of so many rows: one where other kernels do what there is to do."""
    slots = tokens * c["K"]
    # The most tiles that slots can need: every chosen expert may leave one tile partly empty.
    tiles = (slots + minimum(slots, c["EXPERTS"]) * (c["BLOCK_M"] - 1)) // c["BLOCK_M"]
    programs = tiles * -(-rows // int(c["BLOCK_N"]))
    return by_size(tokens, FEW, 1, programs) if c["FEW"] else programs
