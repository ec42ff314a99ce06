"""The TensorRT plugins of ExpertGroup for decode steps of up to FEW tokens, alone or before and after those for more.

For engines of up to FEW sequences: ExpertsLogits -> FewGateUp -> FewDown. Two launches in place of four: each program
of FewGateUp chooses its token's experts by itself, and each of FewDown adds up all of a token's experts. Nothing is
added by atomic operations: a result does not depend on timing. They would serve any number of tokens, but read an
expert's weights once for each token of it.

For engines of more sequences: ExpertsLogits -> GateUpOrRoute -> ExpertsGateUp -> ExpertsDown -> DownOrCombine. Which
of a launch's two kernels runs depends on the step's tokens, and so does its grid. Up to FEW tokens are done with by the
first and the last launch; the two between are one program each then, which returns at once.

Intermediate tensors, of T tokens, besides those of plugin.py:

| tensor | shape | dtype | |
| --- | --- | --- | --- |
| experts | (T, k) | int64 | each token's experts, best first |
| few_act | (T·k, I) | the graph's | weight · silu(gate) · up, in the order of `experts` |
"""

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
    power_of_two,
)
from ernie_export.graphs.ops.quantized_linear.plugin import depth, storage_constants
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

FEW = 2  # two tokens choose 11.4 of 64 experts, six each: one byte in 20 is read twice
VALUES_OF_STEP = 512  # of each row that a program reads at once, at most
LEAST_STEP = 32  # values: 16 bytes of four bits each
GATE_UP_ROWS = 16  # of a program's weights: 1152 programs for one token of six experts of 3072 rows
DOWN_ROWS = 4  # 640 programs for one token of 2560: five a multiprocessor of an H100 or H200
ROUTE_TOKENS = 4  # of a program that chooses experts only: a warp each
# Steps whose weights are under way at once. A program of GateUp is to have about 16 KiB of them, of which six fit a
# multiprocessor; all programs of Down together have 2 to 8 MB, where 3 to 4 TB/s are that many in a microsecond.
AHEAD_BITS = 20
AHEAD_OF_DOWN = 6  # of quantized weights; others are many bytes in one


def kernel_plugins(storage: str, more: bool) -> tuple[KernelPlugin, KernelPlugin]:
    """Return FewGateUp and FewDown, or for steps of `more` tokens, too, GateUpOrRoute and DownOrCombine."""
    return _gate_up(storage, more), _down(storage, more)


def _weights(name: str, storage: str) -> dict[str, str]:
    """Return the input `name`, followed by its scales if it is quantized."""
    return {name: "int32", f"{name}_scales": GRAPH_DTYPE} if storage else {name: GRAPH_DTYPE}


def _steps(values: int, storage: str, attributes: Attributes) -> Constants:
    """Return how a row of so many values is read: STEP at once, of which a thread has RUN in 16 bytes."""
    stored = storage_constants(storage, attributes)
    run = 128 // stored["BITS"] if storage else 8
    step = max(min(power_of_two(values), VALUES_OF_STEP), LEAST_STEP)
    return stored | {"STEP": step, "RUN": min(run, stored["GROUP"]) if storage else run}


def _gate_up(storage: str, more: bool) -> KernelPlugin:
    """Return the plugin of routing, the experts' first product and activation."""

    def outputs(shapes: Shapes, attributes: Attributes) -> tuple[Output, ...]:
        tokens = shapes["x"][0]
        k = attributes["k"]
        width = shapes["text_gate_up"][1] // 2
        routed = (Output("slots", (tokens, k), "int32"), Output("weights", (tokens, k), "float32")) if more else ()
        return Output("experts", (tokens, k), "int64"), *routed, Output("few_act", (tokens * k, width), GRAPH_DTYPE)

    def constants(shapes: Shapes, attributes: Attributes) -> Constants:
        hidden = depth(shapes, "text_gate_up", storage, attributes)
        splits, _, experts = shapes["partial"]
        sizes = {"H": hidden, "WIDTH": shapes["text_gate_up"][1] // 2, "K": attributes["k"], "E": experts}
        routing = {"NORM_MIN": attributes["norm_min"], "SPLITS": splits}
        blocks = {"BLOCK_E": power_of_two(experts), "BLOCK_P": power_of_two(splits)}
        steps = _steps(hidden, storage, attributes)
        ahead = AHEAD_BITS // steps["BITS"] if storage and not steps["FLOAT8"] else 1
        return sizes | routing | blocks | steps | {"AHEAD": ahead} | ({"FEW": FEW} if more else {})

    def grid(tokens: Size, c: Constants) -> tuple[Size, ...]:
        slots, blocks = tokens * c["K"], -(-2 * c["WIDTH"] // c["ROWS"])
        if not more:
            return slots, blocks, 1
        return by_size(tokens, FEW, slots, ceil_div(tokens, c["BLOCK_T"])), by_size(tokens, FEW, blocks, 1), 1

    return KernelPlugin(
        f"{storage}GateUpOrRoute" if more else f"{storage}FewGateUp",
        {"partial": "float32", "text_bias": "float32", "x": GRAPH_DTYPE} | _weights("text_gate_up", storage),
        {"k": int, "norm_min": float} | dict.fromkeys(STORAGES[storage], int),
        _gate_up_kernel,
        outputs=outputs,
        size=lambda s, a: s["x"][0],
        constants=constants,
        grid=grid,
        tactics=(Tactic({"ROWS": GATE_UP_ROWS} | ({"BLOCK_T": ROUTE_TOKENS} if more else {}), 4),),
    )


def _down(storage: str, more: bool) -> KernelPlugin:
    """Return the plugin of the experts' second product, and the sum over a token's experts."""

    def constants(shapes: Shapes, attributes: Attributes) -> Constants:
        width = depth(shapes, "text_down", storage, attributes)
        experts, hidden, _ = shapes["text_down"]
        sizes = {"H": hidden, "WIDTH": width, "K": attributes["k"], "E": experts}
        ahead = {"AHEAD": AHEAD_OF_DOWN if storage else 1, "TOGETHER": 2 if storage and attributes["k"] % 2 == 0 else 1}
        return sizes | _steps(width, storage, attributes) | ahead | ({"FEW": FEW} if more else {})

    def grid(tokens: Size, c: Constants) -> tuple[Size, ...]:
        blocks = -(-c["H"] // c["ROWS"])
        return tokens, by_size(tokens, FEW, blocks, -(-c["H"] // c["BLOCK_H"])) if more else blocks, 1

    warps = 2 if storage else 4
    sums = {"BLOCK_H": 256 * warps} if more else {}
    return KernelPlugin(
        f"{storage}DownOrCombine" if more else f"{storage}FewDown",
        {"experts": "int64", "few_act": GRAPH_DTYPE}
        | _weights("text_down", storage)
        | ({"out": GRAPH_DTYPE} if more else {}),
        {"k": int} | dict.fromkeys(STORAGES[storage], int),
        _down_kernel,
        outputs=lambda s, a: (Output("y", (s["experts"][0], s["text_down"][1]), GRAPH_DTYPE),),
        size=lambda s, a: s["experts"][0],
        constants=constants,
        grid=grid,
        tactics=(Tactic({"ROWS": DOWN_ROWS} | sums, warps),),
    )


def _gate_up_kernel() -> Any:
    from ernie_export.graphs.ops.moe_dispatch.kernel_few import gate_up

    return gate_up


def _down_kernel() -> Any:
    from ernie_export.graphs.ops.moe_dispatch.kernel_few import down

    return down
