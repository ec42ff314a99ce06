"""ernie-verify: passes on what was exported rightly, and says where a bundle parts from PyTorch."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ernie_export.common.errors import InvalidFile
from ernie_export.common.manifest import Manifest
from ernie_export.common.manifest_sections import VerificationInfo
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.cli import verify as verify_cli
from ernie_export.exporter.export import export
from ernie_export.exporter.verify.comparison import compare_tokens, divergence
from ernie_export.exporter.verify.intervals import mean_interval, proportion_interval
from ernie_export.exporter.verify.results import Conversation, Report
from ernie_export.exporter.verify.verify import answer_length
from ernie_export.graphs.precision import ONNX
from ernie_export.runtime import load
from tests.paths import MINI
from tests.progress import QUIET
from tools.faults.fault import sign
from tools.faults.graphs import GRAPHS
from tools.faults.runtime import RUNTIME

EQUAL_WIDTHS = {"moe_intermediate_size": [24, 24], "moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 1}
WITH_VISION_EXPERTS = {"eos_token_id": 2, "num_hidden_layers": 3}


@pytest.fixture
def verify(capsys):
    """verify(*arguments) -> exit code, standard output, standard error."""

    def run(*arguments):
        with pytest.raises(SystemExit) as exit:
            verify_cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return exit.value.code, captured.out, captured.err

    return run


def swap_expert_groups(model):
    """Exchange the text and vision experts, their routers and their biases in every sparse layer."""
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            if hasattr(layer.mlp, "text_moe"):
                text, vision = (
                    dict(getattr(layer.mlp, name).named_parameters()) for name in ("text_moe", "vision_moe")
                )
                for name, parameter in text.items():
                    kept = parameter.clone()
                    parameter.copy_(vision[name])
                    vision[name].copy_(kept)


@pytest.fixture(scope="module")
def right(make_exported, tmp_path_factory):
    text = EQUAL_WIDTHS | WITH_VISION_EXPERTS
    return make_exported(tmp_path_factory.mktemp("right"), 11, text)


@pytest.mark.parametrize("target", ["onnx", "onnx-portable"])
def test_passes_on_what_was_exported(verify, right, target):
    code, out, _ = verify(right.bundles[target], "--against", right.folder, "--json")
    report = json.loads(out)
    assert code == 0 and report["failures"] == []
    layers = [name for name in report["probes"] if name.startswith("layer ") and name[-1].isdigit()]
    assert (
        report["diagnosis"] == ""
        and len(layers) == 3
        and {"vision encoder", "resampler", "logits", "decode logits"} <= set(report["probes"])
    )
    assert max(stage["error"] for stage in report["probes"].values()) < 2e-5
    assert all(stage["agreed"] == stage["routed"] > 0 for name, stage in report["probes"].items() if name in layers[1:])
    assert [conversation["diverged"] for conversation in report["conversations"]] == [None] * 5
    assert (
        [conversation["agreed"] for conversation in report["conversations"]]
        == [conversation["tokens"] for conversation in report["conversations"]]
        == [16] * 5
    )
    assert 0 <= report["kl"] < 1e-9
    assert report["weights"]["faults"] == [] and report["weights"]["exact"] > 30
    assert [entry["group"] for entry in report["coverage"]] == ["text", "vision"]
    assert all(0 < entry["reached"] <= entry["experts"] == 12 for entry in report["coverage"])


def test_an_expert_that_no_conversation_reaches_is_compared_by_its_weights(verify, make_exported, tmp_path):
    """The router's bias keeps every token from one text expert, which is 1 % too large in the bundle."""

    def avoid(model):
        with torch.no_grad():
            for layer in model.model.language_model.layers:
                if hasattr(layer.mlp, "text_moe"):
                    layer.mlp.text_moe.gate.moe_statics.e_score_correction_bias[..., 3] = -10

    made = make_exported(tmp_path, 11, EQUAL_WIDTHS | WITH_VISION_EXPERTS, change=avoid, targets=("onnx",))
    bundle = made.bundles["onnx"]
    names = read_header(bundle / "weights.safetensors")
    entry = next(entry for name, entry in names.items() if "gate_up" in name and len(entry.shape) == 3)
    np.memmap(entry.file, np.float32, "r+", entry.offset, entry.shape)[3] *= np.float32(1.01)
    sign(bundle)
    code, out, _ = verify(bundle, "--against", made.folder, "--json")
    report = json.loads(out)
    assert code == 1 and report["coverage"][0]["reached"] <= 10
    assert [line for line in report["failures"] if not line.startswith("weights: ")] == []
    assert ".experts.3.gate_proj.weight: row 0" in report["failures"][0]


