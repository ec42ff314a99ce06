"""The TensorRT plugins QuantizedLinear and Float8Linear, and what they share with the expert plugins.

TensorRT takes no plugin input of unsigned bytes, and it dequantises by itself only what a constant scales. The engines
have their weights as inputs; so the quantized values are declared as int32, four bytes a word, the last axis counting
words, and the kernels turn them into numbers (see kernel_product.py). qweight (N, K/g, g·bits/32), scales (N, K/g).
"""

from collections.abc import Sequence
from typing import Any

from ernie_export.common.errors import InvalidValue
from ernie_export.graphs.ops.kernel_plugin import (
    GRAPH_DTYPE,
    Attributes,
    Constants,
    KernelPlugin,
    Output,
    Shapes,
    Size,
    ceil_div,
    gemm,
    power_of_two,
)
from ernie_export.graphs.ops.ptx import target
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

MIN_GROUP = 16  # the least depth of a matrix unit's product
FLOAT8_SINCE = 89  # the compute capability from which there are e4m3 numbers


# (tokens, outputs, depth), weight rows first, warps, stages. For one token 2560 outputs are 160 programs of 16.
# Of few tokens 4 to 16 bytes a thread are loaded at a time, whole sectors by a warp: see FOR_FEW of the package
# moe_dispatch, whose reasoning holds here.
TACTICS = (
    gemm(16, 16, 128, True, 4, 4),
    gemm(16, 64, 128, True, 4, 3),
    gemm(64, 128, 64, True, 8, 3),
    gemm(128, 128, 64, True, 8, 3),
)


def kernel_plugin(storage: str) -> KernelPlugin:
    """Return the plugin of `storage`, Quantized or Float8."""
    return KernelPlugin(
        f"{storage}Linear",
        {"x": GRAPH_DTYPE, "qweight": "int32", "scales": GRAPH_DTYPE},
        {"K": int, "N": int} | dict.fromkeys(STORAGES[storage], int),
        _kernel,
        outputs=lambda s, a: (Output("y", (s["x"][0], a["N"]), GRAPH_DTYPE),),
        size=lambda s, a: s["x"][0],
        constants=lambda s, a: {"N": a["N"], "K": a["K"]} | storage_constants(storage, a),
        grid=lambda n, c: (-(-c["N"] // c["BLOCK_N"]), ceil_div(n, c["BLOCK_M"]), 1),
        tactics=TACTICS,
    )


def storage_constants(storage: str, attributes: Attributes) -> Constants:
    """Return the constants that describe how weights are stored; none where they have the graph's dtype."""
    if not storage:
        return {}
    return {"BITS": attributes.get("bits", 8), "GROUP": attributes["group"], "FLOAT8": storage == "Float8"}


def depth(shapes: Shapes, weight: str, storage: str, attributes: Attributes) -> Size:
    """Return the number of values in a row of the weight."""
    return shapes[f"{weight}_scales"][-1] * attributes["group"] if storage else shapes[weight][-1]


def check_storage(what: str, storage: str, group: int | None, widths: Sequence[int], archs: Sequence[str]) -> None:
    """Raise InvalidValue, beginning with `what`, for groups or architectures that the kernels cannot serve."""
    if group is None or group < MIN_GROUP or power_of_two(group) != group:
        raise InvalidValue(f"{what}: group size", f"a power of two from {MIN_GROUP}", group)
    for width in widths:
        if width % group:
            raise InvalidValue(f"{what}: width", f"a multiple of the group of {group}", width)
    for arch in archs if storage == "Float8" else ():
        if not has_float8(arch):
            raise InvalidValue(f"{what}: architecture", f"sm{FLOAT8_SINCE} or later for fp8 weights", arch)


def has_float8(arch: str) -> bool:
    """Return whether the architecture has e4m3 numbers."""
    return target(arch) >= FLOAT8_SINCE


def _kernel() -> Any:
    from ernie_export.graphs.ops.quantized_linear.kernel import linear

    return linear
