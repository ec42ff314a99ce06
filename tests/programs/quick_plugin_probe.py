"""Drive stages' quick plugins through TensorRT's own Python sources, as a build would; prints what came out as JSON.

Run by test_quick_plugins.py with tools/tensorrt_api.py's folder on the path. Without TensorRT's libraries there is no
builder: its expressions are integers, and nothing is built.
"""

import dataclasses
import json
import sys

import tensorrt as trt
import tensorrt.plugin as trtp  # noqa: F401
from compile_kernels import cases  # tools/
from tensorrt_bindings.plugin import _lib, _plugin_class

from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.mrope.plugin import stage as rope_stage
from ernie_export.graphs.ops.ptx import compile_stage, fits
from ernie_export.graphs.ops.quick_plugin import register
from ernie_export.graphs.ops.stage import GRAPH_DTYPE
from tests.fakes.tensorrt_builder.plugins import ask, use_integers

use_integers()


def build(stage, shapes, attributes, dtype, arch, sizes):
    """A stage as the builder would ask of it; `sizes` replace each -1 of `shapes`, in order."""
    numbers = range(1, len(stage.tactics) + 1)
    compiled = [compile_stage(stage, shapes, attributes, number, dtype, arch) for number in numbers]
    kernels = Kernels(dtype, tuple(kernel for kernel in compiled if fits(kernel, arch)))
    register(stage, kernels, lazy=True)
    definition = _lib.QDP_REGISTRY[f"ernie::{stage.name}"]
    plugin = _plugin_class._TemplateAOTPlugin(stage.name, "ernie", definition.num_outputs)
    functions = definition.aot_impl_attr_names, definition.aot_impl_func
    plugin.init(definition.register_func, attributes, *functions, definition.autotune_attr_names,
                definition.autotune_func)  # fmt: skip
    kinds = [getattr(trt, dtype if kind == GRAPH_DTYPE else kind) for kind in stage.inputs.values()]
    left = iter(sizes)
    full = [[next(left) if size < 0 else size for size in shapes[name]] for name in stage.inputs]
    return ask(plugin, kinds, [list(shapes[name]) for name in stage.inputs], full)


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
        register(rope_stage(), Kernels("bfloat16", ()), lazy=True)
    except ValueError as e:
        found["twice"] = str(e)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
