"""ernie-export --target trt with quantized weights: every plugin has its kernel, engines are built, numbers are right.

What this can't show: that TensorRT takes the graphs, builds them, and runs them.
"""

import json
import shutil
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.build_engines import resume
from ernie_export.exporter.export import export
from ernie_export.exporter.targets.onnx import ONNX_PORTABLE
from ernie_export.exporter.targets.target import DATA_FILE, ExportJob
from ernie_export.exporter.targets.tensorrt import (
    DECODE_BODIES,
    DECODE_FEW_BODIES,
    TENSORRT_BODIES,
    TensorRT,
    TensorRTBuildOptions,
    plugin_sizes,
)
from ernie_export.graphs.build import build_graphs
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.ptx import TARGETS
from ernie_export.graphs.precision import TENSORRT
from tests.fakes import plugin_bodies
from tests.manifests import tensorrt_info
from tests.paths import MINI
from tests.progress import QUIET

STORAGE = {"int4": "Quantized", "int8": "Quantized", "fp8": "Float8"}
LIMITS = TensorRTBuildOptions(max_seq_len=600, max_image_tokens=64)


def mini_job(precision: str) -> ExportJob:
    config = ErnieConfig.from_hf(MINI)
    how = TENSORRT[precision]
    graphs = build_graphs(config, how)
    return ExportJob(config, how, LIMITS, graphs, offsets={}, processors=MINI, checkpoint=Checkpoint.open(MINI))


def test_what_is_multiplied_by_plugins_and_what_is_not(coded):
    folder, manifest, _ = coded
    prefix = STORAGE[manifest.precision]
    called = {}
    for graph in GRAPHS:
        nodes = onnx.load(folder / f"{graph}.onnx", load_external_data=False).graph.node
        called[graph] = {node.op_type for node in nodes if node.domain}
        gemms = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")]
        assert bool(gemms) == (graph in ("vision", "resampler")), gemms
    assert called["vision"] == called["resampler"] == set()
    assert {f"{prefix}Linear", f"{prefix}DispatchGateUp", f"{prefix}DispatchDown"} <= called["decoder"]
    assert {f"{prefix}Linear", f"{prefix}FewGateUp", f"{prefix}FewDown"} <= called["decode"]
    assert not (called["decoder"] | called["decode"]) & {
        "DispatchGateUp",
        "DispatchDown",
        "FewGateUp",
        "FewDown",
    }


@pytest.mark.parametrize(("rows", "few"), [(1, True), (2, True), (3, False)])
def test_decode_steps_of_up_to_two_sequences_have_kernels_of_their_own(rows, few):
    job = replace(mini_job("int4"), options=replace(LIMITS, max_batch_size=rows))
    bodies = TensorRT().bodies(job)
    assert bodies["decode"] is (DECODE_FEW_BODIES if few else DECODE_BODIES)
    assert bodies["decoder"] is TENSORRT_BODIES
    texts = [text for text in bodies["decode"].texts("bfloat16") if text.startswith("QuantizedExpertGroup")]
    assert [("FewDown" in text, "ExpertsDown" in text) for text in texts] == [(few, not few)]
    sizes = plugin_sizes(job, ("sm90",), 600, rows)
    assert sizes.few == few and plugins.Sizes.read(json.loads(json.dumps(asdict(sizes)))) == sizes


def test_weights_are_stored_in_bytes_and_bound_in_words(coded):
    folder, manifest, _ = coded
    stored = read_header(folder / DATA_FILE)
    kinds = {"U8", "BF16", "F32"} if manifest.precision != "fp8" else {"F8_E4M3", "BF16", "F32"}
    assert {tensor.dtype for tensor in stored.values()} == kinds
    graph = onnx.load(folder / "decode.onnx", load_external_data=False).graph
    bound = {value.name: value.type.tensor_type for value in graph.input}
    for name in stored.keys() & bound.keys():
        words = stored[name].dtype in ("U8", "F8_E4M3")
        assert (bound[name].elem_type == onnx.TensorProto.INT32) == words
        size = np.prod([dim.dim_value for dim in bound[name].shape.dim])
        assert size * (4 if words else 1) == np.prod(stored[name].shape)


def test_kernels_are_those_of_each_linear_layer(coded):
    """One plugin serves layers of many sizes: a layer's kernel is the one that was compiled for its own."""
    folder, manifest, _ = coded
    found = Kernels.read(folder / "kernels-sm90.json")
    job = mini_job(manifest.precision)
    config = job.config
    precision = job.precision
    sizes = plugin_sizes(job, ("sm90",), 600, 1)
    seen = set()
    for plugin, shapes, attributes in plugins.kernel_specs(sizes):
        (kernel,) = found.of(plugin, shapes, attributes).values()
        if "N" in attributes:
            assert (kernel.constants["N"], kernel.constants["K"]) == (attributes["N"], attributes["K"])
            assert kernel.constants["BITS"] == (8 if attributes["N"] == config.text.vocab_size else precision.decoder)
            seen.add(kernel.name + kernel.ptx)
    assert len(seen) == len(sizes.linears) == 7
    assert len(found.compiled) == len(list(plugins.kernel_specs(sizes)))