def test_random_inputs_reach_experts_that_no_conversation_does(verify, make_exported, tmp_path):
    text = EQUAL_WIDTHS | WITH_VISION_EXPERTS | {"moe_num_experts": 64, "moe_k": 2}

    def unbiased(model):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "e_score_correction_bias" in name:
                    parameter.zero_()

    made = make_exported(tmp_path, 11, text, change=unbiased, targets=("onnx",))
    reached = {}
    for option in ("--quick", "--tolerance=1e-4"):
        code, out, _ = verify(made.bundles["onnx"], "--against", made.folder, "--json", option)
        report = json.loads(out)
        assert code == 0 and len(report["conversations"]) == (2 if option == "--quick" else 5)
        assert all(entry["experts"] == 128 for entry in report["coverage"])
        reached[option] = sum(entry["reached"] for entry in report["coverage"])
        assert (report["random_inputs"] > 0) == (option != "--quick")
    assert reached["--tolerance=1e-4"] > 1.4 * reached["--quick"]


def test_conversations_of_the_user_are_compared_too(verify, right, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([[{"role": "user", "content": "Hello"}], [{"role": "user", "content": "Why?"}]]))
    code, out, _ = verify(right.bundles["onnx"], "--against", right.folder, "--json", "--messages", path)
    names = [conversation["name"] for conversation in json.loads(out)["conversations"]]
    assert code == 0 and names[-2:] == ["mine.json [0]", "mine.json [1]"]


def test_fails_on_swapped_expert_groups(verify, right, make_exported, tmp_path):
    swapped = make_exported(
        tmp_path, 11, EQUAL_WIDTHS | WITH_VISION_EXPERTS, change=swap_expert_groups, targets=("onnx",)
    )
    code, out, _ = verify(swapped.bundles["onnx"], "--against", right.folder, "--json")
    report = json.loads(out)
    assert code == 1
    assert any("tokens routed elsewhere" in line for line in report["failures"])
    # What comes before the first sparse layer is untouched, and the report shows it.
    assert report["probes"]["layer 0"]["error"] < 1e-5 < 1e-2 < report["probes"]["layer 1"]["error"]
    assert report["kl"] > ONNX["fp32"].tolerance.kl and any("divergence" in line for line in report["failures"])


def test_a_tolerance_of_nothing_is_not_met_and_the_report_says_so(verify, right, tmp_path):
    path = tmp_path / "<report>.html"
    code, out, _ = verify(right.bundles["onnx"], "--against", right.folder, "--tolerance", "0", "--report", path)
    assert code == 1 and "past the limits" in out
    page = path.read_text()
    assert page.count('<tr class="wrong">') == page.count("<rect ") > 10
    assert "vision block 0 is the first that differs" in page and "ernie-export" in page
    assert not re.search(r"src=|href=|url\(|@import", page)


def recorded(bundle: Path) -> VerificationInfo:
    record = Manifest.read(bundle).verification
    assert record is not None
    return record


def test_a_bundle_that_passed_can_be_required(verify, right, tmp_path):
    """The report's hash is recorded; a changed file, listed anew, or a failure later, take the record away."""
    bundle = tmp_path / "bundle"
    shutil.copytree(right.bundles["onnx"], bundle)
    with pytest.raises(InvalidFile, match="verification: expected a record of ernie-verify --record, found none"):
        load(bundle, require_verified=True)
    code, out, _ = verify(bundle, "--against", right.folder, "--record", "--json")
    assert code == 0 and recorded(bundle).report_sha256 == hashlib.sha256(out.encode()).hexdigest()
    with load(bundle, require_verified=True):
        pass
    (bundle / "config.json").write_text((bundle / "config.json").read_text() + "\n")
    sign(bundle)
    with pytest.raises(InvalidFile, match="expected a record of ernie-verify --record, found one of other files"):
        load(bundle, require_verified=True)
    code, _, _ = verify(bundle, "--against", right.folder, "--record", "--tolerance", "0")
    assert code == 1 and Manifest.read(bundle).verification is None
    code, out, err = verify(bundle, "--against", right.folder, "--record", "--weights-only")
    assert (code, out) == (2, "") and "--record: expected a comparison of what is computed" in err


