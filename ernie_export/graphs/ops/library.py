"""All operators of the domain `ernie`, and their bodies as ONNX functions."""

import onnx
import onnx_ir as ir

from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.cached_attention.spec import CACHED_ATTENTION, CAUSAL_MASK
from ernie_export.graphs.ops.moe_dispatch.spec import (
    EXPERT_GROUP,
    FLOAT8_EXPERT_GROUP,
    FLOAT8_MOE_DISPATCH,
    MOE_DISPATCH,
    QUANTIZED_EXPERT_GROUP,
    QUANTIZED_MOE_DISPATCH,
)
from ernie_export.graphs.ops.mrope.spec import MROPE, ROTARY_TABLES
from ernie_export.graphs.ops.quantized_linear.spec import FLOAT8_LINEAR, QUANTIZED_LINEAR
from ernie_export.graphs.ops.residual_norm.spec import ADD_RMS_NORM
from ernie_export.graphs.ops.spec import DOMAIN, OPSET, OpSpec
from ernie_export.graphs.ops.vision_attention.spec import VISION_ATTENTION

SPECS: dict[str, OpSpec] = {
    spec.name: spec
    for spec in (
        ADD_RMS_NORM,
        EXPERT_GROUP,
        MOE_DISPATCH,
        QUANTIZED_EXPERT_GROUP,
        QUANTIZED_MOE_DISPATCH,
        FLOAT8_EXPERT_GROUP,
        FLOAT8_MOE_DISPATCH,
        QUANTIZED_LINEAR,
        FLOAT8_LINEAR,
        MROPE,
        ROTARY_TABLES,
        CACHED_ATTENTION,
        CAUSAL_MASK,
        VISION_ATTENTION,
    )
}
OPSETS = {"": OPSET, DOMAIN: 1, "com.microsoft": 1}


def functions(bodies: OpBodies, dtype: str) -> list[ir.Function]:
    """Return the functions of `bodies` for graphs of `dtype` (float, float16, bfloat16)."""
    imports = ", ".join(f'"{domain}": {version}' for domain, version in OPSETS.items())
    header = f'<opset_import: [{imports}], domain: "{DOMAIN}">\n'
    return [
        ir.serde.deserialize_function(onnx.parser.parse_function(header + text.strip())) for text in bodies.texts(dtype)
    ]
