"""ONNX function bodies of ExpertBank and MoEDispatch for TensorRT: the chain of plugins that plugin.py declares.

The plugins themselves have no body: TensorRT's parser finds them by domain and name, and would inline a body.
"""

from ernie_export.graphs.ops.moe_dispatch.plugin import stages
from ernie_export.graphs.ops.moe_dispatch.spec import BANK


def bodies(lowering: str, dtype: str) -> list[str]:
    """The functions' texts; the same for every dtype."""
    text, vision = (", ".join(f"{bank}_{name}" for name in BANK) for bank in ("text", "vision"))
    return [
        _body(f"ExpertBank <k, norm_min> (x, {text})", vision=False),
        _body(f"MoEDispatch <k, norm_min> (x, token_types, {text}, {vision})", vision=True),
    ]


def _body(signature: str, vision: bool) -> str:
    calls = "\n    ".join(stage.call() for stage in stages(vision))
    return f"{signature} => (y, experts) {{\n    {calls}\n}}"
