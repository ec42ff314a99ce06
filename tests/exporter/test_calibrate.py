"""Calibration from the outside and within: what layers are stats to get, what comes of it, and what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import calibration_file
import heldout
import numpy as np
import outliers
import pytest
from safetensors.numpy import load_file

from ernie_export.common.manifest import Manifest, sha256
from ernie_export.exporter.calibration import calibrate
from ernie_export.exporter.calibration import layer as calibrate_layer
from ernie_export.exporter.calibration.layer import build
from ernie_export.exporter.calibration.prompts import VisionEncoder, read_prompts
from ernie_export.exporter.cli import export as cli
from ernie_export.exporter.export import export
from ernie_export.exporter.targets.onnx import FUSED_BODIES
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.targets.tensorrt import TensorRTBuildOptions
from ernie_export.exporter.verify.bundle_side import BundleSide
from ernie_export.exporter.verify.weights import compare_weights
from ernie_export.exporter.weights.quantized_store import QuantizedStore
from ernie_export.graphs.build import build_graphs
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops.quantized_linear.reference import dequantize
from ernie_export.graphs.precision import ONNX
from ernie_export.graphs.state_dict import expected_tensors
from ernie_export.graphs.weight_spec import Interleaved, Rows
from ernie_export.runtime import load
from tests.paths import MEDIA, MINI
from tests.peak_memory import peak_memory
from tests.progress import QUIET
from tools.faults.weights import stored

COMMAND = Path(sys.executable).with_name("ernie-export")


def user(text: str, *media: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


PICTURE = {"type": "image", "path": str(MEDIA / "shapes.png")}
CLIP = {"type": "video", "path": str(MEDIA / "passing.mp4")}
MIXED = [user("What is in the picture?", PICTURE), {"role": "assistant", "content": "blue"}, user("And here?", CLIP)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """mini-ernie in fp32, in int4, and in int4 calibrated on scenes of its own kind."""
    folder = tmp_path_factory.mktemp("calibrated")
    calibration_file.write(folder / "scenes.json", 1, 200)
    return three(MINI, folder, folder / "scenes.json")


def three(checkpoint: Path, folder: Path, conversations: Path) -> Path:
    for name, precision, data in (("fp32", "fp32", None), ("int4", "int4", None), ("rounded", "int4", conversations)):
        export(checkpoint, folder / name, "onnx", precision, QUIET, conversations=data)
    return folder


@pytest.fixture
def mini(tmp_path):
    """mini-ernie opened for calibration: configuration, checkpoint, prompts of MIXED in a scratch folder."""
    config = ErnieConfig.from_hf(MINI)
    checkpoint = Checkpoint.open(MINI)
    (tmp_path / "conversation.json").write_text(json.dumps(MIXED))

    def prompts():
        with QuantizedStore(tmp_path / "vision") as qweight:
            encoder = VisionEncoder(build_graphs(config, ONNX["int4"]), FUSED_BODIES, checkpoint, qweight.folder)
            return read_prompts(tmp_path / "conversation.json", MINI, config, checkpoint, encoder, tmp_path)

    return config, checkpoint, prompts


def test_layers_are_given_what_the_whole_model_gives_them(mini, bundles, tmp_path):
    """Hidden states and routing of every layer, against the float32 bundle on the same prompt."""
    config, checkpoint, read = mini
    prompts = read()
    with BundleSide.open_traced(bundles / "fp32") as side:
        expected = side.answer(side.model.preprocessor.prepare(MIXED), 1).probes
    for index in range(config.text.num_layers):
        built = build(config.text, index)
        calls = list(calibrate_layer.run(built, config.text, index, prompts, checkpoint, FUSED_BODIES, tmp_path))
        assert [span for span, _ in calls] == [slice(0, len(prompts.token_types))]
        after = expected[f"layer {index}"]
        # Of most tokens: one that 8 bits send to another expert is far from where it was.
        away = np.linalg.norm(prompts.hidden - after, axis=-1) / np.linalg.norm(after, axis=-1)
        assert np.median(away) < 0.03
        if built.experts:
            routed = np.sort(calls[0][1]["experts"], -1) == np.sort(expected[f"routing {index}"], -1)
            assert routed.mean() > 0.97


def test_chunks_of_a_prompt_come_to_the_same(mini, tmp_path):
    config, checkpoint, read = mini
    found = []
    for chunk in (512, 16):
        prompts = read()
        layer = build(config.text, 1)
        calls = list(
            calibrate_layer.run(layer, config.text, 1, prompts, checkpoint, FUSED_BODIES, tmp_path, chunk_tokens=chunk)
        )
        assert len(calls) == -(-len(prompts.token_types) // chunk)
        found.append(np.array(prompts.hidden))
    np.testing.assert_allclose(found[0], found[1], atol=1e-3 * np.abs(found[0]).max())


def test_only_the_quantized_weights_differ(bundles):
    """Graphs, sizes, names and all that is not quantised in the decoder's layers are the same to the byte."""
    before, after = (Manifest.read(bundles / name) for name in ("int4", "rounded"))
    assert {**before.files, DATA_FILE: None} == {**after.files, DATA_FILE: None}
    assert before.files[DATA_FILE].bytes == after.files[DATA_FILE].bytes
    assert before.files[DATA_FILE].sha256 != after.files[DATA_FILE].sha256
    assert {path.name for path in (bundles / "rounded").iterdir()} == {"manifest.json", *after.files}
    plain, calibrated = (load_file(bundles / name / DATA_FILE) for name in ("int4", "rounded"))
    quantised = {name for name in plain if f"{name}_scales" in plain and name.startswith("model.layers.")}
    assert len(quantised) == 6 * 2 + 2 + 5 * (4 + 2), "qkv, output; gate and up, down; experts besides"
    for name, values in plain.items():
        rounded = name.removesuffix("_scales") in quantised
        assert np.array_equal(values, calibrated[name]) != rounded, name


