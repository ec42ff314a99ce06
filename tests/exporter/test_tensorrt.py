"""ernie-export --target trt: bundles that wait for engines, and engines built from them by a stand-in for TensorRT.

The stand-in (folder tensorrt_standin) holds every call to TensorRT 11.4's real bindings, and creates the plugins
through TensorRT's own Python sources. What it can't show: that TensorRT takes the graphs, builds them, and runs them.
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

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from ernie_export.exporter import cli
from ernie_export.exporter.export import DATA_FILE, Progress, export
from ernie_export.exporter.resume import WORK, resume
from ernie_export.exporter.targets import kernels, tensorrt
from ernie_export.exporter.targets.card import Card
from ernie_export.exporter.targets.engines import REPORT
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import GRAPHS, Manifest
from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.ptx import TARGETS
from ernie_export.graphs.tensor_file import read_header
from ernie_export.runtime import load

ROOT = Path(__file__).parents[2]
MINI = ROOT / "examples" / "mini-ernie"
API = Path(sys.prefix, "tensorrt_api")
STANDIN = Path(__file__).with_name("tensorrt_standin")
LIMITS = tensorrt.Limits(max_batch=3, max_tokens=600, max_image_tokens=64, arch="sm80, sm90")
NONE_HERE = "expected TensorRT 10.13 or later (pip install .[export,trt]), found none"
HOPPER = Card("Stand-in H100", (9, 0))
PREPARED = {"vision.onnx", "resampler.onnx", "decoder.onnx", "decode.onnx", "kernels-sm80.json", "kernels-sm90.json"}
BUILT = {"vision.engine", "resampler.engine", "decoder.engine", "decode.engine", "timing.cache", REPORT}
DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int number) { *device = 0; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Stand-in H100", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
"""


class Steps(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.shares: dict[str, list[float]] = {}
        self.reasons: list[str] = []
        take = lambda name, done: self.shares.setdefault(name, []).append(done)  # noqa: E731
        super().__init__(lambda name, total: None, lambda count: None, take, self.reasons.append)


@pytest.fixture(scope="module")
def few_kernels():
    """A stand-in for `kernels.spread` that compiles the first tactic of each stage alone, and once for all tests.

    All of them would take most of a minute.
    """
    compiled: dict[Any, dict[str, Any]] = {}
    whole = kernels.spread

    def spread(work: kernels.Work, *rest: Any) -> dict[Any, dict[str, Any]]:
        missing = [piece for piece in work if piece[2] == 1 and piece not in compiled]
        compiled.update(whole(missing, *rest) if missing else {})
        return {piece: compiled.get(piece, {"misfit": 0}) for piece in work}

    return spread


@pytest.fixture(scope="module")
def made(tmp_path_factory, few_kernels):
    """A bundle of the mini checkpoint that waits for engines, and what its export reported."""
    folder, steps = tmp_path_factory.mktemp("trt") / "bundle", Steps()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kernels, "spread", few_kernels)
        patched.setattr(tensorrt, "find_card", lambda: None)
        return folder, export(MINI, folder, "trt", "bf16", steps, LIMITS), steps


@pytest.fixture
def waiting(made, tmp_path):
    """A copy of that bundle."""
    return shutil.copytree(made[0], tmp_path / "bundle")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A folder with a library in place of NVIDIA's driver, which knows of one GPU."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "cuda.c"], check=True)
    return folder


@pytest.fixture(scope="module")
def environment(driver):
    """Where processes find TensorRT's stand-in, and the driver's."""
    assert API.is_dir(), f"{API} is missing: python tools/tensorrt_api.py {API}, which `make test` runs"
    path = os.pathsep.join(map(str, (ROOT / "tools" / "typing", STANDIN, API)))
    return {"PYTHONPATH": path, "LD_LIBRARY_PATH": f"{driver}:{API / 'stubs'}"}


