"""The vision encoder over frames of one size; images of other sizes go in other calls.

F frames (images or a clip's frames), P patches a frame in 2×2-block-major order, C hidden size.

| input | shape | dtype | meaning |
| --- | --- | --- | --- |
| pixel_values | (F, P, channels·14·14) | float32 | normalised, flattened (channel, row, column) |
| coordinates | (P, 2) | int64 | row and column of each patch |
| output hidden | (F, P, C) | float | |

Attention never crosses frames, so a batch of frames needs no mask, and one call for each size needs no padding.
"""

import numpy as np
import onnx_ir as ir

from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import VisionConfig
from ernie_export.graphs.layers.linear import dense, layer_norm, linear
from ernie_export.graphs.ops.mrope.reference import attention_scale, inverse_frequencies
from ernie_export.graphs.precision import Precision

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT


def build(vision: VisionConfig, precision: Precision) -> GraphBuilder:
    """Build the encoder graph in `precision`."""
    dtype = precision.dtype
    pixels = vision.in_channels * vision.patch_size**2
    g = GraphBuilder(
        "vision",
        dtype,
        [("pixel_values", FLOAT, ("frames", "patches", pixels)), ("coordinates", INT64, ("patches", 2))],
        precision.vision,
        precision.float8,
    )
    with g.scope("vision_model"):
        shape = g.op("Shape", g.inputs["pixel_values"], start=0, end=2)
        # Widths in full, not -1: TensorRT's RotaryEmbedding wants to know that heads divide them.
        width = g.constant("width", np.array([vision.hidden_size]))
        qkv_width = g.constant("qkv_width", np.array([3 * vision.hidden_size]))
        hidden_shape = g.op("Concat", shape, width, axis=0, name="hidden_shape")
        qkv_shape = g.op("Concat", shape, qkv_width, axis=0, name="qkv_shape")
        x = g.op("Reshape", g.inputs["pixel_values"], g.constant("flat", np.array([-1, pixels])), name="patches")
        if dtype != FLOAT:
            x = g.op("Cast", x, to=dtype)
        with g.scope("patch_embed"):
            x = dense(g, x, "model.vision_model.patch_embed.proj", vision.hidden_size, pixels, bias=False)
        tables = rotary_tables(g, vision, shape)
        for index in range(vision.depth):
            with g.scope(f"blocks.{index}"):
                x = block(g, vision, index, x, tables, qkv_shape)
        x = layer_norm(g, x, "model.vision_model.ln", vision.hidden_size, vision.norm_eps)
        hidden = g.op("Reshape", x, hidden_shape, name="hidden_by_frame")
    g.output(hidden, "hidden", dtype, ("frames", "patches", vision.hidden_size))
    return g


def rotary_tables(g: GraphBuilder, vision: VisionConfig, shape: ir.Value) -> dict[str, tuple[ir.Value, ir.Value]]:
    """Return cos and sin for q and for k, (F, P, D/2) each: a quarter of the head by row, a quarter by column.

    Those for q carry the scale of attention, 1/sqrt(D), in float32 (see the operator MultimodalRope). The frequencies
    are those of a head half as wide (class Ernie4_5_VLMoeVisionRotaryEmbedding in transformers).
    """
    with g.scope("rotary"):
        inv_freq = g.constant("inv_freq", inverse_frequencies(vision.head_dim // 2, vision.rope_theta))
        places = g.op("Cast", g.inputs["coordinates"], to=FLOAT, name="coordinates")
        by_axis = g.op("Unsqueeze", places, g.constant("last", np.array([-1])), name="by_axis")
        angles = g.op("Mul", by_axis, inv_freq, name="angles_by_axis")
        flat = g.op("Flatten", angles, axis=1)
        table = g.op("Concat", shape, g.constant("rest", np.array([vision.head_dim // 2])), axis=0, name="table_shape")
        cos, sin = (g.op(function, flat) for function in ("Cos", "Sin"))
        scale = g.constant("scale", np.array(attention_scale(vision.head_dim)))
        q_cos, q_sin = (g.op("Mul", part, scale, name=f"q_{name}") for part, name in ((cos, "cos"), (sin, "sin")))
        return {
            "q": (g.op("Expand", q_cos, table, name="q_cos_table"), g.op("Expand", q_sin, table, name="q_sin_table")),
            "k": (g.op("Expand", cos, table, name="k_cos_table"), g.op("Expand", sin, table, name="k_sin_table")),
        }


def block(
    g: GraphBuilder,
    vision: VisionConfig,
    index: int,
    x: ir.Value,
    tables: dict[str, tuple[ir.Value, ir.Value]],
    qkv_shape: ir.Value,
) -> ir.Value:
    """Add one pre-norm block over x (F·P, C); `qkv_shape` holds [F, P, 3C]."""
    prefix = f"model.vision_model.blocks.{index}"
    width = vision.hidden_size
    normed = layer_norm(g, x, f"{prefix}.norm1", width, vision.norm_eps)
    with g.scope("attn"):
        qkv = linear(g, normed, f"{prefix}.attn.qkv", 3 * width, width, bias=True)
        by_frame = g.op("Reshape", qkv, qkv_shape, name="qkv_by_frame")
        q, k, v = g.op_outputs("Split", by_frame, axis=2, num_outputs=3, outputs=3)
        q, k = (rotate(g, vision, part, *tables[name], name) for part, name in ((q, "q"), (k, "k")))
        (y,) = g.custom("VisionAttention", q, k, v, num_heads=vision.num_heads)
        y = g.op("Reshape", y, g.constant("flat", np.array([-1, width])), name="y_flat")
        x = g.op("Add", x, linear(g, y, f"{prefix}.attn.proj", width, width, bias=True))
    normed = layer_norm(g, x, f"{prefix}.norm2", width, vision.norm_eps)
    with g.scope("mlp"):
        wide = linear(g, normed, f"{prefix}.mlp.fc1", vision.intermediate_size, width, bias=True)
        # quick_gelu: x · sigmoid(1.702 x)
        scaled = g.op("Mul", wide, g.constant("alpha", np.array(1.702, g.dtype.numpy())), name="scaled")
        gelu = g.op("Mul", wide, g.op("Sigmoid", scaled), name="quick_gelu")
        return g.op("Add", x, linear(g, gelu, f"{prefix}.mlp.fc2", width, vision.intermediate_size, bias=True))


def rotate(g: GraphBuilder, vision: VisionConfig, x: ir.Value, cos: ir.Value, sin: ir.Value, name: str) -> ir.Value:
    """Rotate halves of each head in float32, as the reference does; x is (F, P, C)."""
    with g.scope(name):
        if g.dtype != FLOAT:
            x = g.op("Cast", x, to=FLOAT, name="up")
        x = g.op("RotaryEmbedding", x, cos, sin, num_heads=vision.num_heads, interleaved=0)
        return x if g.dtype == FLOAT else g.op("Cast", x, to=g.dtype, name="down")
