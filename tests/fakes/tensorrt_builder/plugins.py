"""Asks quick plugins what TensorRT's builder asks, through TensorRT's own Python sources; its expressions are ints."""

import dataclasses
import operator
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import tensorrt_bindings as real

OPERATIONS: dict[Any, Callable[[int, int], int]] = {
    real.DimensionOperation.SUM: operator.add,
    real.DimensionOperation.SUB: operator.sub,
    real.DimensionOperation.PROD: operator.mul,
    real.DimensionOperation.FLOOR_DIV: operator.floordiv,
    real.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    real.DimensionOperation.MAX: max,
    real.DimensionOperation.MIN: min,
}
FIELDS = {"INT": real.PluginFieldType.INT32, "FLOAT": real.PluginFieldType.FLOAT32}
ONNX_TYPES = {"BF16": 16, "HALF": 10, "FLOAT": 1, "INT32": 6, "INT64": 7}
DTYPES = {16: real.bfloat16, 10: real.float16, 1: real.float32, 6: real.int32, 7: real.int64}


@dataclasses.dataclass
class Expression:
    """Fake of trt.IDimensionExpr."""

    value: int


class ExprBuilder:
    """Fake of trt.IExprBuilder."""

    def constant(self, value: int) -> Expression:
        return Expression(value)

    def operation(self, op: Any, a: Expression, b: Expression) -> Expression:
        return Expression(OPERATIONS[op](a.value, b.value))


def use_integers() -> None:
    """Make TensorRT's Python sources work on these expressions; they know it under this name already."""
    import tensorrt as trt
    from tensorrt_bindings.plugin import _tensor

    trt.IDimensionExpr = Expression
    trt.DimsExprs = lambda length: [None] * length
    _tensor.SymExprImpl = lambda symbol: symbol._expr.value


def describe(shape: Any, dtype: Any) -> Any:
    """What TensorRT tells a plugin of one tensor."""
    plain = real.PluginTensorDesc()
    plain.dims = real.Dims(shape)
    plain.type = dtype
    plain.format = real.TensorFormat.LINEAR
    dynamic = real.DynamicPluginTensorDesc()
    dynamic.desc = plain
    return dynamic


def output_shapes(plugin: Any, shapes: list[list[int]]) -> list[list[int]]:
    """A plugin's outputs for inputs of these shapes."""
    outputs = plugin.get_output_shapes([[Expression(size) for size in shape] for shape in shapes], [], ExprBuilder())
    return [[size.value for size in shape] for shape in outputs]


def ask(plugin: Any, kinds: list[Any], shapes: list[list[int]], full: list[list[int]]) -> dict[str, Any]:
    """What a plugin answers for inputs of these dtypes and shapes, -1 where a size varies; `full` has those sizes."""
    out_kinds = plugin.get_output_data_types(kinds, [len(shape) for shape in shapes])
    outputs = output_shapes(plugin, full)
    inputs = [describe(shape, kind) for shape, kind in zip(shapes, kinds)]
    varies = [any(size < 0 for size in shape) for shape in shapes]
    out_dims = [[-1] * len(shape) for shape in outputs] if any(varies) else outputs
    everything = inputs + [describe(shape, kind) for shape, kind in zip(out_dims, out_kinds)]
    formats = plugin.get_supported_format_combinations(everything, len(inputs))
    plugin.configure_plugin(inputs, everything[len(inputs) :])
    kernels = []
    for tactic in sorted(plugin.get_valid_tactics()):
        plugin.set_tactic(tactic)
        launch = SimpleNamespace()
        scalars = type("Scalars", (dict,), {})()
        plugin.get_launch_params(None, everything, len(inputs), launch, scalars, ExprBuilder())
        name, ptx = plugin.get_kernel([d.desc for d in inputs], [d.desc for d in everything[len(inputs) :]])
        entry = re.search(r"\.visible \.entry (\w+)\((.*?)\)", ptx.decode(), re.DOTALL)
        assert entry is not None and name == entry[1]
        target = re.search(r"\.target (\w+)", ptx.decode())
        assert target is not None
        parameters = re.findall(r"\.param \.(\w+)", entry[2])
        kernels.append(
            vars(launch)
            | {"tactic": tactic, "name": name, "parameters": parameters, "scalars": list(scalars.values())}
            | {"target": target[1]}
        )
    return {"outputs": outputs, "dtypes": [kind.name for kind in out_kinds], "kernels": kernels,
            "formats": [f.type.name for f in formats], "aliases": list(plugin.aliased_map.values())}  # fmt: skip


def drive(model: onnx.ModelProto, find_creator: Callable[[onnx.NodeProto], Any]) -> list[dict[str, Any]]:
    """Create every plugin of a parsed model as the parser does, and ask it; its name, and targets of its kernels.

    Shapes come from the model's inputs through ONNX's own inference; a plugin's outputs go on from what it says.
    """
    use_integers()
    found = []
    waiting = [node for node in model.graph.node if node.domain == "ernie"]
    while waiting:
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False).graph
        known = {
            value.name: value.type.tensor_type for value in (*inferred.input, *inferred.output, *inferred.value_info)
        }
        shaped = {name for name, kind in known.items() if kind.HasField("shape")}
        ready = [node for node in waiting if shaped.issuperset(node.input)]
        assert ready, f"no shapes for {waiting[0].name}: {[n for n in waiting[0].input if n not in known]}"
        for node in ready:
            found.append(one(model, node, known, find_creator(node)))
        waiting = [node for node in waiting if node not in ready]
    return found


def one(model: onnx.ModelProto, node: onnx.NodeProto, known: dict[str, Any], creator: Any) -> dict[str, Any]:
    """Create and ask one plugin; what it says of its outputs is added to the model."""
    given = {a.name: a for a in node.attribute}
    fields = []
    for declared in creator.field_names:
        attribute = given[declared.name]
        kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
        value = np.array([onnx.helper.get_attribute_value(attribute)], {"INT": np.int32, "FLOAT": np.float32}[kind])
        fields.append(real.PluginField(declared.name, value, FIELDS[kind]))
    request = real.QuickPluginCreationRequest.PREFER_AOT
    collection = real.PluginFieldCollection(fields)
    plugin = creator.create_plugin(node.op_type, "ernie", collection, real.TensorRTPhase.BUILD, request)
    shapes = [[d.dim_value if d.HasField("dim_value") else -1 for d in known[n].shape.dim] for n in node.input]
    full = [[7 if size < 0 else size for size in shape] for shape in shapes]
    answer = ask(plugin, [DTYPES[known[name].elem_type] for name in node.input], shapes, full)
    assert len(answer["outputs"]) == len(node.output) and answer["kernels"]
    # A size that changes with what varies, varies.
    again = output_shapes(plugin, [[9 if size < 0 else size for size in shape] for shape in shapes])
    for name, kind, shape, other in zip(node.output, answer["dtypes"], answer["outputs"], again):
        sizes = [a if a == b else None for a, b in zip(shape, other)]
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, ONNX_TYPES[kind], sizes))
    return {"name": node.name, "targets": sorted({kernel["target"] for kernel in answer["kernels"]}),
            "tactics": [kernel["tactic"] for kernel in answer["kernels"]],
            "shared": max(kernel["shared_mem"] for kernel in answer["kernels"])}  # fmt: skip