@pytest.fixture
def machine(environment, monkeypatch):
    """A machine with TensorRT and a GPU, as far as this process and its children can see."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tensorrt, "find_card", lambda: HOPPER)


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "ernie_export.exporter.cli", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, **options)


def refusal(bundle: Path) -> str:
    """The message with which `bundle` is not resumed; it is as it was afterwards."""
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    with pytest.raises(UserError) as refused:
        resume(bundle, Steps())
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert "\n" not in str(refused.value).strip()
    return str(refused.value)


def change_facts(bundle: Path, **changes: Any) -> None:
    manifest = Manifest.read(bundle)
    replace(manifest, engines=replace(manifest.engines, **changes)).write(bundle)


# Without TensorRT


def test_a_bundle_that_waits(made):
    folder, manifest, steps = made
    assert Manifest.read(folder) == manifest and manifest.waits_for_engines
    manifest.check_files(folder, hash_limit=2**40)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files} > PREPARED
    assert not BUILT & manifest.files.keys()
    assert (manifest.target, manifest.precision, manifest.model.max_positions) == ("trt", "bf16", 600)
    facts = manifest.engines
    assert (facts.library, facts.compute_capabilities, facts.architectures) == ("tensorrt", (), ("sm80", "sm90"))
    assert (facts.max_batch, facts.max_tokens, facts.max_image_tokens) == (3, 600, 64)
    assert facts.plugins == plugins.version()
    assert steps.reasons == [NONE_HERE]
    shares = steps.shares["Compiling kernels"]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_bundle_that_waits_answers_nothing_and_says_what_to_do(made):
    with pytest.raises(UserError, match=f"^{made[0]}: expected engines, .* ernie-export --resume {made[0]}\\)$"):
        load(made[0])


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_plugins_and_standard_operators(made, graph):
    folder, _, _ = made
    model = onnx.load(folder / f"{graph}.onnx")
    assert not model.functions
    ours = [node for node in model.graph.node if node.domain]
    stages = {stage.name for stage, _, _ in plugins.cases(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "bfloat16"))}
    expected = {"decoder": {name for name in stages if "Bank" not in name}}
    expected |= {"decode": {name for name in stages if "Dispatch" not in name}, "vision": set(), "resampler": set()}
    assert {node.op_type for node in ours} == expected[graph]
    assert all(node.name.rsplit("/", 2)[-2] in ("MultimodalRope", "ExpertBank", "MoEDispatch") for node in ours)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names) and all(name.startswith("/") for name in names)
    weights = read_header(folder / DATA_FILE).keys()
    assert not weights & {tensor.name for tensor in model.graph.initializer}
    assert weights & {tensor.name for tensor in model.graph.input}


PARSE = """
import sys
import tensorrt_rtx_bindings as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parsed = parser.parse_from_file(sys.argv[1])
print(parsed, network.num_layers, *(parser.get_error(i).desc() for i in range(parser.num_errors)))
"""


@pytest.mark.parametrize("graph", GRAPHS)
def test_tensorrt_for_rtx_parses_all_but_the_plugins(made, tmp_path, graph):
    """A plugin ends that library's process, so each is taken out, and what it gives becomes an input."""
    model = onnx.load(made[0] / f"{graph}.onnx")
    sizes = plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "bfloat16")
    outputs = {stage.name: stage.outputs(shapes, attributes) for stage, shapes, attributes in plugins.cases(sizes)}
    ours = [node for node in model.graph.node if node.domain == "ernie"]
    standard = [node for node in model.graph.node if node.domain == ""]
    used = {name for node in standard for name in node.input}
    for node in ours:
        for name, output in zip(node.output, outputs[node.op_type]):
            if name in used:
                assert output.dtype == "graph"
                shape = [None if size < 0 else size for size in output.shape]
                value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, shape)
                model.graph.input.append(value)
    del model.graph.node[:]
    model.graph.node.extend(standard)
    onnx.save(model, tmp_path / "standard.onnx")
    program = [sys.executable, "-c", PARSE, str(tmp_path / "standard.onnx")]
    process = subprocess.run(program, capture_output=True, text=True)
    parsed, layers, *errors = process.stdout.split(maxsplit=2)
    assert parsed == "True" and int(layers) > 20, errors


def test_the_best_tokens_of_a_decode_step(made, tmp_path):
    """Highest first, with the sum of all: what the host reads instead of every logit."""
    graph = onnx.load(made[0] / "decode.onnx").graph
    names = {"candidate_ids", "candidate_values", "logit_total"}
    nodes = [node for node in graph.node if node.name.startswith("/candidates/")]
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 480])
    constants = [tensor for tensor in graph.initializer if tensor.name.startswith("/candidates/")]
    outputs = [output for output in graph.output if output.name in names]
    opset = [onnx.helper.make_opsetid("", 24)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "best", [logits], outputs, constants), opset_imports=opset
    )
    model.ir_version = 10
    rows = np.random.default_rng(5).standard_normal((3, 480)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, values, totals = session.run(["candidate_ids", "candidate_values", "logit_total"], {"logits": rows})
    assert np.array_equal(ids, np.argsort(-rows, axis=-1)[:, :64])
    assert np.array_equal(values, np.take_along_axis(rows, ids, -1))
    assert np.allclose(totals, rows.sum(-1), atol=1e-4)


@pytest.mark.parametrize("arch", ["sm80", "sm90"])
def test_kernels_are_there_for_every_plugin(made, arch):
    folder, _, _ = made
    found = Kernels.read(folder / f"kernels-{arch}.json")
    assert found.dtype == "bfloat16"
    for stage, shapes, attributes in plugins.cases(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "bfloat16")):
        (kernel,) = found.of(stage, shapes, attributes).values()
        assert f".target {TARGET[arch]}" in kernel.ptx and f".entry {kernel.name}(" in kernel.ptx


