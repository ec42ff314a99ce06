"""MultimodalRope by its kernel on PyTorch tensors: on a GPU, or in Triton's interpreter. For tests and benchmarks."""

from collections.abc import Callable
from typing import Any

from ernie_export.graphs.ops.kernel_plugin import launch
from ernie_export.graphs.ops.mrope.plugin import kernel_plugin


def rope(
    q: Any,
    k: Any,
    position_ids: Any,
    inv_freq: Any,
    axes: Any,
    heads: tuple[int, int],
    empty: Callable[[tuple[int, ...], str], Any],
    tactic: int = 0,
) -> list[Any]:
    """Rotated q (B, S, heads[0]·D) and k (B, S, heads[1]·D) by position_ids (3, B, S) int64; one launch.

    inv_freq (D/2,) float32 and axes (D/2,) int32. `empty(shape, dtype)` allocates, as in moe_dispatch/launch.py; to
    rotate in place, let it return q and then k.
    """
    tensors = {"q": q, "k": k, "position_ids": position_ids, "inv_freq": inv_freq, "axes": axes}
    chosen = kernel_plugin()
    attributes = {"num_heads": heads[0], "kv_num_heads": heads[1]}
    return launch(chosen, tensors, attributes, chosen.tactics[tactic], empty)
