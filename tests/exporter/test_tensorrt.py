"""ernie-export --target trt without TensorRT: bundles that wait for engines; what can't be is one line.

What this can't show: that TensorRT takes the graphs, builds them, and runs them.
"""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.exporter.cli import export as cli
from ernie_export.exporter.export import export
from ernie_export.exporter.targets import kernels
from ernie_export.exporter.targets.engines import WITHOUT_PLUGINS, EngineBuilder, profile_dimensions
from ernie_export.exporter.targets.target import ExportJob
from ernie_export.exporter.targets.tensorrt import TensorRT, TensorRTBuildOptions
from ernie_export.exporter.targets.trt_rtx import TensorRTForRtx
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.ptx import TARGETS
from ernie_export.graphs.precision import TENSORRT
from ernie_export.runtime import load
from tests.manifests import engine_info, tensorrt_info
from tests.mini import VOCABULARY
from tests.paths import MINI
from tests.progress import QUIET

LIMITS = TensorRTBuildOptions(max_batch_size=3, max_seq_len=600, max_image_tokens=64, arch="sm80, sm90")
CAPACITY = 704  # of a cache for 600 tokens
NONE_HERE = "expected TensorRT 10.15.1 or later (pip install .[export,trt]), found none"
CALLS = ("MultimodalRope", "ExpertGroup", "MoEDispatch", "CachedAttention")
PREPARED = {"vision.onnx", "resampler.onnx", "decoder.onnx", "decode.onnx", "kernels-sm80.json", "kernels-sm90.json"}


def test_a_bundle_that_waits(made):
    folder, manifest, steps = made
    assert Manifest.read(folder) == manifest and manifest.needs_engine_build
    manifest.check_files(folder, hash_limit=2**40)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *manifest.files} > PREPARED
    assert not any(name.endswith(".engine") for name in manifest.files)
    assert (manifest.target, manifest.precision, manifest.model.max_positions) == ("trt", "bf16", 600)
    info = manifest.engines
    assert (info.library, info.compute_capabilities, info.tensorrt.architectures) == (
        "tensorrt",
        (),
        ("sm80", "sm90"),
    )
    assert (info.max_batch_size, info.max_seq_len, info.max_image_tokens) == (3, 600, 64)
    assert info.tensorrt.plugin_version == plugins.version()
    assert steps.reasons == [NONE_HERE]
    shares = steps.shares["Compiling kernels"]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_a_bundle_that_waits_answers_nothing_and_says_what_to_do(made):
    with pytest.raises(UserError, match=f"^{made[0]}: expected engines, .* ernie-export --resume {made[0]}\\)$"):
        load(made[0])


# Beginnings of the names of plugins that only the decode graph has.
DECODE_ONLY = ("Experts", "Decode", "GateUpOrRoute", "DownOrCombine")


@pytest.mark.parametrize("graph", GRAPHS)
def test_graphs_are_plugins_and_standard_operators(made, graph):
    folder, _, _ = made
    model = onnx.load(folder / f"{graph}.onnx")
    assert not model.functions
    ours = [node for node in model.graph.node if node.domain]
    specs = plugins.kernel_specs(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "bfloat16", capacity=CAPACITY))
    names = {plugin.name for plugin, _, _ in specs}
    expected = {"decoder": {name for name in names if not name.startswith(DECODE_ONLY)}}
    expected |= {"decode": {name for name in names if "Dispatch" not in name}, "vision": set(), "resampler": set()}
    assert {node.op_type for node in ours} == expected[graph]
    assert all(node.name.rsplit("/", 2)[-2] in CALLS for node in ours)
    paths = [node.name for node in model.graph.node]
    assert len(set(paths)) == len(paths) and all(path.startswith("/") for path in paths)


# What varies in a plugin's output of one varying dimension, of two: names of the graph's dimensions, or fixed sizes.
VARYING: dict[str, dict[int, tuple[str | int, ...]]] = {
    "decoder": {0: (), 1: ("sequence",), 2: (1, "sequence")},
    "decode": {0: (), 1: ("batch",), 2: ("batch", 1)},
}


