"""The TensorRT plugin of MultimodalRope: one plugin, whose frequency and axis tables are inputs.

The tables are the op's attributes, made constants by function_tensorrt.py: a kernel argument is a tensor or an
int32, and a frequency computed in the kernel would differ in its last bit.
"""

from typing import Any

from ernie_export.graphs.ops.kernel_plugin import (
    GRAPH_DTYPE,
    KernelPlugin,
    Output,
    Tactic,
    ceil_div,
    power_of_two,
)


def kernel_plugin() -> KernelPlugin:
    """Return the plugin that rotates q and k."""
    return KernelPlugin(
        "Rope",
        {"q": GRAPH_DTYPE, "k": GRAPH_DTYPE, "position_ids": "int64", "inv_freq": "float32", "axes": "int32"},
        {"num_heads": int, "kv_num_heads": int},
        _kernel,
        outputs=lambda s, a: tuple(Output(f"{name}_rotated", tuple(s[name]), GRAPH_DTYPE) for name in "qk"),
        size=lambda s, a: s["position_ids"][1] * s["position_ids"][2],
        constants=lambda s, a: {
            "Q_HEADS": a["num_heads"],
            "KV_HEADS": a["kv_num_heads"],
            "D": 2 * s["inv_freq"][0],
            "PAIRS": power_of_two(s["inv_freq"][0]),
        },
        grid=lambda n, c: (
            ceil_div(n, c["BLOCK_T"]),
            -(-c["Q_HEADS"] // c["BLOCK_N"]) - (-c["KV_HEADS"] // c["BLOCK_N"]),
            1,
        ),
        tactics=(Tactic({"BLOCK_T": 1, "BLOCK_N": 4}, 2), Tactic({"BLOCK_T": 4, "BLOCK_N": 4}, 4)),
    )


def _kernel() -> Any:
    from ernie_export.graphs.ops.mrope import kernel

    return kernel.rope