def test_engines_are_built(coded, tmp_path, machine, new_steps):
    """The fake TensorRT creates every plugin and asks for its shapes, formats and kernels."""
    folder = shutil.copytree(coded[0], tmp_path / "bundle")
    manifest = resume(folder, new_steps())
    assert not manifest.needs_engine_build and manifest.precision == coded[1].precision
    assert manifest.graphs == {name: f"{name}.engine" for name in GRAPHS}


@pytest.mark.parametrize("arch", ["sm80", "sm90,sm86"])
def test_float8_for_a_gpu_without_it_is_refused_by_name(tmp_path, arch):
    with pytest.raises(UserError, match=r"architecture: expected sm89 or later for fp8 weights, found sm8[06]"):
        export(MINI, tmp_path / "bundle", "trt", "fp8", QUIET, replace(LIMITS, arch=arch))
    assert list(tmp_path.iterdir()) == []


def test_float8_is_for_every_architecture_that_has_it():
    info = TensorRT(detect_gpu=lambda: None).plan_engines(mini_job("fp8"))
    assert set(tensorrt_info(info).architectures) == TARGETS.keys() - {"sm80", "sm86", "sm87"}


def in_words(model: onnx.ModelProto) -> None:
    """Declare stored bytes as words, as the engines' inputs are."""
    for tensor in model.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT8E4M3FN):
            tensor.data_type = onnx.TensorProto.INT32
            tensor.dims[-1] //= 4


def feeds(config: ErnieConfig, graph: str, rows: int) -> dict[str, np.ndarray]:
    """Random inputs: of a prompt half of pictures, or of a step of so many rows."""
    rng = np.random.default_rng(11)
    text = config.text
    tokens, capacity = (40, 64) if graph == "decoder" else (1, 64)
    past = 0 if graph == "decoder" else 20
    shape = (rows, text.num_kv_heads, capacity, text.head_dim)
    given: dict[str, Any] = {
        "input_ids": rng.integers(5, 400, (rows, tokens)),
        "position_ids": np.broadcast_to(past + np.arange(tokens), (3, rows, tokens)),
        "past_lengths": np.full(rows, past),
        "lengths": np.full(rows, tokens),
    }
    if graph == "decoder":
        index = np.where(np.arange(tokens) < 20, np.arange(tokens), -1)[None]
        features = rng.standard_normal((20, text.hidden_size)).astype(np.float32)
        given |= {"feature_index": index, "features": features, "token_types": (index >= 0).astype(np.int64)}
    for layer in range(text.num_layers):
        for part in ("key", "value"):
            given[f"past_{part}.{layer}"] = rng.standard_normal(shape).astype(np.float32)
    return given


@pytest.mark.parametrize("graph", ["decoder", "decode"])
@pytest.mark.parametrize("name", STORAGE)
def test_the_lowered_graphs_compute_what_the_portable_ones_do(name, graph, tmp_path):
    """In float32, which ONNX Runtime computes in on a CPU, each plugin by the body that its declaration says.

    Two sequences are those that a decode step has kernels of its own for; three are more.
    """
    in_float = replace(TENSORRT[name], float_type="float32")
    export(MINI, tmp_path / "portable", ONNX_PORTABLE, in_float, QUIET)
    export(MINI, tmp_path / "lowered", replace(ONNX_PORTABLE, op_bodies=TENSORRT_BODIES), in_float, QUIET)
    path = tmp_path / "lowered" / f"{graph}.onnx"
    model = onnx.load(path, load_external_data=False)
    in_words(model)
    plugin_bodies.fill(model)
    onnx.save(model, path)
    sessions = [
        ort.InferenceSession(tmp_path / kind / f"{graph}.onnx", providers=["CPUExecutionProvider"])
        for kind in ("portable", "lowered")
    ]
    for rows in [1] if graph == "decoder" else [2, 3]:
        given = feeds(ErnieConfig.from_hf(MINI), graph, rows)
        portable, lowered = (session.run(None, given) for session in sessions)
        assert len(portable) == len(lowered) > 1
        for expected, result in zip(portable, lowered):
            assert np.abs(expected).max() > 0.1 and np.allclose(expected, result, atol=2e-5 * np.abs(expected).max())