TARGET = {"sm80": "sm_80", "sm86": "sm_86", "sm87": "sm_87", "sm89": "sm_89", "sm90": "sm_90a"}
TARGET |= {"sm100": "sm_100a", "sm110": "sm_89", "sm120": "sm_120a"}


def test_kernels_of_a_model_without_experts_for_every_architecture():
    sizes = replace(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "float16"), experts=0)
    shares: list[float] = []
    found = kernels.compile_kernels(sizes, "float16", tuple(TARGETS), shares.append)
    assert list(found) == list(TARGETS) and set(found) == set(TARGET)
    for arch, compiled in found.items():
        assert [(kernel.stage, kernel.tactic) for kernel in compiled.compiled] == [("Rope", 1), ("Rope", 2)]
        assert all(f".target {TARGET[arch]}\n" in kernel.ptx for kernel in compiled.compiled)
    assert len(shares) == 2 * (len(TARGETS) - 1), "sm110 takes what sm89 is compiled to"


def test_a_kernel_that_is_not_compiled_is_named():
    sizes = replace(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "float16"), experts=0, head_dim=2**22)
    with pytest.raises(UserError, match=r"^kernel Rope for sm90, tactic [12]: not compiled: "):
        kernels.compile_kernels(sizes, "float16", ("sm90",), lambda share: None)


def test_a_kernel_that_fits_nowhere_is_named(monkeypatch):
    monkeypatch.setattr(kernels, "spread", lambda work, *rest: {piece: {"misfit": 200_000} for piece in work})
    sizes = plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "float16")
    with pytest.raises(UserError, match="kernel Rope for sm86: .* shared memory, found 200000 bytes at least"):
        kernels.compile_kernels(sizes, "float16", ("sm86",), lambda share: None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arch": "sm90,sm75"}, ("--arch", "sm120", "'sm75'")),
        ({"arch": ""}, ("--arch", "''")),
        ({"arch": "sm90", "hardware": "ampere-plus"}, ("--hardware-compatible ampere-plus", "sm80", "sm90")),
        ({"max_tokens": 4, "max_image_tokens": None}, ("--max-tokens", "more than the 4 of the smallest", "found 4")),
        ({"max_image_tokens": 3}, ("--max-image-tokens", "at least 4", "3")),
        ({"max_tokens": 64}, ("--max-tokens", "more than a picture's 64", "found 64")),
        ({"max_tokens": 5000}, ("--max-tokens", "at most 4096", "5000")),
    ],
)
def test_limits_that_cannot_be_are_named(tmp_path, changes, named):
    with pytest.raises(UserError) as refused:
        export(MINI, tmp_path / "bundle", "trt", "bf16", Steps(), replace(LIMITS, **changes))
    assert all(part in str(refused.value) for part in named) and list(tmp_path.iterdir()) == []


