"""Contestants run the same prompts and say in a line what they can not do; OpenVINO gets the graphs that we export."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import compare
import contestants
import numpy as np
import onnxruntime
import openvino_engine
import pytest
from click.testing import CliRunner
from contestant_process import Worker
from continuations import continuations
from openvino_engine import readable

from ernie_export.exporter.export import export
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.paths import MINI
from tests.progress import QUIET

HERE = Path(contestants.__file__).parent


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """mini-ernie exported for both targets, by the target's name."""
    made = {}
    for target in ("onnx", "onnx-portable"):
        made[target] = tmp_path_factory.mktemp("bundles") / target
        export(MINI, made[target], target, "fp32", QUIET)
    return made


def test_graphs_for_openvino_compute_the_same(bundles, tmp_path):
    """Without functions and without TensorScatter, in ONNX Runtime: two rows, tokens in the midst of the cache."""
    portable = bundles["onnx-portable"]
    model = readable(portable / "decode.onnx")
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(node.op_type == "TensorScatter" for node in model.graph.node)
    (tmp_path / "weights.safetensors").hardlink_to(portable / "weights.safetensors")
    (tmp_path / "decode.onnx").write_bytes(model.SerializeToString())
    rng = np.random.default_rng(0)
    results = []
    sessions = [onnxruntime.InferenceSession(path / "decode.onnx") for path in (portable, tmp_path)]
    inputs = {
        "input_ids": np.array([[17], [35]]),
        "position_ids": np.array([[[5], [2]]] * 3),
        "past_lengths": np.array([5, 2]),
        "lengths": np.array([1, 1]),
    }
    for value in sessions[0].get_inputs():
        if value.name.startswith("past_") and value.name not in inputs:
            inputs[value.name] = rng.standard_normal((2, value.shape[1], 9, value.shape[3])).astype(np.float32)
    for session in sessions:
        results.append(session.run(None, inputs))
    assert len(results[0]) > 2
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def worker(spec: dict, *tasks: dict) -> list[dict]:
    """A worker's answers."""
    lines = "".join(json.dumps(task) + "\n" for task in tasks)
    command = [sys.executable, str(HERE / "contestants.py"), json.dumps(spec)]
    process = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_a_worker_answers_every_task(bundles):
    spec = {"kind": "Ours", "bundle": str(bundles["onnx"])}
    tasks = compare.prefill(8, (4, 6)), {"do": "decode", "tokens": 2}, {"do": "sing"}
    ready, prefill, decode, error = worker(spec, *tasks)
    assert ready == {"ready": True}
    assert prefill["seconds"] > 0 and decode["seconds"] > 0 and decode["rss_mib"] >= prefill["rss_mib"] > 20
    assert error == {"error": "KeyError: 'tokens'"}


def test_a_contestant_that_cannot_begin_says_so():
    (error,) = worker({"kind": "Ours", "bundle": "nowhere"})
    assert "nowhere" in error["error"]


def test_pictures_are_encoded_anew_each_time(bundles):
    """No contestant may gain from what an earlier prompt left."""
    ours = contestants.Ours(bundles["onnx"])
    encoded = []
    encode = ours.model.engine.encode

    def counted(*arguments: Any) -> Any:
        encoded.append(1)
        return encode(*arguments)

    ours.model.engine.encode = counted
    for _ in range(2):
        ours.prefill([contestants.prompt(8, (4, 6), ours.ids)], max_new_tokens=4)
    assert len(encoded) == 2


def test_every_bundle_has_its_row(bundles):
    specs = compare.contestants(MINI, (bundles["onnx"], bundles["onnx-portable"], Path("made/Q4_0.gguf")))
    assert specs["llama.cpp Q4_0"] == {"kind": "LlamaCpp", "gguf": "made/Q4_0.gguf", "threads": 2, "repacked": True}
    assert specs["llama.cpp Q4_0, mapped"] == specs["llama.cpp Q4_0"] | {"repacked": False}
    assert specs["ernie-export fp32"] == {"kind": "Ours", "bundle": str(bundles["onnx"])}
    assert specs["OpenVINO fp32, our graphs"]["kind"] == "OpenVino"
    assert {spec["kind"] for spec in specs.values()} == set(contestants.CONTESTANTS)
    assert specs["torch.compile grouped_mm bf16"]["compiled"] and "compiled" not in specs["PyTorch grouped_mm bf16"]


