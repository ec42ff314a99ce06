"""tools/polygraphy_bundle.py by Polygraphy's own commands: on ONNX Runtime, TensorRT for RTX, and the fake TensorRT."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from ernie_export.common.manifest import GRAPHS
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.export import export
from ernie_export.exporter.targets.trt_rtx import RtxBuildOptions, TensorRTForRtx
from tests.mini import VOCABULARY
from tests.paths import MINI, PROGRAMS, ROOT
from tests.progress import QUIET
from tools import polygraphy_bundle

SCRIPT = str(ROOT / "tools" / "polygraphy_bundle.py")
NETWORK = (SCRIPT, "--model-type", "trt-network-script")
POLYGRAPHY = str(Path(sys.executable).parent / "polygraphy")


@pytest.fixture(scope="module")
def rtx(tmp_path_factory) -> Path:
    """A bundle for TensorRT for RTX that still has its graphs."""
    folder = tmp_path_factory.mktemp("rtx")
    graphs = {}

    def keep_graph(name: str, request: dict, on_progress: object) -> dict:
        graphs[name] = onnx.load(request["onnx"]).SerializeToString()  # with its constants
        Path(request["engine"]).write_bytes(b"")
        return {"version": "1"}

    options = RtxBuildOptions(compute_capabilities="8.9", max_batch_size=3, max_seq_len=600, max_image_tokens=64)
    export(MINI, folder / "bundle", TensorRTForRtx(build_engine=keep_graph), "bf16", QUIET, options)
    for name, graph in graphs.items():
        (folder / "bundle" / f"{name}.onnx").write_bytes(graph)
    return folder / "bundle"


@pytest.fixture(scope="module")
def portable(tmp_path_factory) -> Path:
    """The reference: the same checkpoint in float32."""
    folder = tmp_path_factory.mktemp("portable") / "bundle"
    export(MINI, folder, "onnx-portable", "fp32", QUIET)
    return folder


@pytest.fixture(scope="module")
def rtx_environment(tmp_path_factory) -> dict[str, str]:
    """Where Polygraphy finds TensorRT for RTX, whose own package of that name only imports the bindings."""
    package = tmp_path_factory.mktemp("path") / "tensorrt_rtx"
    package.mkdir()
    names = "from tensorrt_rtx_bindings import *\nfrom tensorrt_rtx_bindings import __version__\n"
    (package / "__init__.py").write_text(names)
    path = os.pathsep.join(map(str, (ROOT, package.parent)))
    return {"PYTHONPATH": path, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}


def polygraphy(*arguments: str, cwd: Path, bundle: Path, graph: str, env: dict[str, str] | None = None) -> str:
    """Run Polygraphy; return what it prints."""
    variables = {"ERNIE_BUNDLE": str(bundle), "ERNIE_GRAPH": graph, "PYTHONPATH": str(ROOT)} | (env or {})
    program = [sys.executable, POLYGRAPHY, *arguments]
    process = subprocess.run(program, capture_output=True, text=True, cwd=cwd, env=os.environ | variables)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.mark.parametrize(("graph", "output"), [("vision", "hidden"), ("decoder", "logits")])
def test_outputs_are_compared_with_the_references(rtx, portable, tmp_path, graph, output):
    """The graphs of target onnx stand for an engine: another program with the same inputs and outputs."""
    export(MINI, tmp_path / "onnx", "onnx", "fp32", QUIET)
    data = ("--onnxrt", "--data-loader-script", f"{SCRIPT}:load_reference_data")
    run = partial(polygraphy, "run", cwd=tmp_path, bundle=rtx, graph=graph)
    run(str(portable / f"{graph}.onnx"), *data, "--save-outputs", "reference.json")
    compare = ("--load-outputs", "reference.json", "--atol", "1e-4", "--rtol", "1e-4")
    printed = run(str(tmp_path / "onnx" / f"{graph}.onnx"), *data, *compare)
    assert f"Comparing Output: '{output}'" in printed and "All outputs matched" in printed


def test_an_engine_is_built_by_polygraphy(rtx, rtx_environment, tmp_path):
    """Plugins aside this is what happens with TensorRT: network, marks, configuration and profile by the scripts."""
    arguments = (*NETWORK, "--convert-to", "trt", "--trt-config-script", SCRIPT, "-o", "decode.engine")
    printed = polygraphy("convert", *arguments, cwd=tmp_path, bundle=rtx, graph="decode", env=rtx_environment)
    assert "Finished engine building" in printed
    assert (tmp_path / "decode.engine").stat().st_size > 100_000


def test_a_graph_is_inspected(made, tmp_path):
    printed = polygraphy("inspect", "model", str(made[0] / "decode.onnx"), cwd=tmp_path, bundle=made[0], graph="decode")
    assert "'ernie': 1" in printed and "past_lengths [dtype=int64" in printed


def test_a_graph_is_reduced_to_what_fails(rtx, rtx_environment, tmp_path):
    """The check fails on any graph with a Gelu, which alone is left; every graph on the way is parsed by the script."""
    check = ("--check", sys.executable, str(PROGRAMS / "has_gelu.py"))
    shapes = ("--model-input-shapes", "hidden:[1,64,96]", "first:[1]", "second:[1]")
    arguments = (str(rtx / "resampler.onnx"), "-o", "reduced.onnx", "--mode", "bisect", *shapes, *check)
    env = rtx_environment | {"ERNIE_ONNX": "polygraphy_debug.onnx"}
    polygraphy("debug", "reduce", *arguments, cwd=tmp_path, bundle=rtx, graph="resampler", env=env)
    assert [node.op_type for node in onnx.load(tmp_path / "reduced.onnx").graph.node] == ["Gelu"]


@pytest.mark.parametrize("graph", ["vision", "decoder"])
def test_plugins_are_registered_and_attention_is_marked(made, environment, graph):
    program = [sys.executable, str(PROGRAMS / "load_for_polygraphy.py"), SCRIPT]
    env = os.environ | environment | {"ERNIE_BUNDLE": str(made[0]), "ERNIE_GRAPH": graph}
    process = subprocess.run(program, capture_output=True, text=True, env=env)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout.splitlines()[-1])
    # Attention of the vision encoder's 4 blocks is not marked, that of the decoder's 6 layers is.
    expected = {"vision": [False] * 4, "decoder": [True] * 6}[graph]
    assert found["attention"] == expected and found["configured"] == "BuilderConfig"
    assert {"vision": "pixel_values", "decoder": "past_key.0"}[graph] in found["inputs"]


@pytest.mark.parametrize("graph", GRAPHS)
def test_both_sides_read_the_same_valid_inputs(made, monkeypatch, graph):
    folder = made[0]
    monkeypatch.setenv("ERNIE_BUNDLE", str(folder))
    monkeypatch.setenv("ERNIE_GRAPH", graph)
    (engine,) = polygraphy_bundle.load_data()
    (reference,) = polygraphy_bundle.load_reference_data()
    weights = read_header(folder / "weights.safetensors")
    declared = {value.name for value in onnx.load(folder / f"{graph}.onnx").graph.input}
    assert engine.keys() == declared and reference.keys() == declared - weights.keys()
    for name, array in reference.items():
        ours = engine[name] if isinstance(engine[name], np.ndarray) else engine[name].float().numpy()
        assert array.dtype in (np.float32, np.int64) and np.array_equal(ours, array), name
    if "input_ids" in reference:
        assert 0 <= reference["input_ids"].min() and reference["input_ids"].max() < VOCABULARY
        assert not reference["past_lengths"].any() and not reference["past_key.0"].any()
        assert set(reference["lengths"]) == {reference["input_ids"].shape[1]}
    if graph == "decoder":
        seen = reference["token_types"].astype(bool)
        assert np.array_equal(reference["feature_index"] > 0, seen) and 0 < seen.sum() < seen.size
        assert reference["feature_index"].max() <= len(reference["features"])
    if graph == "vision":
        assert len(np.unique(reference["coordinates"], axis=0)) == reference["pixel_values"].shape[1] == 64


BAD = [
    ({}, "expected ERNIE_BUNDLE and ERNIE_GRAPH in the environment"),
    ({"ERNIE_GRAPH": "dance"}, "ERNIE_GRAPH: expected one of vision, resampler, decoder, decode, found dance"),
    ({"ERNIE_GRAPH": "decode", "ERNIE_ONNX": "nothing.onnx"}, "nothing.onnx: expected a graph, found none"),
]


@pytest.mark.parametrize(("variables", "message"), BAD)
def test_what_is_missing_is_named(made, monkeypatch, variables, message):
    if variables:
        monkeypatch.setenv("ERNIE_BUNDLE", str(made[0]))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match=message):
        next(polygraphy_bundle.load_data())
