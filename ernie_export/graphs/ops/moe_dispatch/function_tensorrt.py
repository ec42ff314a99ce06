"""ONNX function bodies of ExpertGroup and MoEDispatch for TensorRT: the chain of plugins that plugin.py declares.

The plugins themselves have no body: TensorRT's parser finds them by domain and name, and would inline a body. So it is
with QuantizedLinear and Float8Linear, which are plugins as they stand.
"""

from collections.abc import Sequence

from ernie_export.graphs.ops.kernel_plugin import KernelPlugin
from ernie_export.graphs.ops.moe_dispatch.plugin import kernel_plugins
from ernie_export.graphs.ops.moe_dispatch.spec import ROUTING, group_inputs
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES


def tensorrt(dtype: str) -> list[str]:
    """Return the bodies of plugins; the same for every dtype."""
    return _bodies(few=False)


def tensorrt_few(dtype: str) -> list[str]:
    """Return the bodies of plugins where an ExpertGroup is for FEW tokens at most; the same for every dtype."""
    return _bodies(few=True)


def _bodies(few: bool) -> list[str]:
    texts = []
    for storage, attributes in STORAGES.items():
        text, vision = (
            ", ".join(f"{expert_group}_{n}" for n in group_inputs(storage)) for expert_group in ("text", "vision")
        )
        named = ", ".join((*ROUTING, *attributes))
        texts += [
            _body(f"{storage}ExpertGroup <{named}> (x, {text})", kernel_plugins(False, storage, few)),
            _body(f"{storage}MoEDispatch <{named}> (x, token_types, {text}, {vision})", kernel_plugins(True, storage)),
        ]
    return texts


def _body(signature: str, plugins: Sequence[KernelPlugin]) -> str:
    calls = "\n    ".join(plugin.call() for plugin in plugins)
    return f"{signature} => (y, experts) {{\n    {calls}\n}}"
