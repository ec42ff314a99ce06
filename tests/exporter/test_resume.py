"""ernie-export --resume: engines for a bundle that waits for them, built by the fake TensorRT.

What this can't show: that TensorRT takes the graphs, builds them, and runs them.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ernie_export.common.errors import InvalidFile, UserError
from ernie_export.common.gpu import Gpu
from ernie_export.common.manifest import GRAPHS, Manifest, sha256
from ernie_export.common.manifest_sections import FileEntry
from ernie_export.exporter.build_engines import WORK, resume
from ernie_export.exporter.export import export
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets import TARGETS, register
from ernie_export.exporter.targets.engines import REPORT
from ernie_export.exporter.targets.tensorrt import TensorRT, TensorRTBuildOptions
from ernie_export.exporter.targets.tensorrt_engines import kernels_for
from ernie_export.graphs.ops import plugins
from tests.manifests import engine_info, tensorrt_info
from tests.paths import MINI, PROGRAMS, ROOT
from tests.progress import QUIET

LIMITS = TensorRTBuildOptions(max_batch_size=3, max_seq_len=600, max_image_tokens=64, arch="sm80, sm90")
NONE_HERE = "expected TensorRT 10.15.1 or later (pip install .[export,trt]), found none"
HOPPER = Gpu("Fake H100", (9, 0))
PREPARED = {"vision.onnx", "resampler.onnx", "decoder.onnx", "decode.onnx", "kernels-sm80.json", "kernels-sm90.json"}
BUILT = {"vision.engine", "resampler.engine", "decoder.engine", "decode.engine", "timing.cache", REPORT}


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "ernie_export.exporter.cli.export", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, **options)


def refusal(bundle: Path) -> str:
    """The message with which `bundle` is not resumed; it is as it was afterwards."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(UserError) as refused:
        resume(bundle, QUIET)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert "\n" not in str(refused.value).strip()
    return str(refused.value)


def change_tensorrt_info(bundle: Path, **changes: Any) -> None:
    manifest = Manifest.read(bundle)
    engines = engine_info(manifest)
    engines = replace(engines, tensorrt=replace(tensorrt_info(engines), **changes))
    replace(manifest, engines=engines).write(bundle)


def test_the_fake_refuses_what_the_bindings_do_not_take(environment):
    options = {"capture_output": True, "text": True, "env": os.environ | environment}
    process = subprocess.run([sys.executable, PROGRAMS / "misuse_tensorrt.py"], **options)
    assert process.returncode == 0, process.stderr
    (good, *wrong), refused = json.loads(process.stdout.splitlines()[-1])
    assert list(refused) == wrong and good not in refused


@pytest.fixture(scope="module")
def finished(made, environment, tmp_path_factory, new_steps):
    """That bundle with its engines, and what building them reported."""
    folder = shutil.copytree(made[0], tmp_path_factory.mktemp("finished") / "bundle")
    steps = new_steps()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        original = TARGETS["trt"]
        register(TensorRT(detect_gpu=lambda: HOPPER))
        try:
            return folder, resume(folder, steps), steps
        finally:
            register(original)


def test_a_bundle_with_its_engines(made, finished):
    folder, manifest, steps = finished
    assert Manifest.read(folder) == manifest and not manifest.needs_engine_build
    manifest.check_files(folder, hash_limit=2**40)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files}
    assert set(manifest.files) == set(made[1].files) - PREPARED | BUILT
    assert manifest.graphs == {name: f"{name}.engine" for name in GRAPHS}
    info = manifest.engines
    assert (info.version, info.compute_capabilities) == ("11.4.0.106", ("9.0",))
    assert info.tensorrt.device == "Fake H100"
    assert manifest.model == made[1].model
    assert list(steps.shares) == [f"Building {name}.engine" for name in GRAPHS]
    for shares in steps.shares.values():
        assert shares == sorted(shares) and len(shares) > 5 and 0.9 < shares[-1] <= 1


