"""TensorRT for RTX builds all four graphs of random architectures; and TensorRT's graphs, their plugins cut out.

It needs no GPU, nor weights: most are inputs, and any numbers do for the rest. 41 architectures (seeds 0 to 40) were
built on 2026-11-28; a dozen are here. Five of the 41 had a vision head size for which no kernel fuses attention, as the
seeds 5, 9 and 16.
"""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ernie_export.common.manifest import GRAPHS
from ernie_export.common.manifest_sections import EngineInfo
from ernie_export.exporter.progress import SILENT
from ernie_export.exporter.targets.engines import (
    EngineBuilder,
    bind_weights,
    build_first,
    choose_binding,
    profile_dimensions,
)
from ernie_export.exporter.targets.trt_rtx import RTX_BODIES, ways_to_build
from ernie_export.exporter.weights.writer import PAGE, plan
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import TENSORRT
from tests.architectures import random_document, read_document
from tests.paths import MINI

UNFUSED = (5, 9, 16)
SEEDS = (0, 3, 4, 6, 7, 8, 12, 20, 31, *UNFUSED)
CAPABILITIES = ["SM80", "SM86", "SM89", "SM120"]


def build_all(
    config: ErnieConfig, folder: Path, max_seq_len: int = 600, bakes_projections: bool = False
) -> dict[str, Any]:
    """Build the engines of every graph for every capability, with constants at random; return their reports."""
    graphs = build_graphs(config, TENSORRT["bf16"])
    weights = all_weights(graphs)
    engines = EngineInfo(
        library="tensorrt_rtx_bindings",
        version="",
        compute_capabilities=(),
        max_batch_size=4,
        max_seq_len=max_seq_len,
        max_image_tokens=64,
        prefill_chunk=512,
        top_k=0,
        weights=choose_binding(weights, bakes_projections),
    )
    layout = plan([weight for weight in weights if weight.name in engines.weights.constants])
    block = (np.random.default_rng(0).standard_normal(PAGE // 2) / 8).astype(ml_dtypes.bfloat16).tobytes()
    (folder / "weights.safetensors").write_bytes(layout.header + block * (layout.nbytes // PAGE))
    bind_weights(graphs, engines)
    reports = {}
    for name, graph in graphs.items():
        graph.save(folder / f"{name}.onnx", RTX_BODIES, "weights.safetensors", layout.offsets)
        request = {
            "library": engines.library,
            "onnx": str(folder / f"{name}.onnx"),
            "engine": str(folder / f"{name}.engine"),
            "dimensions": profile_dimensions(name, engines, config.vision.spatial_merge_size),
            "options": {"capabilities": CAPABILITIES},
        }
        reports[name] = build_first(EngineBuilder(), name, ways_to_build(name, request), SILENT)
    return reports


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_architecture_is_built(tmp_path, seed):
    """Every third with the matrices of linear layers as constants, too."""
    config = read_document(random_document(seed), tmp_path)
    reports = build_all(config, tmp_path, bakes_projections=SEEDS.index(seed) % 3 == 0)
    assert all((tmp_path / f"{name}.engine").stat().st_size > 10_000 for name in GRAPHS)
    layers = {name: report["attention"]["layers"] for name, report in reports.items()}
    text = config.text.num_layers
    assert layers == {"vision": config.vision.depth, "resampler": 0, "decoder": text, "decode": text}
    assert ("because" in reports["vision"]) == (seed in UNFUSED)
    assert not any("because" in reports[name] for name in GRAPHS if name != "vision")


def test_the_released_widths_are_built(tmp_path):
    """Two layers, one dense and one sparse, of ERNIE-4.5-VL-28B-A3B's sizes, and one block of its encoder."""
    document = json.loads((MINI / "config.json").read_text())
    document["text_config"] |= {
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "mlp_layer_types": ["dense", "sparse"],
        "moe_intermediate_size": [1536, 512],
        "moe_k": 6,
        "moe_num_experts": 64,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 103424,
    }
    document["text_config"]["rope_parameters"]["mrope_section"] = [22, 22, 20]
    document["vision_config"] |= {"depth": 1, "hidden_size": 1280, "intermediate_size": 5120, "num_heads": 16}
    reports = build_all(read_document(document, tmp_path), tmp_path, max_seq_len=8192)
    assert not any("because" in report for report in reports.values())
    assert reports["vision"]["attention"] == {"layers": 1, "decomposable": False}