def test_the_manifest_says_what_it_was_calibrated_on(bundles):
    assert Manifest.read(bundles / "int4").calibration is None
    info = Manifest.read(bundles / "rounded").calibration
    assert info is not None
    conversations = json.loads((bundles / "scenes.json").read_text())
    assert info.sha256 == sha256(bundles / "scenes.json") and len(info.inputs_sha256) == 64
    assert info.conversations == len(conversations) == 52 and info.tokens > 1000


@pytest.mark.parametrize("change", ["a scale 1 % larger", "a value one step off"])
def test_what_changes_after_calibration_is_found_in_its_tensor(bundles, tmp_path, change):
    """Errors alone would not show it: calibration may leave many times the least."""
    assert compare_weights(bundles / "rounded", Manifest.read(bundles / "rounded"), MINI).faults == []
    bundle = tmp_path / "changed"
    shutil.copytree(bundles / "rounded", bundle)
    name = "model.layers.2.mlp.experts.text.down_proj"
    if change == "a scale 1 % larger":
        stored(bundle, f"{name}_scales")[5, 3, 0] *= np.float32(1.01)
    else:
        stored(bundle, name)[5, 3, 0] ^= 1
    faults = compare_weights(bundle, Manifest.read(bundle), MINI).faults
    assert [fault.source for fault in faults] == ["model.layers.2.mlp.experts.5.down_proj.weight"]
    assert "expected what the calibration returned" in faults[0].reason


def test_answers_to_questions_not_seen_are_nearer_to_float32(bundles, tmp_path):
    """Mean divergence at the first token of the right answers is less than without calibration.

    Of a checkpoint with larger activations in some channels, where that costs something.
    """
    outliers.with_outliers(MINI, tmp_path / "checkpoint", 64.0)
    bundles = three(tmp_path / "checkpoint", tmp_path, bundles / "scenes.json")
    kinds = [kind for kind, family in heldout.KINDS.items() if family in ("single", "pair")]
    asked = [sample for kind in kinds for sample in heldout.heldout(kind, 3, seed=7)]
    scores = {name: log_probabilities(bundles / name, asked) for name in ("fp32", "int4", "rounded")}
    truth = scores["fp32"]
    before, after = (
        np.mean([(np.exp(p) * (p - q)).sum() for p, q in zip(truth, scores[name])]) for name in ("int4", "rounded")
    )
    assert 0 < after < before


def log_probabilities(bundle: Path, asked: list) -> list[np.ndarray]:
    """Of the first token of each answer."""
    found = []
    with load(bundle) as model:
        for sample in asked:
            prompt = model.prompt(model.preprocessor.prepare(sample.messages))
            cache = model.engine.new_cache(1, len(prompt.input_ids))
            logits = model.engine.prefill(cache, 0, prompt.chunk(0, len(prompt.input_ids))).full().astype(np.float64)
            found.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
    return found