def test_engines_are_built_as_asked(finished):
    folder, _, _ = finished
    report = json.loads((folder / REPORT).read_text())
    for name in GRAPHS:
        built = report[name]["inspector"]
        assert built["name"] == name and built["flags"] == [] and built["pools"] == {}
        assert (built["hardware"], built["verbosity"]) == ("NONE", "DETAILED")
        assert all(plugin["targets"] == ["sm_90a"] for plugin in built["plugins"])
    counts = {name: len(report[name]["inspector"]["plugins"]) for name in GRAPHS}
    assert counts == {"vision": 0, "resampler": 0, "decoder": 6 + 5 * 6, "decode": 3 * 6 + 5 * 5}
    # One timing cache goes from engine to engine.
    assert (folder / "timing.cache").read_bytes() == b"gpu one vision resampler decoder decode"
    inputs = {graph: {t["name"]: t for t in report[graph]["inputs"]} for graph in GRAPHS}
    outputs = {graph: {t["name"]: t for t in report[graph]["outputs"]} for graph in GRAPHS}
    assert inputs["vision"]["pixel_values"]["profile"] == [[1, 4, 588], [1, 256, 588], [2, 256, 588]]
    assert inputs["decode"]["past_value.3"]["profile"][2] == [3, 2, 704, 32]
    best = {"name": "candidate_ids", "dtype": "int64", "shape": [-1, 64]}
    assert outputs["decode"]["candidate_ids"] == best and "candidate_ids" not in outputs["decoder"]
    assert outputs["decode"]["candidate_values"] == best | {"name": "candidate_values", "dtype": "float"}
    assert outputs["decode"]["logit_total"] == {"name": "logit_total", "dtype": "float", "shape": [-1]}


@pytest.mark.parametrize("version", ["10.15.1.29", "11.1.0.106"])
def test_engines_are_built_by_every_version_from_the_oldest_on(made, environment_of, tmp_path, version):
    """Every plugin is created and asked by that version's Python sources, and every call fits its bindings."""
    folder = shutil.copytree(made[0], tmp_path / "bundle")
    process = command("--resume", folder, env=os.environ | environment_of(version))
    assert process.returncode == 0, process.stderr
    assert engine_info(folder).version == version
    report = json.loads((folder / REPORT).read_text())
    counts = {name: len(report[name]["inspector"]["plugins"]) for name in GRAPHS}
    assert counts == {"vision": 0, "resampler": 0, "decoder": 6 + 5 * 6, "decode": 3 * 6 + 5 * 5}


def test_what_was_asked_of_an_export_holds_for_its_engines(waiting, machine):
    """Engines for every GPU from Ampere on take Ampere's kernels, and no more shared memory than any GPU gives."""
    change_tensorrt_info(waiting, hardware_compatibility="ampere-plus", version_compatible=True, workspace_gib=3)
    info = engine_info(resume(waiting, QUIET))
    assert (tensorrt_info(info).hardware_compatibility, info.compute_capabilities) == ("ampere-plus", ("9.0",))
    built = json.loads((waiting / REPORT).read_text())["decode"]["inspector"]
    assert (built["hardware"], built["flags"]) == ("AMPERE_PLUS", ["VERSION_COMPATIBLE"])
    assert built["pools"] == {"WORKSPACE": 3 * 2**30}
    assert all(p["targets"] == ["sm_80"] and p["shared"] <= 48 * 1024 for p in built["plugins"])


def test_one_command_does_both_where_tensorrt_and_its_gpu_are(tmp_path, machine, new_steps):
    steps = new_steps()
    manifest = export(MINI, tmp_path / "bundle", "trt", "bf16", steps, replace(LIMITS, arch=None))
    assert tensorrt_info(engine_info(manifest)).architectures == ("sm90",)
    assert not manifest.needs_engine_build and steps.reasons == []
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"manifest.json", *manifest.files}
    assert BUILT < manifest.files.keys() and not PREPARED & manifest.files.keys()


