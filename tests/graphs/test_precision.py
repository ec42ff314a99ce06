"""Every precision's graphs: valid, in their dtype, and quantised in the right places and groups."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.export import export
from ernie_export.exporter.targets import TARGETS
from ernie_export.exporter.weights import writer as weights
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import EXACT, ONNX, TENSORRT, Precision
from ernie_export.runtime import load
from tests.paths import MINI
from tests.progress import QUIET

# What is never quantised, by marks in the name.
KINDS = {"onnx": ONNX, "trt": TENSORRT}
HIGH = "embed_tokens.|norm|.bias|.mlp.gate.|.moe_statics.|patch_embed.|vision_model.ln.|linear.3.|_scales".split("|")


@pytest.fixture(scope="module", params=[(kind, name) for kind, named in KINDS.items() for name in named], ids="-".join)
def precision(request):
    kind, name = request.param
    return KINDS[kind][name]


@pytest.fixture(scope="module")
def graphs(precision) -> dict[str, GraphBuilder]:
    return build_graphs(ErnieConfig.from_hf(MINI), precision)


@pytest.mark.parametrize("target", ["onnx", "onnx-portable"])
def test_the_checker_takes_every_graph(graphs, tmp_path, target):
    layout = weights.plan(all_weights(graphs))
    (tmp_path / "weights").write_bytes(bytes(layout.nbytes))
    for name, graph in graphs.items():
        path = tmp_path / f"{name}.onnx"
        graph.save(path, TARGETS[target].op_bodies, "weights", layout.offsets)
        # Shapes and types are followed through standard operators alone.
        onnx.checker.check_model(path, full_check=target == "onnx-portable")
        if target == "onnx-portable":
            model = onnx.load(path, load_external_data=False)
            assert {node.domain for function in model.functions for node in function.node} <= {"", "ernie"}


def test_weights_are_stored_in_the_precision(graphs, precision):
    everything = {n: w for g in graphs.values() for n, w in g.weights.items()}
    quantised = {n for n, w in everything.items() if w.quantization is not None}
    for name, weight in everything.items():
        part = "vision" if "_model." in name else "head" if name.startswith("lm_head.") else "decoder"
        bits = getattr(precision, part)
        if bits is None or any(mark in name for mark in HIGH):
            assert name not in quantised
            router = ".mlp.gate." in name or ".moe_statics." in name
            assert weight.dtype == (np.float32 if router else precision.dtype.numpy()), name
        else:
            assert weight.quantization is not None and weight.quantization.bits == bits, name
            assert weight.quantization.float8 == precision.float8
            assert f"{name}_scales" in everything
    assert bool(quantised) == (precision.decoder is not None)


def test_inputs_and_cache_are_in_the_precisions_dtype(graphs, precision):
    for graph in graphs.values():
        floats = {v.name: v.dtype for v in graph.graph.inputs if v.dtype.is_floating_point()}
        assert {d for name, d in floats.items() if name != "pixel_values"} <= {precision.dtype}
    (logits,) = (v for v in graphs["decode"].graph.outputs if v.name == "logits")
    assert logits.dtype == ir.DataType.FLOAT


def config_with(folder: Path, **text: object) -> ErnieConfig:
    config = json.loads((MINI / "config.json").read_text())
    config["text_config"] |= text
    (folder / "config.json").write_text(json.dumps(config))
    return ErnieConfig.from_hf(folder)


def test_groups_are_the_largest_that_divide(tmp_path):
    graphs = build_graphs(config_with(tmp_path, moe_intermediate_size=[256, 128], intermediate_size=208), ONNX["int4"])
    groups = {name: w.quantization.group for name, w in graphs["decoder"].weights.items() if w.quantization}
    assert groups["model.layers.1.mlp.experts.text.down_proj"] == 128
    assert groups["model.layers.0.mlp.down_proj.weight"] == 16
    assert groups["lm_head.weight"] == 128
    mini = build_graphs(ErnieConfig.from_hf(MINI), ONNX["int4"])["decoder"].weights
    quantization = mini["model.layers.1.mlp.experts.vision.gate_up_proj"].quantization
    assert quantization is not None and quantization.group == 32


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ({"moe_intermediate_size": [72, 64]}, "model.layers.1.mlp: .* 16 divides.* found 128 and 72 and 64"),
        ({"intermediate_size": 200}, r"model.layers.0.mlp.down_proj.weight: .* found 200"),
    ],
)
def test_widths_without_a_group_are_refused_by_name(tmp_path, text, named):
    config = config_with(tmp_path, **text)
    assert build_graphs(config, ONNX["fp32"])
    with pytest.raises(UserError, match=named):
        build_graphs(config, ONNX["int8"])


# What ONNX Runtime runs on a CPU: TensorRT's fp8 computes in bfloat16, which it does not.
FP8 = Precision("fp8", "float32", EXACT, decoder=8, head=8, vision=8, float8=True)


def test_float8_weights_are_numbers_of_their_own_operators():
    for graph in build_graphs(ErnieConfig.from_hf(MINI), FP8).values():
        called = {node.op_type for node in graph.graph if node.domain == "ernie"}
        assert not {name for name in called if name.startswith("Quantized")} and "Float8Linear" in called
        for weight in graph.weights.values():
            if weight.quantization is not None:
                assert weight.quantization.float8 and weight.dtype == ml_dtypes.float8_e4m3fn


def test_a_float8_bundle_answers(tmp_path):
    """Quantiser, data file, graphs and their operators' bodies together, in ONNX Runtime."""
    export(MINI, tmp_path / "bundle", "onnx-portable", FP8, QUIET)
    header = read_header(tmp_path / "bundle" / "weights.safetensors")
    assert header["lm_head.weight"].dtype == "F8_E4M3"
    with load(tmp_path / "bundle", threads=1) as model:
        question = [
            {"type": "image", "path": str(MINI.parent / "media" / "shapes.png")},
            {"type": "text", "text": "What is in the picture?"},
        ]
        answers = [[{"role": "user", "content": text}] for text in (question, "How many sides has a triangle?")]
        found = [result.text for result in model.generate(answers)]
    assert found == ["blue circle, red triangle, yellow square", "three"]


@pytest.mark.parametrize("name", ["int8", "int4", "fp8"])
def test_codes_are_bound_as_words(name):
    """As TensorRT's plugins take them: the same bytes, whatever the width."""
    graph = build_graphs(ErnieConfig.from_hf(MINI), TENSORRT[name])["decode"]
    graph.bind_at_load()
    bound = {value.name: value for value in graph.graph.inputs}
    for key, weight in graph.weights.items():
        value = bound[key]
        words = weight.quantization is not None
        assert value.dtype == (ir.DataType.INT32 if words else ir.DataType.from_numpy(weight.dtype))
        assert value.shape is not None and value.dtype is not None
        assert int(np.prod(value.shape.numpy())) * value.dtype.itemsize == weight.nbytes
    assert any(weight.quantization for weight in graph.weights.values())
