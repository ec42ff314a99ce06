"""Drive stages' quick plugins through TensorRT's own Python sources, as a build would; prints what came out as JSON.

Run by test_quick_plugins.py with tools/tensorrt_api.py's folder on the path: without TensorRT's libraries there is no
builder, so its expressions are stood in for by integers, and nothing is built.
"""

import dataclasses
import json
import operator
import re
import sys
from types import SimpleNamespace

import tensorrt as trt
import tensorrt.plugin as trtp  # noqa: F401
from compile_kernels import cases  # tools/
from ernie_export.graphs.ops.mrope.plugin import stage as rope_stage
from ernie_export.graphs.ops.quick_plugin import register
from ernie_export.graphs.ops.stage import GRAPH_DTYPE
from tensorrt_bindings.plugin import _lib, _plugin_class, _tensor

OPERATIONS = {
    trt.DimensionOperation.SUM: operator.add,
    trt.DimensionOperation.SUB: operator.sub,
    trt.DimensionOperation.PROD: operator.mul,
    trt.DimensionOperation.FLOOR_DIV: operator.floordiv,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
    trt.DimensionOperation.MAX: max,
    trt.DimensionOperation.MIN: min,
}


@dataclasses.dataclass
class Expression:
    """Stands in for trt.IDimensionExpr."""

    value: int


class Builder:
    """Stands in for trt.IExprBuilder."""

    def constant(self, value):
        return Expression(value)

    def operation(self, op, a, b):
        return Expression(OPERATIONS[op](a.value, b.value))


trt.IDimensionExpr = Expression
trt.DimsExprs = lambda length: [None] * length
_tensor.SymExprImpl = lambda symbol: symbol._expr.value


def describe(shape, dtype):
    """What TensorRT tells a plugin of one tensor."""
    plain = trt.PluginTensorDesc()
    plain.dims, plain.type, plain.format = trt.Dims(shape), dtype, trt.TensorFormat.LINEAR
    dynamic = trt.DynamicPluginTensorDesc()
    dynamic.desc = plain
    return dynamic


def build(stage, shapes, attributes, dtype, arch, sizes):
    """A stage as the builder would ask of it; `sizes` replace each -1 of `shapes`, in order."""
    register(stage, arch, lazy=True)
    definition = _lib.QDP_REGISTRY[f"ernie::{stage.name}"]
    plugin = _plugin_class._TemplateAOTPlugin(stage.name, "ernie", definition.num_outputs)
    functions = definition.aot_impl_attr_names, definition.aot_impl_func
    plugin.init(definition.register_func, attributes, *functions, definition.autotune_attr_names,
                definition.autotune_func)  # fmt: skip
    kinds = [getattr(trt, dtype if kind == GRAPH_DTYPE else kind) for kind in stage.inputs.values()]
    out_kinds = plugin.get_output_data_types(kinds, [len(shapes[name]) for name in stage.inputs])
    left = iter(sizes)
    full = [[next(left) if size < 0 else size for size in shapes[name]] for name in stage.inputs]
    outputs = plugin.get_output_shapes([[Expression(size) for size in shape] for shape in full], [], Builder())
    outputs = [[size.value for size in shape] for shape in outputs]
    out_shapes = [o.shape for o in stage.outputs(shapes, attributes)]
    out_shapes = [tuple(-1 if size < 0 else size for size in shape) for shape in out_shapes]
    inputs = [describe(shapes[name], kind) for name, kind in zip(stage.inputs, kinds)]
    everything = inputs + [describe(shape, kind) for shape, kind in zip(out_shapes, out_kinds)]
    formats = plugin.get_supported_format_combinations(everything, len(inputs))
    plugin.configure_plugin(inputs, everything[len(inputs) :])
    kernels = []
    for tactic in sorted(plugin.get_valid_tactics()):
        plugin.set_tactic(tactic)
        launch, scalars = SimpleNamespace(), type("Scalars", (dict,), {})()
        plugin.get_launch_params(None, everything, len(inputs), launch, scalars, Builder())
        name, ptx = plugin.get_kernel([d.desc for d in inputs], [d.desc for d in everything[len(inputs) :]])
        entry = re.search(r"\.visible \.entry (\w+)\((.*?)\)", ptx.decode(), re.DOTALL)
        parameters = re.findall(r"\.param \.(\w+)", entry[2])
        kernels.append(vars(launch) | {"tactic": tactic, "name": name, "entry": entry[1], "parameters": parameters,
                                       "scalars": list(scalars.values())})  # fmt: skip
    return {"outputs": outputs, "dtypes": [kind.name for kind in out_kinds], "kernels": kernels,
            "formats": [f.type.name for f in formats], "aliases": list(plugin.aliased_map.values())}  # fmt: skip


def main() -> None:
    found = {}
    sizes = {"Rope": [2, 40, 2, 40, 2, 40], "Combine": [480], "Down": [480, 480], "GateUp": [80, 480, 80]}
    dispatch = ("Logits", "Route", "Sort", "GateUp", "Down", "Combine")
    only = {"Rope", "BankLogits", "BankGateUp", *(f"Dispatch{name}" for name in dispatch)}
    for stage, shapes, attributes in cases():
        if stage.name in only:
            # GateUp with its first tactic, and its last, which asks for more shared memory than sm89 has.
            kept = (stage.tactics[0], stage.tactics[-1]) if stage.name == "DispatchGateUp" else stage.tactics[:1]
            own = sizes.get(stage.name.removeprefix("Dispatch"), [80] * 4)
            stage = dataclasses.replace(stage, tactics=kept)
            found[stage.name] = build(stage, shapes, attributes, "bfloat16", "sm89", own)
            if stage.name == "Rope":
                stage = dataclasses.replace(rope_stage(in_place=True), name="RopeInPlace", tactics=kept)
                found[stage.name] = build(stage, shapes, attributes, "float32", "sm89", own)
    stored = {"DispatchGateUp": [80, 480, 80], "BankDown": [480, 80], "Linear": [80]}
    for weights, prefix in (("int4", "Quantized"), ("fp8", "Float8")):
        for stage, shapes, attributes in cases(weights):
            if (own := stored.get(stage.name.removeprefix(prefix))) is not None:
                stage = dataclasses.replace(stage, tactics=stage.tactics[:1])
                found[stage.name] = build(stage, shapes, attributes, "bfloat16", "sm89", own)
    try:
        register(rope_stage(), "sm89", lazy=True)
    except ValueError as e:
        found["twice"] = str(e)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
