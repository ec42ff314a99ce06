"""The function bodies for TensorRT: what its parser meets once it has inlined them is plugins, wired as declared."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import inliner

from ernie_export.exporter.targets.tensorrt import TENSORRT_BODIES
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.ops.kernel_plugin import KernelPlugin
from ernie_export.graphs.ops.moe_dispatch.plugin import kernel_plugins
from ernie_export.graphs.ops.mrope.plugin import kernel_plugin as rope_plugin
from ernie_export.graphs.ops.quantized_linear.plugin import kernel_plugin as linear_plugin

EXPERT_GROUP = {"gate": ("FLOAT", 2), "bias": ("FLOAT", 1), "gate_up": ("BFLOAT16", 3), "down": ("BFLOAT16", 3)}
QWEIGHT = ("INT32", 3)
SCALES = ("BFLOAT16", 3)
QUANTIZED = {"gate": EXPERT_GROUP["gate"], "bias": EXPERT_GROUP["bias"]} | {
    "gate_up": QWEIGHT, "gate_up_scales": SCALES, "down": QWEIGHT, "down_scales": SCALES
}  # fmt: skip
ROUTING = {"k": 2, "norm_min": 1e-12}
STORED = {"Quantized": {"bits": 4, "group": 32}, "Float8": {"group": 32}}
TABLES: dict[str, list[Any]] = {"inv_freq": [1.0, 0.5, 0.25], "axes": [1, 2, 0]}
CASES: dict[str, tuple[dict[str, tuple[str, int]], dict[str, Any], Sequence[KernelPlugin]]] = {
    "ExpertGroup": ({"x": ("BFLOAT16", 2)} | EXPERT_GROUP, ROUTING, kernel_plugins(vision=False)),
    "MoEDispatch": (
        {"x": ("BFLOAT16", 2), "token_types": ("INT64", 1)}
        | {
            f"{expert_group}_{name}": kind for expert_group in ("text", "vision") for name, kind in EXPERT_GROUP.items()
        },
        ROUTING,
        kernel_plugins(vision=True),
    ),
    "MultimodalRope": (
        {"q": ("BFLOAT16", 3), "k": ("BFLOAT16", 3), "position_ids": ("INT64", 3)}
        | {f"{x}_{table}": ("FLOAT", 3) for x in "qk" for table in ("cos", "sin")},
        {"num_heads": 4, "kv_num_heads": 2} | TABLES,
        (rope_plugin(),),
    ),
}
for storage, how in STORED.items():
    CASES |= {
        f"{storage}ExpertGroup": ({"x": ("BFLOAT16", 2)} | QUANTIZED, ROUTING | how, kernel_plugins(False, storage)),
        f"{storage}MoEDispatch": (
            {"x": ("BFLOAT16", 2), "token_types": ("INT64", 1)}
            | {
                f"{expert_group}_{name}": kind
                for expert_group in ("text", "vision")
                for name, kind in QUANTIZED.items()
            },
            ROUTING | how,
            kernel_plugins(True, storage),
        ),
        f"{storage}Linear": (
            {"x": ("BFLOAT16", 2), "qweight": QWEIGHT, "scales": ("BFLOAT16", 2)},
            {"K": 64, "N": 8} | how,
            (linear_plugin(storage),),
        ),
    }


@pytest.fixture
def inlined(tmp_path):
    """inlined(op): a model of that operator alone, saved for TensorRT, with its functions inlined."""

    def build(op):
        inputs, attributes, _ = CASES[op]
        declared = [
            (name, ir.DataType[kind], [f"{name}_{axis}" for axis in range(rank)])
            for name, (kind, rank) in inputs.items()
        ]
        g = GraphBuilder("one", ir.DataType.BFLOAT16, declared)
        for index, value in enumerate(g.custom(op, *(g.inputs[name] for name in inputs), **attributes)):
            g.output(value, f"out{index}", ir.DataType.BFLOAT16, [f"out{index}_{axis}" for axis in range(2)])
        g.save(tmp_path / "one.onnx", TENSORRT_BODIES, "weights", {})
        return inliner.inline_local_functions(onnx.load(tmp_path / "one.onnx"))

    return build


@pytest.mark.parametrize("op", CASES)
def test_a_body_is_plugins_in_the_order_of_their_stages(inlined, op):
    model = inlined(op)
    assert not model.functions, "a body by a plugin's name would be inlined in its place"
    plugins = [node for node in model.graph.node if node.domain == "ernie"]
    _, attributes, declared = CASES[op]
    assert [node.op_type for node in plugins] == [plugin.name for plugin in declared]
    for node, plugin in zip(plugins, declared):
        assert (len(node.input), len(node.output)) == (len(plugin.inputs), len(plugin.output_names()))
        given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert given.pop("plugin_namespace") == b"ernie"
        assert given == pytest.approx({name: attributes[name] for name in plugin.attributes})


@pytest.mark.parametrize("op", [op for op in CASES if op.endswith(("ExpertGroup", "MoEDispatch"))])
def test_each_input_is_what_the_stage_calls_it(inlined, op):
    """Follow every value back to what made it: the op's input, or an earlier plugin's output of that name."""
    model = inlined(op)
    inputs, _, declared = CASES[op]
    known = {name: f"text_{name}" if name in QUANTIZED else name for name in inputs}
    for node, plugin in zip((n for n in model.graph.node if n.domain == "ernie"), declared):
        assert [known[value] for value in node.input] == list(plugin.inputs)
        known |= dict(zip(node.output, plugin.output_names()))
    assert [known[output.name] for output in model.graph.output] == ["y", "experts"]


def test_tables_of_frequencies_and_axes_are_constants(inlined):
    model = inlined("MultimodalRope")
    made = {node.output[0]: node for node in model.graph.node}
    (plugin,) = (node for node in model.graph.node if node.domain == "ernie")
    inv_freq, axes = (made[name] for name in plugin.input[3:])
    assert inv_freq.op_type == "Constant" and axes.op_type == "Cast"
    assert np.allclose(inv_freq.attribute[0].floats, TABLES["inv_freq"])
    assert list(made[axes.input[0]].attribute[0].ints) == TABLES["axes"]