def test_without_the_kernels_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorrt, "COMPILER", "triton_of_another_name")
    with pytest.raises(UserError, match=r"pip install .\[export,kernels\]\), found no triton_of_another_name"):
        export(MINI, tmp_path / "bundle", "trt", "bf16", Steps(), LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_experts_that_the_kernels_do_not_take_are_named_at_export(tmp_path):
    checkpoint = shutil.copytree(MINI, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"] |= {"moe_intermediate_size": [2**24, 64]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    limits = (LIMITS, (4, 64), "bf16")
    with pytest.raises(UserError, match="mixture of experts: expert of 16777216 x 128, expected under"):
        tensorrt.check(ErnieConfig.from_hf(checkpoint), *limits)


def test_the_command_says_what_is_left_in_two_lines(few_kernels, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "spread", few_kernels)
    monkeypatch.setattr(tensorrt, "find_card", lambda: None)
    bundle = tmp_path / "bundle of mine"
    options = ("--target", "trt", "--arch", "sm90", "--max-tokens", "600", "--workspace", "2", "--version-compatible")
    monkeypatch.setattr(sys, "argv", ["ernie-export", str(MINI), "-o", str(bundle), *options])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 0
    assert lines[0] == f"{bundle} (trt, bf16)"
    assert lines[-2] == f"engines are not built yet: {NONE_HERE}"
    assert lines[-1] == f"on the machine that has the GPU and TensorRT: ernie-export --resume '{bundle}'"
    facts = Manifest.read(bundle).engines
    assert (facts.workspace, facts.version_compatible, facts.hardware, facts.max_batch) == (2, True, "exact", 1)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "expected CHECKPOINT and --output, or --resume BUNDLE; found no CHECKPOINT"),
        (("CHECKPOINT",), "found no --output"),
        (("CHECKPOINT", "--resume", "b"), "--resume: expected BUNDLE alone, found CHECKPOINT with it"),
        (("--resume", "b", "--max-batch", "2"), "found --max-batch with it"),
        (("--resume", "b", "--hardware-compatible", "ampere-plus"), "found --hardware-compatible with it"),
        (("CHECKPOINT", "-o", "b", "--arch", "sm90"), "--arch: expected --target trt with it, found --target onnx"),
        (("CHECKPOINT", "-o", "b", "--target", "trt", "--precision", "int4"), "expected bf16 or fp16 for --target trt"),
        (("CHECKPOINT", "-o", "b", "--target", "trt", "--compute-capability", "9.0"), "expected --target trt-rtx"),
        (("CHECKPOINT", "-o", "b", "--target", "trt", "--workspace", "0"), "--workspace"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    given = [str(MINI) if argument == "CHECKPOINT" else argument for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["ernie-export", *given])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.count("\n") == 1 and named in printed
    assert list(tmp_path.iterdir()) == []


# With the stand-in

USES = """
import json
import tensorrt as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

builder = trt.Builder(Log())
config = builder.create_builder_config()
cache = config.create_timing_cache(b"")
uses = {
    "as it should be": lambda: config.set_flag(trt.BuilderFlag.TF32),
    "a property that is not there": lambda: setattr(config, "hardware_compatibility", trt.ProfilingVerbosity.NONE),
    "a property of another type": lambda: setattr(config, "hardware_compatibility_level", "NONE"),
    "a method that is not there": lambda: config.set_workspace(1),
    "an argument of another type": lambda: config.set_flag("TF32"),
    "an argument too few": lambda: config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
    "an argument too many": lambda: config.clear_flag(trt.BuilderFlag.TF32, 1),
    "an argument by another name": lambda: config.set_timing_cache(cache, mismatch=False),
    "text for bytes": lambda: config.create_timing_cache("no bytes"),
}
found = {}
for name, use in uses.items():
    try:
        use()
    except (AttributeError, TypeError) as e:
        found[name] = type(e).__name__
print(json.dumps([list(uses), found]))
"""


def test_the_stand_in_refuses_what_the_bindings_do_not_take(environment):
    options = {"capture_output": True, "text": True, "env": os.environ | environment}
    process = subprocess.run([sys.executable, "-c", USES], **options)
    assert process.returncode == 0, process.stderr
    (good, *wrong), refused = json.loads(process.stdout.splitlines()[-1])
    assert list(refused) == wrong and good not in refused


@pytest.fixture(scope="module")
def finished(made, environment, tmp_path_factory):
    """That bundle with its engines, and what building them reported."""
    folder, steps = shutil.copytree(made[0], tmp_path_factory.mktemp("finished") / "bundle"), Steps()
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        patched.setattr(tensorrt, "find_card", lambda: HOPPER)
        return folder, resume(folder, steps), steps


def test_a_bundle_with_its_engines(made, finished):
    folder, manifest, steps = finished
    assert Manifest.read(folder) == manifest and not manifest.waits_for_engines
    manifest.check_files(folder, hash_limit=2**40)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files}
    assert set(manifest.files) == set(made[1].files) - PREPARED | BUILT
    assert manifest.graphs == {name: f"{name}.engine" for name in GRAPHS}
    facts = manifest.engines
    assert (facts.version, facts.device, facts.compute_capabilities) == ("11.4.0.106", "Stand-in H100", ("9.0",))
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
    assert counts == {"vision": 0, "resampler": 0, "decoder": 4 + 3 * 6, "decode": 4 + 3 * 5}
    # One timing cache goes from engine to engine.
    assert (folder / "timing.cache").read_bytes() == b"card one vision resampler decoder decode"
    inputs = {graph: {t["name"]: t for t in report[graph]["inputs"]} for graph in GRAPHS}
    outputs = {graph: {t["name"]: t for t in report[graph]["outputs"]} for graph in GRAPHS}
    assert inputs["vision"]["pixel_values"]["profile"] == [[1, 4, 588], [1, 256, 588], [2, 256, 588]]
    assert inputs["decode"]["past_value.3"]["profile"][2] == [3, 2, 640, 32]
    best = {"name": "candidate_ids", "dtype": "int64", "shape": [-1, 64]}
    assert outputs["decode"]["candidate_ids"] == best and "candidate_ids" not in outputs["decoder"]
    assert outputs["decode"]["candidate_values"] == best | {"name": "candidate_values", "dtype": "float"}
    assert outputs["decode"]["logit_total"] == {"name": "logit_total", "dtype": "float", "shape": [-1]}


def test_what_was_asked_of_an_export_holds_for_its_engines(waiting, machine):
    """Engines for every card from Ampere on take Ampere's kernels, and no more shared memory than any card gives."""
    change_facts(waiting, hardware="ampere-plus", version_compatible=True, workspace=3)
    facts = resume(waiting, Steps()).engines
    assert (facts.hardware, facts.compute_capabilities) == ("ampere-plus", ("9.0",))
    built = json.loads((waiting / REPORT).read_text())["decode"]["inspector"]
    assert (built["hardware"], built["flags"]) == ("AMPERE_PLUS", ["VERSION_COMPATIBLE"])
    assert built["pools"] == {"WORKSPACE": 3 * 2**30}
    assert all(p["targets"] == ["sm_80"] and p["shared"] <= 48 * 1024 for p in built["plugins"])


def test_one_command_does_both_where_tensorrt_and_its_gpu_are(few_kernels, tmp_path, machine, monkeypatch):
    monkeypatch.setattr(kernels, "spread", few_kernels)
    steps = Steps()
    manifest = export(MINI, tmp_path / "bundle", "trt", "bf16", steps, replace(LIMITS, arch=None))
    assert manifest.engines.architectures == ("sm90",) and not manifest.waits_for_engines and steps.reasons == []
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"manifest.json", *manifest.files}
    assert BUILT < manifest.files.keys() and not PREPARED & manifest.files.keys()


