"""All operators of the domain `ernie`, and their bodies for a lowering as ONNX functions."""

import onnx
import onnx_ir as ir

from ernie_export.graphs.ops.cached_attention import function as cached_attention
from ernie_export.graphs.ops.cached_attention.spec import CACHED_ATTENTION
from ernie_export.graphs.ops.moe_dispatch import function as moe_dispatch
from ernie_export.graphs.ops.moe_dispatch import function_rtx as moe_dispatch_rtx
from ernie_export.graphs.ops.moe_dispatch import function_tensorrt as moe_dispatch_tensorrt
from ernie_export.graphs.ops.moe_dispatch.spec import (
    EXPERT_BANK,
    FLOAT8_EXPERT_BANK,
    FLOAT8_MOE_DISPATCH,
    MOE_DISPATCH,
    QUANTIZED_EXPERT_BANK,
    QUANTIZED_MOE_DISPATCH,
)
from ernie_export.graphs.ops.mrope import function as mrope
from ernie_export.graphs.ops.mrope import function_rtx as mrope_rtx
from ernie_export.graphs.ops.mrope import function_tensorrt as mrope_tensorrt
from ernie_export.graphs.ops.mrope.spec import MROPE, ROTARY_TABLES
from ernie_export.graphs.ops.quantized_linear import function as quantized_linear
from ernie_export.graphs.ops.quantized_linear.spec import FLOAT8_LINEAR, QUANTIZED_LINEAR
from ernie_export.graphs.ops.spec import DOMAIN, OPSET, OpSpec
from ernie_export.graphs.ops.vision_attention import function as vision_attention
from ernie_export.graphs.ops.vision_attention.spec import VISION_ATTENTION

SPECS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        EXPERT_BANK,
        MOE_DISPATCH,
        QUANTIZED_EXPERT_BANK,
        QUANTIZED_MOE_DISPATCH,
        FLOAT8_EXPERT_BANK,
        FLOAT8_MOE_DISPATCH,
        QUANTIZED_LINEAR,
        FLOAT8_LINEAR,
        MROPE,
        ROTARY_TABLES,
        CACHED_ATTENTION,
        VISION_ATTENTION,
    )
}
OPSETS = {"": OPSET, DOMAIN: 1, "com.microsoft": 1}
ROOMS = (cached_attention, moe_dispatch, mrope, quantized_linear, vision_attention)
# Lowerings with bodies of their own for some operators.
OWN_ROOMS = {
    "rtx": (cached_attention, moe_dispatch_rtx, mrope_rtx, vision_attention),
    "tensorrt": (cached_attention, moe_dispatch_tensorrt, mrope_tensorrt, vision_attention),
}


def functions(lowering: str, dtype: str) -> list[ir.Function]:
    """Bodies of every operator for `lowering` (portable, onnxruntime, rtx, tensorrt) and the graph's `dtype`."""
    imports = ", ".join(f'"{domain}": {version}' for domain, version in OPSETS.items())
    header = f'<opset_import: [{imports}], domain: "{DOMAIN}">\n'
    rooms = OWN_ROOMS.get(lowering, ROOMS)
    texts = [text for room in rooms for text in room.bodies(lowering, dtype)]
    return [ir.serde.deserialize_function(onnx.parser.parse_function(header + text.strip())) for text in texts]