@pytest.mark.parametrize(("kind", "target"), [("Ours", "onnx"), ("OpenVino", "onnx-portable")])
def test_a_contestant_runs_the_engine_that_it_is_named_for(monkeypatch, bundles, kind, target):
    """And keeps nothing between prompts. OpenVINO itself is not needed to see that it is asked."""
    opened = []

    class Engine(OrtCpuEngine):
        def __init__(self, bundle, manifest, threads):
            opened.append(threads)
            super().__init__(bundle, manifest, threads)

    monkeypatch.setattr(openvino_engine, "OpenVinoEngine", Engine)
    model = contestants.make({"kind": kind, "bundle": str(bundles[target])}).model
    assert opened == ([contestants.THREADS] if kind == "OpenVino" else [])
    assert model.scheduler.config == SchedulerConfig(feature_cache_bytes=0, enable_prefix_caching=False)


def test_sequences_decoded_together_get_the_tokens_that_they_get_alone(bundles):
    ours = contestants.Ours(bundles["onnx"])
    prompts = contestants.prompts_of(compare.prefill(8, sequences=3), ours.ids)
    assert len({tuple(prompt["input_ids"][0]) for prompt in prompts}) == 3
    alone = []
    for prompt in prompts:
        ours.prefill([prompt], max_new_tokens=8)
        ours.decode(6)
        alone += [sequence.sampler.found for sequence in ours.sequences]
    ours.prefill(prompts, max_new_tokens=8)
    ours.decode(6)
    assert [sequence.sampler.found for sequence in ours.sequences] == alone
    assert len(alone[0]) == 7


@pytest.mark.parity
def test_pytorch_decodes_sequences_together(bundles):
    ours = contestants.Ours(bundles["onnx"])
    theirs = contestants.PyTorch(MINI, "grouped_mm", "float32")
    prompts = contestants.prompts_of(compare.prefill(8, sequences=3), ours.ids)
    ours.prefill(prompts, max_new_tokens=8)
    ours.decode(6)
    theirs.prefill(prompts, max_new_tokens=8)
    answers = [theirs.found]
    for _ in range(6):
        theirs.decode(1)
        answers.append(theirs.found)
    assert theirs.torch.cat(answers, 1).tolist() == [sequence.sampler.found for sequence in ours.sequences]
    given = continuations(prompts)[:, :7].tolist()
    assert [sequence.tokens for sequence in ours.sequences] == given and len({*map(tuple, given)}) == 3


def test_tasks_are_chosen_by_text_and_a_decode_brings_its_prefill():
    assert compare.chosen_tasks(()) == set(compare.TASKS)
    assert compare.chosen_tasks(("together",)) == set(compare.MANY)
    assert compare.chosen_tasks(("decode",)) == {"prefill 512 text", "decode", *compare.MANY}


def test_several_prompts_are_refused_where_one_is_all_that_runs(bundles):
    engine = contestants.OpenVino.__new__(contestants.OpenVino)
    with pytest.raises(NotImplementedError, match="one sequence at a time"):
        engine.prefill([{}, {}], max_new_tokens=4)


def test_huge_pages_are_asked_for_in_a_process_of_their_own(bundles):
    specs = compare.contestants(MINI, (bundles["onnx"],))
    (name, plain), (huge_name, huge) = compare.both_pages("ernie-export fp32", specs["ernie-export fp32"])
    assert (name, huge_name) == ("ernie-export fp32", "ernie-export fp32, huge pages") and "environment" not in plain
    asked = []
    for spec in (plain, huge):
        worker = Worker(spec, (), compare.FIRST)
        asked.append("hugetlb=1" in Path(f"/proc/{worker.process.pid}/environ").read_text())
        worker.close()
    assert asked == [False, True]


@pytest.mark.slow
@pytest.mark.parametrize("extra", [("--starts", "2"), ("--apart",)], ids=["loaded", "apart"])
def test_a_run_measures_every_task_and_every_start(bundles, tmp_path, extra):
    """All but the first count; a contestant that cannot start has its error, and the others run on."""
    output = tmp_path / "out.json"
    missing = tmp_path / "missing.gguf"
    missing.touch()
    options = ["--rounds", "1", "--pause", "0", "--only", "ernie-export", "--only", "mapped", *extra]
    arguments = [str(MINI), str(bundles["onnx"]), str(missing), "--output", str(output), *options]
    result = CliRunner().invoke(compare.main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(output.read_text())
    times = report["seconds"]["ernie-export fp32"]
    assert {task: len(several) for task, several in times.items()} == dict.fromkeys(compare.TASKS, 1)
    (start,) = report["seconds_to_first_token"]["ernie-export fp32"]
    assert start > 0.1  # Python alone takes that
    assert report["rss_mib"]["ernie-export fp32"] > 20
    assert report["tokens"]["decode, 16 together"] == 16 * compare.DECODED
    assert set(report["errors"]) == {"llama.cpp missing, mapped"}
    assert report["machine"]["cpu"] and "ernie-export fp32" in result.output
