"""Bundles whose manifest is true to files that do not belong together: refused in one line that names the file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.common.manifest import sha256
from ernie_export.runtime import load
from tests.mini import VOCABULARY
from tests.paths import MEDIA

SHAPES = str(MEDIA / "shapes.png")
QUESTION = [{"role": "user", "content": [{"type": "image", "path": SHAPES}, {"type": "text", "text": "What is it?"}]}]


@pytest.fixture(scope="module")
def exported(mini_bundle) -> Path:
    return mini_bundle


def edit_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))

    return change


def more_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    size = len(tokenizer["model"]["vocab"])
    tokenizer["model"]["vocab"] |= {f"▁more{number}": size + number for number in range(20)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def drop_output(folder: Path) -> None:
    """The decoder's logits under another name: a graph that loads, and cannot be used."""
    model = onnx.load(folder / "decoder.onnx", load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["other" if name == "logits" else name for name in node.output]
    next(output for output in model.graph.output if output.name == "logits").name = "other"
    (folder / "decoder.onnx").write_bytes(model.SerializeToString())


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no graph": (lambda b: (b / "vision.onnx").write_bytes(b"\x08\x0a\x12\xff"), "vision.onnx: expected a graph"),
    "another graph": (lambda b: shutil.copyfile(b / "vision.onnx", b / "resampler.onnx"), "resampler.onnx: expected"),
    "the decoder as encoder": (lambda b: shutil.copyfile(b / "decode.onnx", b / "vision.onnx"), "vision.onnx: exp"),
    "the output by another name": (drop_output, "decoder.onnx: expected a graph"),
    "weights of another model": (lambda b: (b / "weights.safetensors").write_bytes(b"x" * 1000), ".onnx: expected"),
    "more tokens than the embedding": (more_tokens, f"tokenizer.json: expected ids below {VOCABULARY}, the model's"),
    "another patch": (edit_json("preprocessor_config.json", patch_size=16), "patch_size: expected 14"),
    "another patch of clips": (edit_json("video_preprocessor_config.json", patch_size=28), "patch_size: expected 14"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_it_is_refused_in_one_line(exported: Path, tmp_path: Path, damage: str) -> None:
    spoil, expected = DAMAGE[damage]
    bundle = shutil.copytree(exported, tmp_path / "bundle")
    spoil(bundle)
    document = json.loads((bundle / MANIFEST).read_text())
    document["files"] = {
        name: {"bytes": (bundle / name).stat().st_size, "sha256": sha256(bundle / name)} for name in document["files"]
    }
    (bundle / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(UserError) as caught, load(bundle, threads=1) as model:
        model.generate(QUESTION, max_new_tokens=2)
    assert str(bundle) in str(caught.value) and expected in str(caught.value)