def without_plugins(model: onnx.ModelProto, graph: str) -> onnx.ModelProto:
    """Take the plugins out of a graph: what they give becomes an input."""
    sizes = plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "bfloat16", capacity=CAPACITY)
    outputs = {
        plugin.name: plugin.outputs(shapes, attributes) for plugin, shapes, attributes in plugins.kernel_specs(sizes)
    }
    ours = [node for node in model.graph.node if node.domain == "ernie"]
    standard = [node for node in model.graph.node if node.domain == ""]
    used = {name for node in standard for name in node.input}
    for node in ours:
        for name, output in zip(node.output, outputs[node.op_type]):
            if name in used:
                assert output.dtype == "graph"
                varying = iter(VARYING[graph][sum(size < 0 for size in output.shape)])
                shape = [next(varying) if size < 0 else size for size in output.shape]
                value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.BFLOAT16, shape)
                model.graph.input.append(value)
    del model.graph.node[:]
    model.graph.node.extend(standard)
    return model


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("bundle", ["made", "baked"])
def test_tensorrt_for_rtx_builds_all_but_the_plugins(bundle, tmp_path, graph, request):
    """A plugin ends that library's process, so each is taken out. Built for every capability that it serves here."""
    folder, manifest, _ = request.getfixturevalue(bundle)
    onnx.save(without_plugins(onnx.load(folder / f"{graph}.onnx"), graph), tmp_path / "standard.onnx")
    config = ErnieConfig.from_hf(MINI)
    request = {
        "library": "tensorrt_rtx_bindings",
        "onnx": str(tmp_path / "standard.onnx"),
        "engine": str(tmp_path / "standard.engine"),
        "dimensions": profile_dimensions(graph, manifest.engines, config.vision.spatial_merge_size),
        "decomposable": graph not in WITHOUT_PLUGINS,
        "options": {"capabilities": ["SM80", "SM86", "SM89", "SM120"]},
    }
    report = EngineBuilder()(graph, request, lambda fraction: None)
    attentions = {"vision": config.vision.depth, "resampler": 0, "decoder": config.text.num_layers, "decode": 0}
    assert report["attention"]["layers"] == attentions[graph] and report["layers"] > 20
    assert (tmp_path / "standard.engine").stat().st_size > 100_000
    outputs = {tensor["name"] for tensor in report["outputs"]}
    assert {"decode": "candidate_ids", "decoder": "logits", "vision": "hidden", "resampler": "features"}[
        graph
    ] in outputs


def test_the_best_tokens_of_a_decode_step(made, tmp_path):
    """Highest first, with the sum of all: what the host reads instead of every logit."""
    graph = onnx.load(made[0] / "decode.onnx").graph
    names = {"candidate_ids", "candidate_values", "logit_total"}
    nodes = [node for node in graph.node if node.name.startswith("/candidates/")]
    logits = onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", VOCABULARY])
    constants = [tensor for tensor in graph.initializer if tensor.name.startswith("/candidates/")]
    outputs = [output for output in graph.output if output.name in names]
    opset = [onnx.helper.make_opsetid("", 24)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "best", [logits], outputs, constants), opset_imports=opset
    )
    model.ir_version = 10
    rows = np.random.default_rng(5).standard_normal((3, VOCABULARY)).astype(np.float32)
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
    sizes = plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "bfloat16", capacity=CAPACITY)
    for plugin, shapes, attributes in plugins.kernel_specs(sizes):
        (kernel,) = found.of(plugin, shapes, attributes).values()
        assert f".target {TARGET[arch]}" in kernel.ptx and f".entry {kernel.name}(" in kernel.ptx


TARGET = {"sm80": "sm_80", "sm86": "sm_86", "sm87": "sm_87", "sm89": "sm_89", "sm90": "sm_90a"}
TARGET |= {"sm100": "sm_100a", "sm110": "sm_89", "sm120": "sm_120a"}


def test_kernels_of_a_model_without_experts_for_every_architecture():
    sizes = replace(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "float16"), experts=0)
    shares: list[float] = []
    found = kernels.compile_kernels(sizes, "float16", tuple(TARGETS), shares.append)
    assert list(found) == list(TARGETS) and set(found) == set(TARGET)
    for arch, compiled in found.items():
        assert [(kernel.plugin, kernel.tactic) for kernel in compiled.compiled] == [("Rope", 1), ("Rope", 2)]
        assert all(f".target {TARGET[arch]}\n" in kernel.ptx for kernel in compiled.compiled)
    assert len(shares) == 2 * (len(TARGETS) - 1), "sm110 takes what sm89 is compiled to"


def test_a_kernel_that_is_not_compiled_is_named():
    sizes = replace(plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "float16"), experts=0, head_dim=2**22)
    with pytest.raises(UserError, match=r"^kernel Rope for sm90, tactic [12]: not compiled: "):
        kernels.compile_kernels(sizes, "float16", ("sm90",), lambda share: None)


