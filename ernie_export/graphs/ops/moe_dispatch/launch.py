"""ExpertGroup and MoEDispatch by their kernels on PyTorch tensors: on a GPU, or in Triton's interpreter.

For tests and benchmarks; an engine launches the same kernels by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ernie_export.graphs.ops.kernel_plugin import KernelPlugin, launch
from ernie_export.graphs.ops.moe_dispatch.plugin import FOR_FEW, FOR_MANY, FOR_MANY_QUANTIZED, kernel_plugins
from ernie_export.graphs.ops.moe_dispatch.spec import group_inputs

# Tactic of each plugin (its place in the list, from 0): for few tokens, whose time is reading weights, and for many.
DECODE = {
    "FewGateUp": 0,
    "FewDown": 0,
    "GateUpOrRoute": 0,
    "DownOrCombine": 0,
    "Logits": 0,
    "Route": 1,
    "Sort": 0,
    "GateUp": FOR_FEW[0] - 1,
    "Down": FOR_FEW[0] - 1,
    "Combine": 1,
}
PREFILL = DECODE | {
    "Logits": 1,
    "Route": 0,
    "Sort": 1,
    "GateUp": FOR_MANY[0] - 1,
    "Down": FOR_MANY[0] - 1,
    "Combine": 0,
}
PREFILL_QUANTIZED = PREFILL | dict.fromkeys(("GateUp", "Down"), FOR_MANY_QUANTIZED[0] - 1)


def tactic_of(plugin: KernelPlugin, tactics: Mapping[str, int]) -> int:
    """Return the place of the plugin's tactic in its list."""
    return next(number for name, number in tactics.items() if plugin.name.endswith(name))


def moe_dispatch(
    x: Any,
    token_types: Any | None,
    text: Sequence[Any],
    vision: Sequence[Any] | None,
    attributes: Mapping[str, Any],
    empty: Callable[[tuple[int, ...], str], Any],
    tactics: Mapping[str, int],
    storage: str = "",
    few: bool = False,
) -> dict[str, Any]:
    """Return every tensor of the chain by name (see plugin.py), among them y (T, H) and experts (T, k) int64.

    x (T, H), token_types (T,) int64, and expert groups of gate, bias, gate_up, down as spec.py declares them for
    `storage`, contiguous, quantized values as int32; without `vision` (and `token_types`) every token is text.
    `attributes` are the operator's. `empty(shape, dtype)` allocates, as `lambda shape, dtype: torch.empty(shape,
    dtype=getattr(torch, dtype), device="cuda")`. With `few` the plugins are those of engines of few
    sequences (plugin_few.py). Launches five kernels, three with `few`, or six for two expert groups, on the current
    stream and waits for none.
    """
    names = group_inputs(storage)
    tensors = {"x": x, "token_types": token_types}
    tensors |= {f"text_{name}": tensor for name, tensor in zip(names, text, strict=True)}
    tensors |= {f"vision_{name}": tensor for name, tensor in zip(names, vision or (None,) * len(names), strict=True)}
    for plugin in kernel_plugins(vision is not None, storage, few):
        number = tactic_of(plugin, tactics)
        own = {name: attributes[name] for name in plugin.attributes}
        outputs = launch(plugin, tensors, own, plugin.tactics[number], empty)
        tensors |= zip(plugin.output_names(), outputs, strict=True)
    return tensors
