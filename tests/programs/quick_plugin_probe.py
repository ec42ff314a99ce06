"""Drive plugins' quick plugins through TensorRT's own Python sources, as a build would; prints what came out as JSON.

Run by test_quick_plugins.py with tools/tensorrt_api.py's folder on the path. Without TensorRT's libraries there is no
builder: its expressions are integers, and nothing is built.
"""

import dataclasses
import json
import sys

import numpy as np
import tensorrt as trt
import tensorrt.plugin as trtp  # noqa: F401
from compile_kernels import kernel_specs  # tools/
from tensorrt_bindings.plugin import _lib, _plugin_class

from ernie_export.graphs.ops.kernel_plugin import GRAPH_DTYPE
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.mrope.plugin import kernel_plugin as rope_plugin
from ernie_export.graphs.ops.ptx import compile_kernel, fits
from ernie_export.graphs.ops.quick_plugin import register
from tests.fakes.tensorrt_builder.plugins import ask, use_integers

use_integers()
_lib._register_plugin_creator = lambda *_: None  # the native registry, which is not there


def build(kernel_plugin, shapes, attributes, dtype, arch, *ways):
    """A kernel plugin as the builder would ask of it, once each way: sizes that replace each -1 in order."""
    numbers = range(1, len(kernel_plugin.tactics) + 1)
    compiled = [compile_kernel(kernel_plugin, shapes, attributes, number, dtype, arch) for number in numbers]
    kernels = Kernels(dtype, tuple(kernel for kernel in compiled if fits(kernel, arch)))
    register(kernel_plugin, kernels)
    definition = _lib.QDP_REGISTRY[f"ernie::{kernel_plugin.name}"]
    plugin = _plugin_class._TemplateAOTPlugin(kernel_plugin.name, "ernie", definition.num_outputs)
    functions = definition.aot_impl_attr_names, definition.aot_impl_func
    arrays = {name: np.array([value]) for name, value in attributes.items()}
    plugin.init(definition.register_func, arrays, *functions, definition.autotune_attr_names,
                definition.autotune_func)  # fmt: skip
    kinds = [getattr(trt, dtype if kind == GRAPH_DTYPE else kind) for kind in kernel_plugin.inputs.values()]
    found = []
    for sizes in ways:
        left = iter(sizes)
        full = [[next(left) if size < 0 else size for size in shapes[name]] for name in kernel_plugin.inputs]
        found.append(ask(plugin, kinds, [list(shapes[name]) for name in kernel_plugin.inputs], full))
    return found


def main() -> None:
    found = {}
    sizes = {"Rope": [2, 40, 2, 40, 2, 40], "Combine": [480], "Down": [480, 480], "GateUp": [80, 480, 80]}
    sizes["DecodeMerge"] = [80] * 6
    sizes["FewDown"] = [80, 480]
    sizes["ExpertsDown"] = [480, 80]
    sizes["DownOrCombine"] = [80, 480, 480]
    dispatch = ("Logits", "Route", "Sort", "GateUp", "Down", "Combine")
    only = {
        "Rope",
        "DecodeAttend",
        "DecodeMerge",
        "ExpertsLogits",
        "ExpertsGateUp",
        "ExpertsDown",
        "FewGateUp",
        "FewDown",
        "GateUpOrRoute",
        "DownOrCombine",
        *(f"Dispatch{name}" for name in dispatch),
    }
    for kernel_plugin, shapes, attributes in kernel_specs():
        if kernel_plugin.name in only:
            # GateUp with its first tactic, and its largest.
            tactics = kernel_plugin.tactics
            kept = (tactics[0], tactics[6]) if kernel_plugin.name == "DispatchGateUp" else tactics[:1]
            own = sizes.get(kernel_plugin.name.removeprefix("Dispatch"), [80] * 4)
            few = [size * 2 // 80 for size in own]
            kernel_plugin = dataclasses.replace(kernel_plugin, tactics=kept, offered=())
            asked = build(kernel_plugin, shapes, attributes, "bfloat16", "sm89", own, few)
            found[kernel_plugin.name], found[f"{kernel_plugin.name} few"] = asked
    stored = {"DispatchGateUp": [80, 480, 80], "ExpertsDown": [480, 80], "Linear": [80]}
    for weights, prefix in (("int4", "Quantized"), ("fp8", "Float8")):
        for kernel_plugin, shapes, attributes in kernel_specs(weights):
            if (given := stored.get(kernel_plugin.name.removeprefix(prefix))) is not None:
                kernel_plugin = dataclasses.replace(kernel_plugin, tactics=kernel_plugin.tactics[:1], offered=())
                (found[kernel_plugin.name],) = build(kernel_plugin, shapes, attributes, "bfloat16", "sm89", given)
    try:
        register(rope_plugin(), Kernels("bfloat16", ()))
    except ValueError as e:
        found["twice"] = str(e)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
