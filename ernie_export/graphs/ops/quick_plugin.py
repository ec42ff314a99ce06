"""A kernel plugin as a TensorRT quick plugin: shape function, formats and tactics, and the kernel as PTX (AOT).

The kernels are compiled when a bundle is made: the machine that builds engines has no use for Triton.

An attribute is declared as an array of one number. TensorRT's parser passes arrays, and up to 11.1 its Python sources
make a declared `int` of one by int(array), which NumPy refuses from version 2.4 on.
"""

import inspect
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ernie_export.graphs.ops.kernel_plugin import GRAPH_DTYPE, KernelPlugin
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.spec import DOMAIN

FORMAT_NAME = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16", "int32": "INT32", "int64": "INT64"}
ATTRIBUTE_TYPE = {int: npt.NDArray[np.int32], float: npt.NDArray[np.float32]}


def register(plugin: KernelPlugin, kernels: Kernels, on_error: Callable[[str], None] | None = None) -> None:
    """Register `ernie::NAME` with TensorRT; engines built afterwards hold its kernel, one of `kernels`.

    TensorRT raises ValueError if the name is registered already. `on_error` is called with what goes wrong when
    TensorRT asks the plugin, which then only fails.
    """
    import tensorrt as trt
    import tensorrt.plugin as trtp

    names = tuple(plugin.inputs)

    def shapes(*descs: Any, **attributes: Any) -> Any:
        by_name = dict(zip(names, descs, strict=True))
        exprs = {name: desc.shape_expr for name, desc in by_name.items()}
        numbers = {name: array.item() for name, array in attributes.items()}
        return tuple(
            trtp.from_shape_expr(output.shape, _dtype(trt, plugin, by_name, output.dtype))
            for output in plugin.outputs(exprs, numbers)
        )

    def tactics(*arguments: Any) -> Any:
        inputs, attributes = _split(plugin, arguments)
        kinds = [*plugin.inputs.values(), *(o.dtype for o in plugin.outputs(_static(inputs), attributes))]
        formats = ", ".join(FORMAT_NAME[kernels.dtype if kind == GRAPH_DTYPE else kind] for kind in kinds)
        return [trtp.AutoTuneCombination(formats, "LINEAR", list(kernels.of(plugin, _static(inputs), attributes)))]

    def kernel(*arguments: Any) -> Any:
        inputs, attributes = _split(plugin, arguments[:-1])
        choices = kernels.of(plugin, _static(inputs), attributes)
        compiled = choices[arguments[-1] or next(iter(choices))]  # 0 is TensorRT's default tactic
        size = plugin.size({name: desc.shape_expr for name, desc in inputs.items()}, attributes)
        launch = trtp.KernelLaunchParams(*plugin.grid(size, compiled.constants))
        launch.block_x = compiled.threads
        launch.shared_mem = compiled.shared
        scalars = (trtp.SymInt32(size),) if compiled.takes_size else ()
        return compiled.name, compiled.ptx, launch, trtp.SymIntExprs.from_tuple(scalars)

    qualified_name = f"{DOMAIN}::{plugin.name}"
    desc = trtp.TensorDesc
    outputs = types.GenericAlias(tuple, (desc,) * len(plugin.output_names()))
    result = tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]
    shapes, tactics, kernel = (_reported(function, plugin, on_error) for function in (shapes, tactics, kernel))
    trtp.register(qualified_name)(_signed(shapes, plugin, desc, (), outputs))
    trtp.autotune(qualified_name)(_signed(tactics, plugin, desc, ("outputs",), list[trtp.AutoTuneCombination]))
    trtp.aot_impl(qualified_name)(_signed(kernel, plugin, desc, ("outputs", "tactic"), result))


def _reported(
    function: Callable[..., Any], plugin: KernelPlugin, on_error: Callable[[str], None] | None
) -> Callable[..., Any]:
    """Return `function`, whose exceptions `on_error` hears of before they go on to TensorRT."""

    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except Exception as e:
            if on_error is not None:
                on_error(f"plugin {plugin.name}: {type(e).__name__}: {e}")
            raise

    return call


def _signed(
    function: Callable[..., Any], plugin: KernelPlugin, desc: type, more: tuple[str, ...], result: Any
) -> Callable[..., Any]:
    """Give `function` the signature that TensorRT reads the plugin's inputs and attributes from."""
    named = [(name, desc) for name in plugin.inputs]
    named += [(name, ATTRIBUTE_TYPE[number]) for name, number in plugin.attributes.items()]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in named]
    parameters += [inspect.Parameter(name, kind) for name in more]
    function.__signature__ = inspect.Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]
    return function


def _split(plugin: KernelPlugin, arguments: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return inputs and attributes by name from TensorRT's positional arguments, which end with the outputs."""
    count = len(plugin.inputs)
    inputs = dict(zip(plugin.inputs, arguments[:count], strict=True))
    numbers = (array.item() for array in arguments[count:-1])
    return inputs, dict(zip(plugin.attributes, numbers, strict=True))


def _static(inputs: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return shapes as ints, -1 where a size varies."""
    return {name: tuple(desc.shape) for name, desc in inputs.items()}


def _dtype(trt: Any, plugin: KernelPlugin, inputs: dict[str, Any], kind: str) -> Any:
    """Return TensorRT's dtype of an input or output declared as `kind`."""
    if kind != GRAPH_DTYPE:
        return getattr(trt, kind)
    return next(inputs[name].dtype for name, declared in plugin.inputs.items() if declared == GRAPH_DTYPE)