def test_a_kernel_that_fits_nowhere_is_named():
    def misfits(pieces, *rest):
        return {piece: {"misfit": 200_000} for piece in pieces}

    sizes = plugins.Sizes.of(ErnieConfig.from_hf(MINI).text, "float16")
    with pytest.raises(UserError, match="kernel Rope for sm86: .* shared memory, found 200000 bytes at least"):
        kernels.compile_kernels(sizes, "float16", ("sm86",), lambda fraction: None, misfits)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"arch": "sm90,sm75"}, ("--arch", "sm120", "'sm75'")),
        ({"arch": ""}, ("--arch", "''")),
        (
            {"arch": "sm90", "hardware_compatibility": "ampere-plus"},
            ("--hardware-compatible ampere-plus", "sm80", "sm90"),
        ),
        ({"max_seq_len": 4, "max_image_tokens": None}, ("--max-tokens", "more than the 4 of the smallest", "found 4")),
        ({"max_image_tokens": 3}, ("--max-image-tokens", "at least 4", "3")),
        ({"max_seq_len": 64}, ("--max-tokens", "more than a picture's 64", "found 64")),
        ({"max_seq_len": 5000}, ("--max-tokens", "at most 4096", "5000")),
    ],
)
def test_limits_that_cannot_be_are_named(tmp_path, changes, named):
    with pytest.raises(UserError) as refused:
        export(MINI, tmp_path / "bundle", "trt", "bf16", QUIET, replace(LIMITS, **changes))
    assert all(part in str(refused.value) for part in named) and list(tmp_path.iterdir()) == []


def test_without_the_kernels_compiler(tmp_path):
    target = TensorRT(compiler="triton_of_another_name")
    with pytest.raises(UserError, match=r"pip install .\[export,kernels\]\), found no triton_of_another_name"):
        export(MINI, tmp_path / "bundle", target, "bf16", QUIET, LIMITS)
    assert list(tmp_path.iterdir()) == []


def test_experts_that_the_kernels_do_not_take_are_named_at_export(tmp_path):
    checkpoint = shutil.copytree(MINI, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"] |= {"moe_intermediate_size": [2**24, 64]}
    (checkpoint / "config.json").write_text(json.dumps(config))
    config = ErnieConfig.from_hf(checkpoint)
    tensors = Checkpoint.open(checkpoint)
    job = ExportJob(config, TENSORRT["bf16"], LIMITS, graphs={}, offsets={}, processors=checkpoint, checkpoint=tensors)
    with pytest.raises(
        UserError, match=r"mixture of experts: expert: expected under 2\*\*30 elements, found 16777216 x 128"
    ):
        TensorRT().plan_engines(job)


@pytest.mark.parametrize(("target", "chunk"), [(TensorRT(), 1024), (TensorRTForRtx(), 512)], ids=("trt", "trt-rtx"))
def test_chunks_are_as_long_as_suits_the_library(target, chunk):
    config = ErnieConfig.from_hf(MINI)
    options = target.options_type(max_seq_len=2048, max_image_tokens=64)
    job = ExportJob(config, TENSORRT["bf16"], options, {}, {}, MINI, Checkpoint.open(MINI))
    assert target.plan_engines(job).prefill_chunk == chunk


def test_the_command_says_what_is_left_in_two_lines(without_gpu, tmp_path, capsys, register_target):
    register_target(without_gpu)
    bundle = tmp_path / "bundle of mine"
    options = ("--target", "trt", "--arch", "sm90", "--max-tokens", "600", "--workspace", "2", "--version-compatible")
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(MINI), "-o", str(bundle), *options])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 0
    assert lines[0] == f"{bundle} (trt, bf16)"
    assert lines[-2] == f"engines are not built yet: {NONE_HERE}"
    assert lines[-1] == f"on the machine that has the GPU and TensorRT: ernie-export --resume '{bundle}'"
    info = engine_info(bundle)
    assert (tensorrt_info(info).workspace_gib, info.max_batch_size) == (2, 1)
    assert (info.version_compatible, tensorrt_info(info).hardware_compatibility) == (True, "exact")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "expected CHECKPOINT and --output, or --resume BUNDLE; found no CHECKPOINT"),
        (("CHECKPOINT",), "found no --output"),
        (("CHECKPOINT", "--resume", "b"), "--resume: expected BUNDLE alone, found CHECKPOINT with it"),
        (("--resume", "b", "--max-batch", "2"), "found --max-batch with it"),
        (("--resume", "b", "--hardware-compatible", "ampere-plus"), "found --hardware-compatible with it"),
        (("CHECKPOINT", "-o", "b", "--arch", "sm90"), "--arch: expected --target trt with it, found --target onnx"),
        (
            ("CHECKPOINT", "-o", "b", "--target", "trt", "--precision", "fp32"),
            "or int8 or int4 or fp8 for --target trt",
        ),
        (("CHECKPOINT", "-o", "b", "--target", "trt", "--compute-capability", "9.0"), "expected --target trt-rtx"),
        (("CHECKPOINT", "-o", "b", "--target", "trt", "--workspace", "0"), "--workspace"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    given = [str(MINI) if argument == "CHECKPOINT" else argument for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        cli.main(given)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2 and printed.count("\n") == 1 and named in printed
    assert list(tmp_path.iterdir()) == []
