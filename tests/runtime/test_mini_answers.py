"""The exported mini checkpoint answers held-out questions about generated scenes, end to end and without torch.

Wrong pixels, swapped frames, positions or expert groups all show here as wrong answers.
"""

import json
import shutil
import struct

import heldout
import pytest

from ernie_export.exporter.export import export
from ernie_export.runtime import load
from tests.paths import MINI
from tests.progress import QUIET

EACH = 5  # questions of each kind


@pytest.fixture(scope="module")
def questions():
    """Held-out questions of every kind."""
    return [sample for kind in heldout.KINDS for sample in heldout.heldout(kind, EACH, seed=1)]


def right(bundle, questions):
    """How many questions of each kind are answered word for word, thoughts and tool calls included."""
    counts: dict[str, int] = dict.fromkeys((sample.kind for sample in questions), 0)
    with load(bundle) as model:
        ends = model.manifest.model.eos_token_ids
        for sample in questions:
            messages, options = heldout.for_runtime(sample)
            found = model.generate(messages, max_new_tokens=200, **options).tokens
            words = [token for token in found if token not in ends]
            counts[sample.kind] += words == model.preprocessor.chat.encode(sample.answer)
    return counts


@pytest.mark.parametrize(
    ("target", "precision", "every"),
    [
        ("onnx", "fp32", 1),
        ("onnx", "fp16", 5),
        ("onnx", "int8", 1),
        ("onnx", "int4", 1),
        ("onnx-portable", "fp32", 5),
        ("onnx-portable", "fp16", 5),
        ("onnx-portable", "int8", 5),
        ("onnx-portable", "int4", 5),
        ("onnx-portable", "int4-fp16", 5),
    ],
)
def test_answers_are_right(questions, tmp_path, target, precision, every):
    """Every question, or two of each kind where another case covers what they would add."""
    export(MINI, tmp_path / "bundle", target, precision, QUIET)
    some = questions[::every]
    counts = right(tmp_path / "bundle", some)
    assert len(counts) == len(heldout.KINDS)
    assert sum(counts.values()) >= 0.95 * len(some), counts


def test_swapped_routers_show_as_wrong_answers(questions, tmp_path):
    """Exchange the two expert groups' routers by their names in safetensors headers: shapes and sizes stay."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(MINI, checkpoint)
    for shard in checkpoint.glob("*.safetensors"):
        data = shard.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        for name in [name for name in header if name.endswith("mlp.gate.weight")]:
            header[name], header[f"{name}_1"] = header[f"{name}_1"], header[name]
        text = json.dumps(header).encode()
        shard.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    export(checkpoint, tmp_path / "bundle", "onnx", "fp32", QUIET)
    counts = right(tmp_path / "bundle", questions)
    assert sum(counts.values()) < 0.5 * len(questions), counts