def test_a_refusal_there_leaves_the_old_bundle(tmp_path, waiting, machine, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_FAULT", "refuse=Split")
    before = (waiting / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"vision.onnx: /vision_model/blocks.0/attn/Split \(Split\): refused by"):
        export(MINI, waiting, "trt", "bf16", QUIET, LIMITS)
    assert (waiting / "manifest.json").read_bytes() == before and list(tmp_path.iterdir()) == [waiting]


FAULTS = {
    "refuse=DispatchSort": "decoder.onnx: /model/layers.1/mlp/MoEDispatch/DispatchSort (DispatchSort): refused by",
    "fail=vision": "vision.engine: expected an engine from tensorrt, found: no implementation for what",
    "abort=resampler": "resampler.engine: expected an engine from tensorrt, found that it crashed: SIGABRT",
}


WAYS = {
    "fused=vision": ("vision", "attention of several kernels", "not supported by a dedicated kernel"),
    "shared=decode": ("decode", "kernels within 48 KiB of shared memory", "a launch that a test wants refused"),
}


@pytest.mark.parametrize("fault", WAYS)
def test_what_is_not_built_the_best_way_is_built_the_next(large_kernels, machine, monkeypatch, fault, new_steps):
    """The report and the progress say so; other engines give nothing up."""
    name, note, reason = WAYS[fault]
    monkeypatch.setenv("FAKE_TENSORRT_FAULT", fault)
    steps = new_steps()
    resume(large_kernels, steps)
    report = json.loads((large_kernels / REPORT).read_text())
    assert report[name]["built"] == note and reason in report[name]["because"][0]
    assert all("built" not in report[other] for other in GRAPHS if other != name)
    assert f"Building {name}.engine, {note}" in steps.shares
    built = report[name]["inspector"]
    assert all(built["decomposable"]) and bool(built["decomposable"]) == (name != "decode")
    assert all(plugin["shared"] <= 48 * 1024 for plugin in built["plugins"])
    assert {path.name for path in large_kernels.iterdir()} == {"manifest.json", *Manifest.read(large_kernels).files}


@pytest.fixture
def large_kernels(waiting):
    """A bundle whose decode graph has a kernel that asks for 64 KiB, and one of the same plugin that does not."""
    path = waiting / "kernels-sm90.json"
    document = json.loads(path.read_text())
    first = next(kernel for kernel in document["kernels"] if kernel["plugin"] == "ExpertsLogits")
    document["kernels"].append(first | {"tactic": 2, "shared": 64 * 1024, "constants": first["constants"] | SECOND})
    path.write_text(json.dumps(document))
    manifest = Manifest.read(waiting)
    files = manifest.files | {path.name: FileEntry(path.stat().st_size, sha256(path))}
    replace(manifest, files=files).write(waiting)
    return waiting


SECOND = {"BLOCK_T": 64, "BLOCK_H": 64}  # of the second tactic


def test_attention_is_marked_and_counted(finished):
    """An image's is to be fused; the decoder's may be built of several kernels."""
    report = json.loads((finished[0] / REPORT).read_text())
    for name, layers in (("vision", 4), ("resampler", 0), ("decoder", 6), ("decode", 0)):
        marked = name in ("decoder", "decode")
        assert report[name]["attention"] == {"layers": layers, "decomposable": marked}
        assert report[name]["inspector"]["decomposable"] == [marked] * layers


def test_an_engine_that_cannot_be_inspected_is_kept(waiting, machine, monkeypatch):
    monkeypatch.setenv("FAKE_TENSORRT_FAULT", "unreadable=vision")
    Manifest.check_files(resume(waiting, QUIET), waiting, 2**40)
    report = json.loads((waiting / REPORT).read_text())
    assert report["vision"]["not_inspected"] == "a plan that a test wants unreadable"
    assert "inspector" in report["decode"]


def test_a_plugin_that_fails_is_named_with_its_own_error(waiting, machine):
    """TensorRT prints it, and logs what follows from it."""
    path = waiting / "kernels-sm90.json"
    document = json.loads(path.read_text())
    for kernel in document["kernels"]:
        if kernel["plugin"] == "ExpertsDown":
            kernel["constants"]["K"] = 99
    path.write_text(json.dumps(document))
    manifest = Manifest.read(waiting)
    files = manifest.files | {path.name: FileEntry(path.stat().st_size, sha256(path))}
    replace(manifest, files=files).write(waiting)
    message = refusal(waiting)
    assert message.startswith(
        "decode.engine: expected an engine from tensorrt, found: plugin ExpertsDown: ValueError: "
    )
    assert "expected a kernel for" in message


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_build_is_one_line_and_leaves_the_bundle(waiting, machine, monkeypatch, fault):
    monkeypatch.setenv("FAKE_TENSORRT_FAULT", fault)
    assert refusal(waiting).startswith(FAULTS[fault])


def test_a_full_disk_is_one_line_and_leaves_the_bundle(waiting, environment):
    """No file may grow past 2 MiB, which the resampler's engine does."""
    before = {path.name: path.stat().st_size for path in waiting.iterdir()}
    limit = (2 * 2**20, 2 * 2**20)
    process = command(
        "--resume",
        waiting,
        env=os.environ | environment | {"FAKE_TENSORRT_FAULT": "large=resampler"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith(f"error: {waiting}: cannot write engines: File too large")
    assert {path.name: path.stat().st_size for path in waiting.iterdir()} == before


def test_a_killed_build_is_taken_up(waiting, environment, machine, new_steps):
    """Engines that were done are not built again; whoever resumes meanwhile gets an error."""
    program = [sys.executable, "-m", "ernie_export.exporter.cli.export", "--resume", str(waiting)]
    environment = os.environ | environment | {"FAKE_TENSORRT_FAULT": "wait=decoder"}
    manifest = (waiting / "manifest.json").read_bytes()
    with subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (waiting / WORK / "resampler.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(UserError, match="another process is already building its engines"):
            resume(waiting, QUIET)
        process.send_signal(signal.SIGKILL)
    assert (waiting / "manifest.json").read_bytes() == manifest and Manifest.read(waiting).needs_engine_build
    engine = waiting / WORK / "vision.engine"
    engine.write_bytes(engine.read_bytes() + b" kept")
    steps = new_steps()
    Manifest.check_files(resume(waiting, steps), waiting, 2**40)
    assert list(steps.shares) == ["Building decoder.engine", "Building decode.engine"]
    assert (waiting / "vision.engine").read_bytes().endswith(b" kept")
    assert not (waiting / WORK).exists()


class InterruptedInResampler(Progress):
    """Ends the build of the second engine as Ctrl-C does, which leaves the first."""

    def update(self, name: str, fraction: float) -> None:
        if name == "Building resampler.engine":
            raise KeyboardInterrupt


def test_what_another_tensorrt_built_is_built_again(waiting, machine, monkeypatch, new_steps):
    with pytest.raises(KeyboardInterrupt):
        resume(waiting, InterruptedInResampler())
    assert (waiting / WORK / "vision.engine").exists()
    (waiting / WORK / "timing.cache").write_bytes(b"gpu two vision")
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", "11.5.0")
    steps = new_steps()
    assert engine_info(resume(waiting, steps)).version == "11.5.0"
    assert list(steps.shares) == [f"Building {name}.engine" for name in GRAPHS]
    assert (waiting / "timing.cache").read_bytes() == b"gpu one vision resampler decoder decode"


def test_a_bundle_that_has_its_engines_is_not_resumed(finished):
    assert "that waits for its engines, found one that has them (of TensorRT 11.4.0.106, for Fake H100" in refusal(
        finished[0]
    )


def test_what_is_no_bundle_for_tensorrt_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match="found no folder"):
        resume(tmp_path / "none", QUIET)
    with pytest.raises(UserError, match="expected a bundle, found no manifest.json"):
        resume(MINI, QUIET)
    export(MINI, tmp_path / "onnx", "onnx", "fp32", QUIET)
    assert refusal(tmp_path / "onnx").endswith("that waits for its engines, found target onnx")


def test_other_plugins_are_reported(waiting):
    change_tensorrt_info(waiting, plugin_version="0123456789ab")
    assert f"expected plugins of version {plugins.version()}, found 0123456789ab" in refusal(waiting)


@pytest.mark.parametrize("arch", ["x/../../victim", "../victim", "sm00"])
def test_an_architecture_that_is_a_path_is_refused(waiting, machine, arch):
    """A file of kernels is removed once its engines are built: its name must not lead out of the bundle."""
    victim = waiting.parent / "victim.json"
    victim.write_text("kept")
    change_tensorrt_info(waiting, architectures=("sm90", arch))
    with pytest.raises(InvalidFile) as refused:
        resume(waiting, QUIET)
    assert refused.value.key == "engines.tensorrt.architectures" and refused.value.found == arch
    assert victim.read_text() == "kept" and not (waiting / WORK).exists()


def test_what_engines_are_built_from_is_listed(waiting, machine):
    """What is not has no hash to compare."""
    manifest = Manifest.read(waiting)
    files = {name: entry for name, entry in manifest.files.items() if name != "kernels-sm80.json"}
    replace(manifest, files=files).write(waiting)
    assert "files: expected kernels-sm80.json, which engines are built from, found no such file" in refusal(waiting)


def test_foreign_files_in_an_interrupted_build_stay_out(waiting, machine, new_steps):
    """In a bundle of somebody else's: neither code beside the engines, nor another tokenizer, nor a claimed engine."""
    work = waiting / WORK
    work.mkdir()
    for name in ("evil.py", "tokenizer.json", "weights.safetensors", "vision.engine", "vision.engine.part"):
        (work / name).write_text("foreign")
    (work / "vision.json").write_text('{"key": null')
    (work / "decoder.json").write_text('{"key": [], "report": 3}')
    (work / "decoder.engine").write_text("foreign")
    tokenizer = (waiting / "tokenizer.json").read_bytes()
    steps = new_steps()
    manifest = resume(waiting, steps)
    assert list(steps.shares) == [f"Building {name}.engine" for name in GRAPHS]
    assert (waiting / "tokenizer.json").read_bytes() == tokenizer
    assert {path.name for path in waiting.iterdir()} == {*manifest.files, "manifest.json"}
    manifest.check_files(waiting, 2**40)
    assert not any(path.read_bytes() == b"foreign" for path in waiting.iterdir())


@pytest.mark.parametrize("name", ["vision.json", "timing.cache", "vision.engine"])
def test_a_pipe_in_an_interrupted_build_is_not_waited_for(waiting, machine, name):
    (waiting / WORK).mkdir()
    os.mkfifo(waiting / WORK / name)
    with pytest.raises(InvalidFile, match=f"{name}: expected a plain file of an interrupted build"):
        resume(waiting, QUIET)


@pytest.mark.parametrize("name", ["decode.onnx", "kernels-sm90.json", "manifest.json", "weights.safetensors"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(waiting, machine, name):
    (waiting / name).unlink()
    os.mkfifo(waiting / name)
    with pytest.raises(InvalidFile):
        resume(waiting, QUIET)


def test_a_changed_file_is_reported(waiting, machine):
    graph = waiting / "decode.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert "decode.onnx: expected sha256" in refusal(waiting)


def test_without_tensorrt(waiting, monkeypatch):
    assert refusal(waiting) == f"--resume {waiting}: {NONE_HERE}"


@pytest.mark.parametrize("version", ["10.15.0.9", "10.14.1.48", "8.6.1"])
def test_an_older_tensorrt(waiting, machine, monkeypatch, version):
    monkeypatch.setenv("FAKE_TENSORRT_VERSION", version)
    assert refusal(waiting).endswith(f"expected TensorRT 10.15.1 or later, found {version}")


def test_a_tensorrt_that_does_not_load(waiting, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}:{ROOT / 'tools' / 'typing'}")
    assert refusal(waiting).endswith("found that it does not load: ImportError: libnvinfer.so.11: cannot open")


def test_without_a_gpu(waiting, machine, register_target):
    register_target(TensorRT(detect_gpu=lambda: None))
    assert refusal(waiting).endswith("expected an NVIDIA GPU and its driver, found none")


def test_a_gpu_without_kernels(waiting, machine, register_target):
    register_target(TensorRT(detect_gpu=lambda: Gpu("Quadro RTX 4000", (7, 5))))
    assert refusal(waiting).endswith("expected kernels for Quadro RTX 4000 (sm75), found them for sm80,sm90 (--arch)")


@pytest.mark.parametrize(
    ("capability", "architectures", "hardware", "taken"),
    [
        ((9, 0), ("sm80", "sm90"), "exact", "sm90"),
        ((9, 0), ("sm80", "sm90"), "same-capability", "sm90"),
        ((9, 0), ("sm80", "sm90"), "ampere-plus", "sm80"),
        ((9, 0), ("sm90",), "ampere-plus", None),
        ((8, 9), ("sm80", "sm86", "sm90"), "exact", "sm86"),
        ((10, 3), ("sm80", "sm89", "sm100"), "exact", "sm89"),  # sm_100a's PTX runs on 10.0 alone
        ((12, 1), ("sm120",), "exact", None),
        ((11, 0), ("sm110",), "exact", "sm110"),
        ((8, 0), ("sm86",), "exact", None),
        ((7, 5), ("sm80",), "ampere-plus", None),
    ],
)
def test_which_kernels_a_gpu_takes(capability, architectures, hardware, taken):
    assert kernels_for(Gpu("any", capability), architectures, hardware) == taken


def test_the_gpu_is_asked_of_the_driver(driver, tmp_path):
    path = str(ROOT)
    for folder, expected in ((driver, str(HOPPER)), (tmp_path, "None")):
        env = os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(folder)}
        process = subprocess.run([sys.executable, PROGRAMS / "print_gpu.py"], capture_output=True, text=True, env=env)
        assert process.stdout.strip() == expected, process.stderr
