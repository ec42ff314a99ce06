"""The resampler: merges 2×2 patches, then two frames, into one feature of the decoder's width.

F frames and P patches as they leave the vision encoder, C its hidden size, G pairs of frames, H decoder width.

| input | shape | dtype | meaning |
| --- | --- | --- | --- |
| hidden | (F, P, C) | float | patches in 2×2-block-major order |
| first, second | (G,) | int64 | frames of each pair; an image is paired with itself, a clip's go two by two |
| output features | (G, P/4, H) | float | |
"""

import numpy as np
import onnx_ir as ir

from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.layers.linear import layer_norm, linear, rms_norm
from ernie_export.graphs.precision import Precision

INT64 = ir.DataType.INT64


def build(config: ErnieConfig, precision: Precision) -> GraphBuilder:
    """Build the resampler graph in `precision`."""
    dtype = precision.dtype
    vision = config.vision
    hidden = config.text.hidden_size
    spatial = vision.hidden_size * vision.spatial_merge_size**2
    temporal = spatial * vision.temporal_merge_size
    g = GraphBuilder(
        "resampler",
        dtype,
        [
            ("hidden", dtype, ("frames", "patches", vision.hidden_size)),
            ("first", INT64, ("pairs",)),
            ("second", INT64, ("pairs",)),
        ],
        precision.vision,
        precision.float8,
    )
    with g.scope("resampler_model"):
        frames = g.op("Shape", g.inputs["hidden"], start=0, end=1, name="frame_count")
        x = g.op("Reshape", g.inputs["hidden"], g.constant("blocks", np.array([-1, spatial])), name="by_block")
        x = mlp(g, "spatial_linear", x, spatial, spatial, vision.norm_eps)
        by_frame = g.op("Concat", frames, g.constant("rest", np.array([-1, spatial])), axis=0, name="frame_shape")
        x = g.op("Reshape", x, by_frame, name="by_frame")
        pair = [g.op("Gather", x, g.inputs[name], axis=0, name=name) for name in ("first", "second")]
        x = g.op("Concat", *pair, axis=2, name="pairs")
        x = g.op("Reshape", x, g.constant("wide", np.array([-1, temporal])), name="pairs_flat")
        x = mlp(g, "temporal_linear", x, temporal, spatial, vision.norm_eps)
        x = linear(g, x, "model.resampler_model.mlp", hidden, spatial, bias=True)
        x = rms_norm(g, x, "model.resampler_model.after_norm", hidden, config.text.rms_norm_eps)
        pairs = g.op("Shape", g.inputs["first"], name="pair_count")
        shape = g.op("Concat", pairs, g.constant("features", np.array([-1, hidden])), axis=0, name="feature_shape")
        features = g.op("Reshape", x, shape, name="features")
    g.output(features, "features", dtype, ("pairs", "features", hidden))
    return g


def mlp(g: GraphBuilder, name: str, x: ir.Value, inputs: int, outputs: int, eps: float) -> ir.Value:
    """Apply linear, exact GELU, linear, LayerNorm: layers .0, .2 and .3 of the checkpoint's sequence."""
    prefix = f"model.resampler_model.{name}"
    with g.scope(name):
        x = linear(g, x, f"{prefix}.0", outputs, inputs, bias=True)
        x = g.op("Gelu", x, approximate="none")
        x = linear(g, x, f"{prefix}.2", outputs, outputs, bias=True)
        return layer_norm(g, x, f"{prefix}.3", outputs, eps)