def test_a_report_that_cannot_be_written_is_one_line(verify, right, tmp_path):
    code, out, err = verify(right.bundles["onnx"], "--against", right.folder, "--report", tmp_path / "no" / "x.html")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "cannot write the report" in err


def test_wrong_folders_are_one_line(verify, right, tmp_path):
    for bundle, checkpoint in ((tmp_path, right.folder), (right.bundles["onnx"], tmp_path)):
        code, out, err = verify(bundle, "--against", checkpoint)
        assert code == 2 and out == "" and err.count("\n") == 1 and str(tmp_path) in err


def test_divergence_is_that_of_the_distributions():
    """Against a sum written out; adding a constant to all logits changes nothing."""
    p = np.log([[0.5, 0.25, 0.25]])
    q = np.log([[0.25, 0.5, 0.25]])
    assert divergence(p, q) == pytest.approx([0.5 * np.log(2) - 0.25 * np.log(2)])
    assert divergence(p + 700, p - 700) == pytest.approx([0], abs=1e-12)


def test_choices_are_compared_at_every_token():
    expected = np.array([[3.0, 1, 0], [0, 2, 1], [1, 0, 5]])
    found = np.array([[3.0, 1, 0], [0, 2, 2.5], [1, 0, 5]])
    conversation = compare_tokens("x", expected, found, decode=lambda tokens: " ".join(map(str, tokens)))
    assert (conversation.tokens, conversation.agreed, conversation.diverged) == (3, 2, 1)
    assert conversation.gap == pytest.approx((2 - 1) / np.sqrt(5))
    assert (conversation.reference, conversation.bundle) == ("0 1 2", "0 2 2")


def test_the_conversations_that_differ_most_come_first():
    agree = Conversation("same", 16, None, None, 16, 0.5)
    differ = [Conversation(f"{kl}", 16, 3, 0.5, 15, kl) for kl in (0.1, 0.4, 0.2, 0.3)]
    report = Report("int4", ONNX["int4"].tolerance, conversations=[agree, *differ])
    assert [conversation.name for conversation in report.worst] == ["0.4", "0.3", "0.2"]


def test_intervals_hold_the_value_in_95_of_100_samples():
    """Of a proportion, of the mean of a skewed distribution, and Wilson's own property at the ends."""
    rng = np.random.default_rng(1)
    held = 0
    for hits in rng.binomial(80, 0.9, 2000):
        low, high = proportion_interval(int(hits), 80)
        held += low <= 0.9 <= high
    assert 0.93 < held / 2000 < 0.97
    held = 0
    for values in rng.gamma(2, 1, (300, 40)):
        low, high = mean_interval(list(values), [16] * 40)
        held += low <= 2 <= high
    assert 0.9 < held / 300 < 0.97
    assert proportion_interval(0, 10)[0] == 0 and proportion_interval(10, 10)[1] == 1
    assert mean_interval([0.25], [16]) == (0.25, 0.25)


@pytest.mark.parametrize(("precision", "kl", "fails"), [("int4", 0.1, False), ("int4", 0.3, True), ("int8", 0.1, True)])
def test_a_lower_precision_is_held_to_its_distributions(precision, kl, fails):
    conversations = [Conversation("a", 16, 3, 0.5, 15, kl / 2), Conversation("b", 16, None, None, 16, 3 * kl / 2)]
    report = Report(precision, ONNX[precision].tolerance, conversations=conversations)
    assert report.kl == pytest.approx(kl) and bool(report.failures) == fails
    assert Report(
        precision, ONNX[precision].tolerance, conversations=[Conversation("a", 16, None, None, 16, float("nan"))]
    ).failures


