"""Compare the numbers that stand in a bundle's graphs with the checkpoint's configuration.

An epsilon or a frequency that is slightly wrong moves inner values by less than a lower precision rounds, and a graph
that is not computed on this machine moves none; both are plain to read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ernie_export.common.manifest import Manifest
from ernie_export.graphs.config import ErnieConfig, TextConfig

ROTATIONS = ("RotaryTables", "MultimodalRope")


def compare_constants(bundle: Path, manifest: Manifest, checkpoint: Path) -> list[str]:
    """Return a line for each attribute of a norm, a rotation or an attention that is not the configuration's.

    Compiled engines are not read; the graphs that they were built from are, where the bundle has them.
    """
    config = ErnieConfig.from_hf(checkpoint)
    graphs = {Path(name).with_suffix(".onnx").name for name in manifest.graphs.values()}
    lines = []
    for name in sorted(graphs):
        if (bundle / name).is_file():
            nodes = onnx.load(bundle / name, load_external_data=False).graph.node
            lines += [f"{name}: {line}" for node in nodes for line in _differences(node, config)]
    return lines


def _differences(node: onnx.NodeProto, config: ErnieConfig) -> Iterator[str]:
    expected = expected_attributes(node, config)
    for attribute in node.attribute:
        if attribute.name not in expected:
            continue
        found = onnx.helper.get_attribute_value(attribute)
        if not np.allclose(found, expected[attribute.name], rtol=1e-6, atol=0):
            yield f"{node.name}: {attribute.name}: expected {expected[attribute.name]}, found {found}"


def expected_attributes(node: onnx.NodeProto, config: ErnieConfig) -> dict[str, Any]:
    """Return the values that attributes of a node must have, by the configuration and the node's path."""
    text = config.text
    if node.op_type.endswith("Normalization"):
        # The class gives the resampler's layer norms the encoder's epsilon, and its last norm the decoder's.
        vision = node.op_type == "LayerNormalization"
        return {"epsilon": config.vision.norm_eps if vision else text.rms_norm_eps}
    if node.op_type in ROTATIONS:
        return {
            "inv_freq": frequencies(text),
            "axes": axes(text),
            "scale": text.head_dim**-0.5,
            "num_heads": text.num_heads,
            "kv_num_heads": text.num_kv_heads,
        }
    if node.op_type.endswith(("MoEDispatch", "ExpertGroup")):
        return {"k": text.experts_per_token, "norm_min": text.norm_min}
    if node.op_type == "CachedAttention":
        return {"num_heads": text.num_heads, "kv_num_heads": text.num_kv_heads}
    if node.name.startswith("/vision_model/") and node.op_type in ("VisionAttention", "RotaryEmbedding"):
        return {"num_heads": config.vision.num_heads, "interleaved": 0}
    return {}


def frequencies(text: TextConfig) -> list[float]:
    """Return the frequency of each pair of a head: theta^(-2i / head_dim) of pair i (class, `inv_freq`)."""
    return [float(text.rope_theta ** (-2 * i / text.head_dim)) for i in range(text.head_dim // 2)]


def axes(text: TextConfig) -> list[int]:
    """Return the axis of each pair, 0 for time, 1 for height, 2 for width: height and width in turn, then time."""
    height, _, time = text.mrope_section
    return [1, 2] * height + [0] * time
