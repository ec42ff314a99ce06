"""A decode step's attention by its kernels on PyTorch tensors: on a GPU, or in Triton's interpreter.

For tests and benchmarks; an engine launches the same kernels by itself.
"""

from collections.abc import Callable
from typing import Any

from ernie_export.graphs.ops.cached_attention.plugin import kernel_plugins
from ernie_export.graphs.ops.kernel_plugin import launch


def decode_attention(
    q: Any,
    present_key: Any,
    present_value: Any,
    past_lengths: Any,
    num_heads: int,
    empty: Callable[[tuple[int, ...], str], Any],
) -> Any:
    """Return y (B, 1, num_heads·D): each row's one new token attends to its first past_lengths + 1 places.

    Args:
        q: (B, 1, num_heads·D), scaled by 1/sqrt(D).
        present_key: (B, kv heads, C, D), the new token's among them.
        present_value: Likewise.
        past_lengths: (B,) int64, at most C - 1.
        num_heads: Query heads.
        empty: Allocates a tensor of a shape and a dtype, named as in PyTorch.
    """
    tensors = {"q": q, "present_key": present_key, "present_value": present_value, "past_lengths": past_lengths}
    for plugin in kernel_plugins():
        attributes = {name: num_heads for name in plugin.attributes}
        outputs = launch(plugin, tensors, attributes, plugin.tactics[0], empty)
        tensors |= zip(plugin.output_names(), outputs, strict=True)
    return tensors["y"]