def test_questions_are_asked_on_both_sides(verify, right, tmp_path):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What do you see?"}]}]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps([{"messages": messages, "answer": "nothing"}] * 2))
    code, out, _ = verify(right.bundles["onnx"], "--against", right.folder, "--json", "--questions", path)
    first, second = json.loads(out)["questions"]
    assert code == 0 and first == second and first["answer"] == "nothing"
    assert first["reference"] == first["bundle"] != ""
    code, out, _ = verify(right.bundles["onnx"], "--against", right.folder, "--questions", path)
    assert "bundle: 0 of 2 questions answered exactly" in out


@pytest.mark.parametrize("text", ["", "{}", "[]", "[1]", '[{"messages": []}]', '[{"messages": 1, "answer": "a"}]'])
def test_a_malformed_file_of_questions_is_one_line(verify, right, tmp_path, text):
    path = tmp_path / "questions.json"
    path.write_text(text)
    for given in (path, tmp_path / "none.json"):
        code, out, err = verify(right.bundles["onnx"], "--against", right.folder, "--questions", given)
        assert code == 2 and out == "" and err.count("\n") == 1 and str(given) in err


def test_an_answer_ends_with_the_first_token_that_ends_one():
    """A trained model has learned nothing of what would follow: rounding alone changes it."""
    assert answer_length([5, 2, 7, 2], ends=(2, 3)) == 2
    assert answer_length([5, 7, 9], ends=(2, 3)) == 3


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_bundle_is_within_its_limits(verify, tmp_path, precision):
    """Every stage of the trained checkpoint is compared, routing too, and differs by what the precision is allowed."""
    export(MINI, tmp_path / "bundle", "onnx", precision, QUIET)
    code, out, _ = verify(tmp_path / "bundle", "--against", MINI, "--json")
    report = json.loads(out)
    assert code == 0 and report["failures"] == []
    assert min(conversation["tokens"] for conversation in report["conversations"]) < 16
    routed = {name: stage["routed"] for name, stage in report["probes"].items() if stage["routed"]}
    assert set(routed) == {f"layer {number}" for number in range(1, 6)} and len(set(routed.values())) == 1
    assert report["probes"]["vision encoder"]["error"] < 1e-5 < 1e-3 < report["losses"]["layer 3"] < 0.5


STRUCTURE = {
    fault.name: fault
    for fault in (*GRAPHS, *RUNTIME)
    if fault.name
    in (
        "patch order",
        "a norm's epsilon, decode steps",
        "axes of the rotation",
        "positions of height and width",
        "weights of another norm",
        "cache written one place off in decode steps",
        "exchanged routers",
        "the resampler's pairs of frames",
        "a tokenizer of another model",
        "positions off by one after a clip",
    )
}


@pytest.mark.parametrize("fault", STRUCTURE)
def test_the_first_difference_is_named(verify, right, tmp_path, fault):
    """benchmarks/verify_campaign.py plants these and all others in bundles of every precision."""
    bundle = tmp_path / "bundle"
    shutil.copytree(right.bundles["onnx"], bundle)
    planted = STRUCTURE[fault].plant(bundle, np.random.default_rng(0))
    assert planted is not None
    sign(bundle)
    with planted.during():
        code, out, _ = verify(bundle, "--against", right.folder, "--json")
    assert code == 1
    assert re.match(planted.sentence, json.loads(out)["diagnosis"])


def test_a_fault_of_a_graph_stands_out_from_four_bits(verify, tmp_path):
    """Routers that are exchanged in one layer of the trained checkpoint, beside weights that are rounded by a tenth."""
    bundle = tmp_path / "bundle"
    export(MINI, bundle, "onnx", "int4", QUIET)
    planted = STRUCTURE["exchanged routers"].plant(bundle, np.random.default_rng(0))
    assert planted is not None
    sign(bundle)
    code, out, _ = verify(bundle, "--against", MINI, "--json")
    report = json.loads(out)
    assert code == 1 and re.match(planted.sentence, report["diagnosis"])
    assert report["losses"]["layer 0"] > 0.05 and report["probes"]["layer 0"]["error"] < 1e-5