def test_the_same_conversations_give_the_same_bytes(bundles, tmp_path):
    export(MINI, tmp_path / "again", "onnx", "int4", QUIET, conversations=bundles / "scenes.json")
    assert Manifest.read(tmp_path / "again") == Manifest.read(bundles / "rounded")


def test_the_quantized_weights_are_the_same_whatever_the_target(bundles, tmp_path, without_gpu):
    """A graph for TensorRT runs nowhere here: the one for ONNX Runtime stands in for it."""
    limits = TensorRTBuildOptions(max_seq_len=600, max_image_tokens=64, arch="sm90")
    export(MINI, tmp_path / "trt", without_gpu, "int4", QUIET, limits, bundles / "scenes.json")
    infos = [Manifest.read(folder).calibration for folder in (tmp_path / "trt", bundles / "rounded")]
    first, second = (replace(info, checksums={}) for info in infos if info is not None)
    assert first == second
    assert compare_weights(tmp_path / "trt", Manifest.read(tmp_path / "trt"), MINI).faults == []
    here, there = (load_file(folder / DATA_FILE) for folder in (bundles / "rounded", tmp_path / "trt"))
    coded = {name for name, tensor in there.items() if tensor.dtype == np.uint8}
    assert coded == {name for name in here if name.startswith("model.layers.") and f"{name}_scales" in here} | {
        "lm_head.weight"
    }
    assert all(np.array_equal(here[name], there[name]) for name in coded)
    for name in coded:
        assert np.allclose(here[f"{name}_scales"], there[f"{name}_scales"].astype(np.float32), rtol=2**-8)


def test_an_expert_group_that_no_token_reached_is_rounded_as_without(bundles, tmp_path):
    """Text alone: the vision experts keep the quantized values that they have without calibration."""
    (tmp_path / "text.json").write_text(json.dumps([[user("How many sides has a square?")]] * 2))
    export(MINI, tmp_path / "text", "onnx", "int4", QUIET, conversations=tmp_path / "text.json")
    plain, calibrated = (load_file(folder / DATA_FILE) for folder in (bundles / "int4", tmp_path / "text"))
    for name in plain:
        if ".experts." in name:
            assert np.array_equal(plain[name], calibrated[name]) == (".vision." in name), name
    info = Manifest.read(tmp_path / "text").calibration
    assert info is not None and any(".text." in name for name in info.checksums)
    assert not any(".vision." in name for name in info.checksums)
    assert compare_weights(tmp_path / "text", Manifest.read(tmp_path / "text"), MINI).faults == []


def test_an_expert_is_rounded_for_its_own_tokens_and_without_them_for_its_expert_groups(mini, tmp_path):
    """Chosen by twenty tokens that are unlike the others, its down projection serves these better than if by nobody."""
    config, checkpoint, _ = mini
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, config.text.hidden_size)).astype(np.float32)
    x[:20] = rng.standard_normal((20, 3)) @ rng.standard_normal((3, config.text.hidden_size))
    weights = build_graphs(config, ONNX["int4"])["decoder"].weights
    pair, rows = (weights[f"model.layers.1.mlp.experts.vision.{name}_proj"].pieces[3] for name in ("gate_up", "down"))
    assert isinstance(pair, Interleaved) and isinstance(rows, Rows)
    errors = {}
    for name, own in (("nobody's", 0), ("its own", 20)):
        with QuantizedStore(tmp_path / name) as store:
            decoder = calibrate.Decoder(config.text, checkpoint, weights, store)
            chosen = np.where(np.arange(4000)[:, None] < own, config.text.num_experts + 3, 0)
            calibrate.round_experts("vision", 1, calibrate.LayerStats({}, x, chosen), np.ones(4000, np.int64), decoder)
            assert len(store.positions) == 2 * config.text.num_experts
            qweight, scales = (part.reshape(config.text.hidden_size, -1) for part in store.take(rows))
        given = calibrate.product(x[:20], decoder.matrix(pair.gate), decoder.matrix(pair.up))
        errors[name] = np.linalg.norm(given @ (dequantize(qweight, scales, 4) - decoder.matrix(rows.source)).T)
        plain = np.linalg.norm(given @ decoder.matrix(rows.source).T)
    assert 0 < errors["its own"] < 0.7 * errors["nobody's"] < 0.1 * plain


def run(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True)