def test_a_refusal_there_leaves_the_old_bundle(few_kernels, tmp_path, waiting, machine, monkeypatch):
    monkeypatch.setattr(kernels, "spread", few_kernels)
    monkeypatch.setenv("STANDIN_FAULT", "refuse=Split")
    before = (waiting / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"vision.onnx: /vision_model/blocks.0/attn/Split \(Split\): refused by"):
        export(MINI, waiting, "trt", "bf16", Steps(), LIMITS)
    assert (waiting / "manifest.json").read_bytes() == before and list(tmp_path.iterdir()) == [waiting]


FAULTS = {
    "refuse=DispatchSort": "decoder.onnx: /model/layers.1/mlp/MoEDispatch/DispatchSort (DispatchSort): refused by",
    "fail=vision": "vision.engine: expected an engine from tensorrt, found: no implementation for what",
    "unreadable=vision": "vision.engine: expected an engine from tensorrt, found: a plan that a test wants unreadable",
    "abort=resampler": "resampler.engine: expected an engine from tensorrt, found that it crashed: SIGABRT",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_build_is_one_line_and_leaves_the_bundle(waiting, machine, monkeypatch, fault):
    monkeypatch.setenv("STANDIN_FAULT", fault)
    assert refusal(waiting).startswith(FAULTS[fault])


def test_a_full_disk_is_one_line_and_leaves_the_bundle(waiting, environment):
    """No file may grow past 2 MiB, which the resampler's engine does."""
    before = {path.name: path.stat().st_size for path in waiting.iterdir()}
    limit = (2 * 2**20, 2 * 2**20)
    process = command(
        "--resume",
        waiting,
        env=os.environ | environment | {"STANDIN_FAULT": "large=resampler"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith(
        f"error: {waiting}: expected room and leave to write engines, found: File too large"
    )
    assert {path.name: path.stat().st_size for path in waiting.iterdir()} == before


def test_a_killed_build_is_taken_up(waiting, environment, machine):
    """Engines that were done are not built again; whoever resumes meanwhile is told."""
    program = [sys.executable, "-m", "ernie_export.exporter.cli", "--resume", str(waiting)]
    environment = os.environ | environment | {"STANDIN_FAULT": "wait=decoder"}
    manifest = (waiting / "manifest.json").read_bytes()
    with subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (waiting / WORK / "resampler.json").exists():
            assert process.poll() is None
            time.sleep(0.05)
        with pytest.raises(UserError, match="expected it at rest, found another process that resumes it"):
            resume(waiting, Steps())
        process.send_signal(signal.SIGKILL)
    assert (waiting / "manifest.json").read_bytes() == manifest and Manifest.read(waiting).waits_for_engines
    engine = waiting / WORK / "vision.engine"
    engine.write_bytes(engine.read_bytes() + b" kept")
    steps = Steps()
    Manifest.check_files(resume(waiting, steps), waiting, 2**40)
    assert list(steps.shares) == ["Building decoder.engine", "Building decode.engine"]
    assert (waiting / "vision.engine").read_bytes().endswith(b" kept")
    assert not (waiting / WORK).exists()


def test_what_another_tensorrt_built_is_built_again(waiting, machine, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setenv("STANDIN_FAULT", "fail=resampler")
        patched.setattr(shutil, "rmtree", lambda *a, **k: None)  # as if it were killed there
        with pytest.raises(UserError, match="resampler.engine"):
            resume(waiting, Steps())
    (waiting / WORK / "timing.cache").write_bytes(b"card two vision")
    monkeypatch.setenv("STANDIN_VERSION", "11.5.0")
    steps = Steps()
    assert resume(waiting, steps).engines.version == "11.5.0"
    assert list(steps.shares) == [f"Building {name}.engine" for name in GRAPHS]
    assert (waiting / "timing.cache").read_bytes() == b"card one vision resampler decoder decode"


# What can't be resumed


def test_a_bundle_that_has_its_engines_is_not_resumed(finished):
    assert "that waits for its engines, found one that has them (of TensorRT 11.4.0.106, for Stand-in" in refusal(
        finished[0]
    )


def test_what_is_no_bundle_for_tensorrt_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match="found no folder"):
        resume(tmp_path / "none", Steps())
    with pytest.raises(UserError, match="expected a bundle, found no manifest.json"):
        resume(MINI, Steps())
    export(MINI, tmp_path / "onnx", "onnx", "fp32", Steps())
    assert refusal(tmp_path / "onnx").endswith("that waits for its engines, found target onnx")


def test_other_plugins_are_told(waiting):
    change_facts(waiting, plugins="0123456789ab")
    assert f"expected plugins of version {plugins.version()}, found 0123456789ab" in refusal(waiting)


def test_a_changed_file_is_told(waiting, machine):
    graph = waiting / "decode.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    assert "decode.onnx: expected sha256" in refusal(waiting)


def test_without_tensorrt(waiting, monkeypatch):
    assert refusal(waiting) == f"--resume {waiting}: {NONE_HERE}"


@pytest.mark.parametrize("version", ["10.12.0.36", "8.6.1"])
def test_an_older_tensorrt(waiting, machine, monkeypatch, version):
    monkeypatch.setenv("STANDIN_VERSION", version)
    assert refusal(waiting).endswith(f"expected TensorRT 10.13 or later, found {version}")


def test_a_tensorrt_that_does_not_load(waiting, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'broken'}:{ROOT / 'tools' / 'typing'}")
    assert refusal(waiting).endswith("found that it does not load: ImportError: libnvinfer.so.11: cannot open")


def test_without_a_gpu(waiting, machine, monkeypatch):
    monkeypatch.setattr(tensorrt, "find_card", lambda: None)
    assert refusal(waiting).endswith("expected an NVIDIA GPU and its driver, found none")


def test_a_card_without_kernels(waiting, machine, monkeypatch):
    monkeypatch.setattr(tensorrt, "find_card", lambda: Card("Quadro RTX 4000", (7, 5)))
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
def test_which_kernels_a_card_takes(capability, architectures, hardware, taken):
    assert tensorrt.kernels_for(Card("any", capability), architectures, hardware) == taken


def test_the_card_is_asked_of_the_driver(driver, tmp_path):
    program = "from ernie_export.exporter.targets.card import find_card; print(find_card())"
    path = str(ROOT / "tools" / "typing")
    for folder, expected in ((driver, str(HOPPER)), (tmp_path, "None")):
        env = os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(folder)}
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
        assert process.stdout.strip() == expected, process.stderr
