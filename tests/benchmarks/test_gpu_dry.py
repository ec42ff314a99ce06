"""benchmarks/gpu.py without a GPU: every part runs at toy sizes, and one that fails loses only its own rest."""

import json
import os
import subprocess
import sys
import time

import gpu
import gpu_bench
import gpu_engine
import gpu_model
import gpu_moe
import gpu_timing
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.targets.onnx import ONNX
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops.moe_dispatch.plugin import kernel_plugins
from ernie_export.graphs.ops.quantized_linear.reference import dequantize
from ernie_export.runtime.engines.device.memory import HostMemory
from tests.paths import PROGRAMS, ROOT
from tools.docs.gpu import PREDICTIONS


def test_every_part_runs(tmp_path, monkeypatch):
    """OUT names the folder that comes back: each part's rows lie there, beside the results of all."""
    monkeypatch.setenv("OUT", str(tmp_path))
    options = ["--device", "cpu", "--small", "--minutes", "10"]
    result = CliRunner().invoke(gpu.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    (path,) = tmp_path.glob("gpu-*.json")
    assert (tmp_path / "rows-rtx.jsonl").is_file()
    assert path.name.endswith("-dry.json")
    found = json.loads(path.read_text())
    assert found["card"] == "none: a dry run" and found["versions"]["torch"]
    assert {name: part["end"] for name, part in found["parts"].items()} == dict.fromkeys("abc", "done")
    assert list(found["parts"]) == ["b", "c", "a"], "the part that is least likely to run comes last"
    rows = [row for part in found["parts"].values() for row in part["rows"]]
    assert not [row for row in rows if any("error" in key and isinstance(value, str) for key, value in row.items())]
    assert found["parts"]["a"]["rows"][-1]["not run"]
    tactics = [row for row in found["parts"]["b"]["rows"] if row["what"] == "sweep"]
    kernels = {row["what"]: row for row in found["parts"]["b"]["rows"] if row["what"] != "sweep"}
    moe = {
        f"moe{weights}, {experts}"
        for weights in ("", " int4", " fp8")
        for experts in ("text experts", "both expert groups")
    }
    assert set(kernels) == {"ceilings", "rope", *moe}
    assert found["parts"]["b"]["rows"][0]["what"] == found["parts"]["c"]["rows"][0]["what"] == "ceilings"
    for name in {"rope", *moe}:
        assert kernels[name]["error"] < 1e-5 and kernels[name]["of_floor"] > 0
    assert {kernels[name]["choice_agreed"] for name in moe} == {1.0}
    timed = {(row["storage"], row["stage"]) for row in tactics if row["seconds"] > 0}
    assert timed == {(storage, stage) for storage in ("dense", "Quantized", "Float8") for stage in ("GateUp", "Down")}
    assert sum(row["usual"] for row in tactics) == len(timed) * len(gpu_bench.SMALL.tokens)
    # A prompt's engines run MoEDispatch, steps run ExpertGroup; the usual tactic is the one that engines get.
    swept = {(row["plugin"], row["tokens"] > gpu_bench.STEP) for row in tactics}
    assert {prompt == ("Dispatch" in name) for name, prompt in swept} == {True}
    compiled = {
        plugin.name: plugin.compiled_tactics[0]
        for storage in ("", "Quantized", "Float8")
        for vision, few in ((False, False), (False, True), (True, False))
        for plugin in kernel_plugins(vision, storage, few)
    }
    assert all(row["tactic"] + 1 == compiled[row["plugin"]] for row in tactics if row["usual"])
    for prediction in PREDICTIONS:
        assert [row for row in rows if row["what"] == prediction.row["what"] and prediction.figure in row], prediction
    model = found["parts"]["c"]["rows"]
    right = [row for row in model if row["what"] == "right"]
    assert [row["precision"] for row in right] == ["fp16", "int4-fp16"]
    # Beside quantized weights the dry run's engine rounds activations to 8 bits; neither CUDA nor the reference does.
    assert right[0]["error"] < 5e-3 and right[1]["error"] < 0.1
    assert right[0]["tokens_agreed"] == right[0]["tokens"]
    steps = [(row["what"], row["by"], row["rows"]) for row in model if "step_seconds" in row]
    by = [("ours", "fp32"), ("transformers", "grouped_mm"), ("transformers", "eager"), ("ours-int4", "int4-fp16")]
    assert steps == [(*who, rows) for who in by for rows in gpu_model.SMALL.rows]
    ours = [row for row in model if row["what"].startswith("ours")]
    assert {row["slots"] for row in ours if "warm_seconds" in row} == {1, max(gpu_model.SMALL.rows)}
    assert all(row["encode"] > 0 and row["prefill"] > 0 for row in ours if "ttft" in row)
    assert sum("grown_gib" in row for row in ours) == 2
    assert [0.1 < row["largest_logit"] < 1e3 for row in model if "largest_logit" in row] == [True, True]
    assert all(row["distinct_tokens"] > 1 for row in ours if row.get("rows", 1) > 1)


# What our runtime and its extras need, and a machine with PyTorch and ONNX alone has not.
ABSENT = ("av", "prompt_toolkit", "llguidance", "fastapi", "uvicorn", "tensorrt", "tensorrt_rtx_bindings")


def test_onnx_runtimes_part_needs_no_package_that_the_gpu_machine_lacks(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", ""))))
    arguments = [
        "gpu_model.py",
        "--device",
        "cpu",
        "--small",
        "--only",
        "right",
        "--only",
        "ours",
        "--only",
        "ours-int4",
    ]
    request = {"blocked": ABSENT, "modules": ["ernie_export.exporter.export", "gpu_model"], "arguments": arguments}
    program = [sys.executable, str(PROGRAMS / "run_without.py"), json.dumps(request)]
    process = subprocess.run(program, capture_output=True, text=True)
    rows = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
    assert {row["what"] for row in rows} == {"ceilings", "right", "ours", "ours-int4"}, process.stderr
    assert not [row["error"] for row in rows if isinstance(row.get("error"), str)], process.stderr


@pytest.mark.parametrize(
    ("way", "seconds", "end"),
    [
        ("sleep", 3, "out of time"),
        ("memory", 30, "MemoryError: no memory"),
        ("at once", 30, "exit code 9"),
        ("by itself", 30, "done"),
    ],
)
def test_what_a_part_printed_is_kept_however_it_ends(way, seconds, end):
    part = gpu.run([sys.executable, str(PROGRAMS / "print_rows.py"), way], seconds)
    assert (part.end, part.rows) == (end, [{"a": 1}, {"b": 3}])
    assert gpu.run(["anything"], 0).end == "out of time"


def test_rows_come_as_they_are_measured(tmp_path, monkeypatch):
    """Whoever cuts the call, even gpu.py itself, finds what was measured until then."""
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", ""))))
    came: list[tuple[float, dict]] = []
    program = [sys.executable, str(PROGRAMS / "emit_row.py")]
    part = gpu.run(program, 10, lambda row: came.append((time.monotonic(), row)))
    assert (part.end, part.rows) == ("out of time", [{"a": 1}]) and time.monotonic() - came[0][0] > 1
    assert (tmp_path / "rows-x.jsonl").read_text() == '{"a": 1}\n'


def test_a_part_leaves_no_process_behind(tmp_path):
    """Its own processes hold its output open: waiting for their end would take longer than the part may."""
    part = gpu.run([sys.executable, str(PROGRAMS / "start_another.py"), str(tmp_path / "late")], 4)
    assert part.end == "out of time" and part.seconds < 15


def test_a_choice_of_experts_other_than_torch_topk_shows():
    bench = gpu_moe.MoeBench(torch, "cpu", torch.float32, gpu_bench.SMALL, gpu_timing.Ceilings(1.0, 1.0))
    groups = bench.expert_group(8), None
    x = bench.normal(4, gpu_bench.SMALL.hidden)
    experts = (x @ groups[0].inputs[0]).argmax(-1, keepdim=True)
    assert bench.choice_agreed(x, experts, groups, None) == 1
    experts[1] = 1 - experts[1]
    assert bench.choice_agreed(x, experts, groups, None) == 0.75


@pytest.mark.parametrize("logits", [np.zeros((1, 9)), np.full((1, 9), 2.0), np.array([[1.0, np.nan]])])
def test_nothing_is_measured_on_a_model_that_computes_nothing(logits):
    with pytest.raises(ValueError, match="no measurement"):
        gpu_model.checked(logits.astype(np.float32))
    assert gpu_model.checked(np.array([[1.0, -3.0]], np.float32)) == 3.0


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4", "int4-fp16"])
def test_random_weights_have_the_size_that_keeps_sums_alike(tmp_path, precision):
    """A weight's values times its inputs' root come to 1, quantized ones by their scales."""
    config = gpu_engine.configuration(tmp_path, small=True)
    gpu_engine.hollow_bundle(tmp_path, config, precision)
    memory = HostMemory()
    data = tmp_path / "weights.safetensors"
    weights = gpu_engine.random_weights(memory, data, gpu_engine.deviations(config, precision))
    described = {w.name: w for w in all_weights(build_graphs(config, ONNX.precision(precision)))}

    def values(name: str) -> np.ndarray:
        entry = weights[name].entry
        kind = {"F32": np.float32, "F16": np.float16, "U8": np.uint8}[entry.dtype]
        return np.frombuffer(memory.read(weights[name].address, entry.nbytes), kind).reshape(entry.shape)

    sizes = {}
    for name, weight in described.items():
        if weight.quantization is not None:
            scales = values(f"{name}_scales").astype(np.float32)
            matrix = dequantize(values(name).reshape(*scales.shape[:-1], -1), scales, weight.quantization.bits)
            sizes[name] = matrix.std() * matrix.shape[-1] ** 0.5
        elif name.endswith("proj.weight") and "patch_embed" not in name:
            matrix = values(name).astype(np.float32)
            sizes[name] = matrix.std() * matrix.shape[-1] ** 0.5
    assert len(sizes) > 10 and all(0.85 < size < 1.15 for size in sizes.values()), sizes


def test_the_tree_and_a_part_of_a_wheel_fit_one_call():
    """A call to the GPU machine carries 64 MiB, 49 of them a part of a wheel (see pack.sh)."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name]
    assert sum(path.stat().st_size for path in paths if path.is_file() and not path.is_symlink()) < 15 * 2**20


def test_an_unknown_part_is_refused():
    result = CliRunner().invoke(gpu.main, ["--parts", "ad"])
    assert result.exit_code == 2 and "expected some of abc, found 'ad'" in result.output


def test_the_released_shape_takes_no_disk(tmp_path):
    """Its graphs are written in seconds, and its data file has the size and the header of a real one, but no blocks."""
    config = gpu_engine.configuration(tmp_path, small=False)
    assert isinstance(config, ErnieConfig) and config.text.num_layers == 28
    manifest = gpu_engine.hollow_bundle(tmp_path, config, "bf16")
    assert isinstance(manifest, Manifest)
    data = tmp_path / "weights.safetensors"
    assert 54e9 < manifest.files[data.name].bytes < 60e9 and data.stat().st_blocks * 512 < 2**24
    with data.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["model.embed_tokens.weight"]["shape"] == [103424, 2560]