REFUSED = {
    "no file": (None, "found No such file"),
    "no JSON": ("[", "expected JSON"),
    "an object": ('{"role": "user"}', "expected a list"),
    "nothing": ("[]", "at least one message"),
    "an empty conversation": (json.dumps([[user("Hello")], []]), "at least one message"),
    "messages among conversations": (json.dumps([[user("Hello")], user("Hello")]), "a list of dict and list"),
    "a wrong role": (json.dumps([[user("Hello")], [{"role": "robot", "content": "x"}]]), "[1]: messages[0].role"),
    "no picture": (json.dumps([user("What?", {"type": "image", "path": "none.png"})]), "[0]: none.png"),
    "a remote picture": (
        json.dumps([user("What?", {"type": "image", "url": "https://x/y.png"})]),
        "nothing is fetched",
    ),
    "too long": (json.dumps([[user("Hello")], [user("What is it? " * 3000)]]), "[1]: expected at most 4096 tokens"),
}


@pytest.fixture
def refused(capsys):
    """refused(*arguments) -> what ernie-export printed, in this process, on its way to exit code 2."""

    def run(*arguments: Any) -> str:
        with pytest.raises(SystemExit) as exit:
            cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        assert (exit.value.code, captured.out) == (2, "")
        assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
        return captured.err

    return run


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_calibrated_on_is_one_line_and_leaves_nothing(tmp_path, refused, case):
    content, named = REFUSED[case]
    path = tmp_path / "data" / "given.json"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    line = refused(MINI, "-o", tmp_path / "out" / "bundle", "--precision", "int4", "--calibrate", path)
    assert str(path) in line and named in line
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_other_precisions_take_no_calibration(tmp_path, refused, precision):
    line = refused(MINI, "-o", tmp_path / "bundle", "--precision", precision, "--calibrate", tmp_path / "given.json")
    assert "--calibrate: expected --precision int4" in line and precision in line
    assert not list(tmp_path.iterdir())


def write_checkpoint(folder: Path, layers: int) -> int:
    """A checkpoint of random weights in mini-ernie's likeness, hidden size 512; returns the weights' bytes."""
    folder.mkdir()
    for path in MINI.iterdir():
        if path.suffix in (".json", ".jinja", ".ttf") and "safetensors" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((MINI / "config.json").read_text())
    config["text_config"] |= {"hidden_size": 512, "num_attention_heads": 16, "num_key_value_heads": 4}
    config["text_config"] |= {"num_hidden_layers": layers, "mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)}
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    members: dict[str, dict[str, Any]] = {}
    end = 0
    shapes = expected_tensors(ErnieConfig.from_hf(folder))
    for name, shape in shapes.items():
        begin, end = end, end + 4 * int(np.prod(shape))
        members[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    header = json.dumps(members).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, shape in shapes.items():
            scale = 1 if "norm" in name else 0.04
            (rng.standard_normal(shape, np.float32) * scale + ("norm" in name)).astype(np.float32).tofile(file)
    return end


def test_memory_is_that_of_one_layer(tmp_path):
    """Five layers and 58 MB of weights more, and three times the tokens, take at most 32 MiB more."""
    peaks = []
    sizes = []
    for layers, count in ((2, 4), (7, 12)):
        sizes.append(write_checkpoint(tmp_path / f"{layers}", layers))
        (tmp_path / "given.json").write_text(json.dumps([MIXED] * count))
        process = run(
            tmp_path / f"{layers}",
            "-o",
            tmp_path / "bundle",
            "--precision",
            "int4",
            "--calibrate",
            tmp_path / "given.json",
        )
        assert process.returncode == 0, process.stderr
        assert f"calibrated on {count} conversations" in process.stderr
        peaks.append(peak_memory(process.stderr))
    assert sizes[1] > sizes[0] + 50e6
    assert 50 < peaks[0] and peaks[1] < peaks[0] + 32, f"{peaks} MiB"


def test_a_terminal_sees_how_far_it_is(tmp_path):
    """Under a pseudo-terminal the bar of the calibration is drawn, and ends at 100 %."""
    import pty

    (tmp_path / "given.json").write_text(json.dumps([MIXED]))
    arguments = [MINI, "-o", tmp_path / "bundle", "--precision", "int4", "--calibrate", tmp_path / "given.json"]
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, *map(str, arguments)], stderr=follower, env=os.environ | {"TERM": "xterm", "COLUMNS": "150"}
    )
    os.close(follower)
    drawn = b""
    while True:
        try:
            drawn += os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
    os.close(leader)
    assert process.wait() == 0
    text = drawn.decode()
    assert "Calibrating on 1 conversations" in text and "Reading the conversations" in text
    assert re.search(r"Calibrating on 1 conversations of \d+ tokens[^\n]*100 %", text)
