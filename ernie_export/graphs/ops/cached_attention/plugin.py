"""The TensorRT plugins of a decode step's attention: keys in splits, then the splits merged (kernel.py).

The KV cache is written by TensorScatter before. A plugin's aliased outputs take effect only with the preview feature
kALIASED_PLUGIN_IO_10_03 (NvInferRuntime.h, IPluginV3OneBuild::getAliasedInput), and a builder that refuses one would
cost the whole graph, where a token's keys and values are 0.01 % of what a step reads.
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
    ceil_div,
    minimum,
    power_of_two,
)

# Programs of one row: with 4 key heads they fill the 132 multiprocessors of an H100 at a batch of one. A split's tokens
# lie in blocks that are far apart, so that splits of any length have as many as their neighbours.
MOST_SPLITS = 32
LEAST_TOKENS = 64  # of the capacity for each split
BLOCK_BYTES = 16 * 1024  # of the keys of a block: with its values within 48 KiB of shared memory
LEAST_UNITS = 16  # rows and columns of a matrix unit


def splits(capacity: Size) -> Size:
    """Return how many splits there are for a cache of `capacity` tokens."""
    return minimum(ceil_div(capacity, LEAST_TOKENS), MOST_SPLITS)


def kernel_plugins() -> tuple[KernelPlugin, KernelPlugin]:
    """Return the plugins of both stages, in order."""
    attend = KernelPlugin(
        "DecodeAttend",
        {"q": GRAPH_DTYPE, "present_key": GRAPH_DTYPE, "present_value": GRAPH_DTYPE, "past_lengths": "int64"},
        {"num_heads": int},
        _attend,
        outputs=_attend_outputs,
        size=_rows,
        constants=_attend_constants,
        grid=lambda n, c: (c["SPLITS"], c["KV_HEADS"], n),
        tactics=(Tactic({}, 4),),
    )
    merge = KernelPlugin(
        "DecodeMerge",
        {
            "q": GRAPH_DTYPE,
            "present_key": GRAPH_DTYPE,
            "weighted": "float32",
            "highest": "float32",
            "total": "float32",
            "past_lengths": "int64",
        },
        {"num_heads": int},
        _merge,
        outputs=lambda s, a: (Output("y", tuple(s["q"]), GRAPH_DTYPE),),
        size=_rows,
        constants=_merge_constants,
        grid=lambda n, c: (c["KV_HEADS"] * c["GROUP"], n, 1),
        tactics=(Tactic({}, 4),),
    )
    return attend, merge


def _rows(shapes: Shapes, attributes: Attributes) -> Size:
    return shapes["q"][0]


def _attend_outputs(shapes: Shapes, attributes: Attributes) -> tuple[Output, ...]:
    heads = attributes["num_heads"]
    by_split = (shapes["q"][0], splits(shapes["present_key"][2]), heads)
    return (
        Output("weighted", (*by_split, shapes["q"][2] // heads), "float32"),
        Output("highest", by_split, "float32"),
        Output("total", by_split, "float32"),
    )


def _attend_constants(shapes: Shapes, attributes: Attributes) -> Constants:
    constants = _shared_constants(shapes, attributes)
    return constants | {
        "ROWS": max(power_of_two(constants["GROUP"]), LEAST_UNITS),
        "COLUMNS": max(power_of_two(constants["D"]), LEAST_UNITS),
    }


def _merge_constants(shapes: Shapes, attributes: Attributes) -> Constants:
    constants = _shared_constants(shapes, attributes)
    return constants | {"ROWS": power_of_two(constants["SPLITS"]), "COLUMNS": power_of_two(constants["D"])}


def _shared_constants(shapes: Shapes, attributes: Attributes) -> Constants:
    _, kv_heads, capacity, dim = shapes["present_key"]
    block = min(64, max(LEAST_UNITS, BLOCK_BYTES // (2 * power_of_two(dim))))
    return {
        "KV_HEADS": kv_heads,
        "GROUP": attributes["num_heads"] // kv_heads,
        "D": dim,
        "C": capacity,
        "SPLITS": splits(capacity),
        "BLOCK": block,
    }


def _attend() -> Any:
    from ernie_export.graphs.ops.cached_attention import kernel

    return kernel.attend


def _merge() -> Any:
    from ernie_export.graphs.ops.cached_attention import kernel

    return kernel.merge
