"""Checkpoints under every name and in every form that the class loads export to the same weights."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Ernie4_5_VLMoeForConditionalGeneration

from ernie_export.common.errors import InvalidFile
from ernie_export.exporter.export import export
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.target import DATA_FILE
from tests.parity.conftest import PROCESSOR_FILES, fill, random_config
from tests.paths import MINI
from tests.progress import QUIET

TEXT = {"num_hidden_layers": 3, "moe_num_experts": 3, "moe_k": 2, "moe_num_shared_experts": 1, "use_bias": True}
Tensors = dict[str, torch.Tensor]


class Noted(Progress):
    """Keeps what an export ignores."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_ignored(self, ignored: object) -> None:
        self.names = [f"{path.name}: {name}" for path, name in ignored]  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A checkpoint as save_pretrained writes it, the folder of another in the form of the modules, and its weights."""
    folder = tmp_path_factory.mktemp("saved")
    model = Ernie4_5_VLMoeForConditionalGeneration(
        random_config(5, TEXT, {"depth": 1}, tie_word_embeddings=request.param)
    )
    fill(model, 5)
    for name, original in (("original", True), ("modules", False)):
        model.save_pretrained(folder / name, save_original_format=original)
        for file in PROCESSOR_FILES:
            shutil.copyfile(MINI / file, folder / name / file)
    manifest = export(folder / "original", folder / "bundle", progress=QUIET)
    return folder, manifest.files[DATA_FILE].sha256


def rewritten(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Change the tensors of a checkpoint."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in change(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def renamed(pattern: str, replacement: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {re.sub(pattern, replacement, name): tensor for name, tensor in tensors.items()}


DECODER = r"^model\.(?=embed_tokens|layers|norm)"
NAMES = {
    "without model.": (r"^model\.", ""),
    "model. twice": (r"^model\.", "model.model."),
    "the head within": (r"^lm_head", "model.lm_head"),
    "decoder in its module": (DECODER, "model.language_model."),
    "encoder by its old name": (r"^model\.vision_model", "vision_model"),
    "encoder by its module": (r"^model\.vision_model", "model.vision_tower"),
    "resampler by its modules": (r"(spatial|temporal)_linear\.0", r"\1_linear.fc1"),
}


@pytest.mark.parametrize("name", NAMES)
def test_other_names_of_the_class(saved: tuple[Path, str], tmp_path: Path, name: str) -> None:
    folder, digest = saved
    changed = rewritten(shutil.copytree(folder / "original", tmp_path / "checkpoint"), renamed(*NAMES[name]))
    _, info = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(changed, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    manifest = export(changed, tmp_path / "bundle", progress=QUIET)
    assert manifest.files[DATA_FILE].sha256 == digest


def test_the_form_of_the_modules(saved: tuple[Path, str], tmp_path: Path) -> None:
    folder, digest = saved
    names = set(load_file(folder / "modules" / "model.safetensors"))
    assert any("text_moe.experts.gate_up_proj" in name for name in names)
    manifest = export(folder / "modules", tmp_path / "bundle", progress=QUIET)
    assert manifest.files[DATA_FILE].sha256 == digest


EXTRA = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
    "model.mtp_block.0.input_layernorm.weight": torch.zeros(4),
    "model.layers.9.mlp.down_proj.weight": torch.zeros(4, 4),
    "ids": torch.zeros(3, dtype=torch.int64),
}


def test_tensors_that_the_class_ignores_are_named(saved: tuple[Path, str], tmp_path: Path) -> None:
    folder, digest = saved
    copy = shutil.copytree(folder / "original", tmp_path / "checkpoint")
    rewritten(copy, lambda tensors: tensors | EXTRA)
    noted = Noted()
    assert export(copy, tmp_path / "bundle", progress=noted).files[DATA_FILE].sha256 == digest
    assert sorted(noted.names) == sorted(f"model.safetensors: tensor {name}" for name in EXTRA)


def test_a_single_file_counts_whatever_an_index_says(saved: tuple[Path, str], tmp_path: Path) -> None:
    folder, digest = saved
    copy = shutil.copytree(folder / "original", tmp_path / "checkpoint")
    names = load_file(copy / "model.safetensors")
    stale = "model-00001-of-00001.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in names.items()}, copy / stale)
    for files in (dict.fromkeys(names, "model.safetensors"), dict.fromkeys(names, stale)):
        (copy / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        noted = Noted()
        assert export(copy, tmp_path / "bundle", progress=noted).files[DATA_FILE].sha256 == digest
        assert noted.names == ["model.safetensors.index.json: "]
        model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(copy)
        embedding = model.model.language_model.embed_tokens.weight
        assert torch.equal(embedding, names["model.embed_tokens.weight"])


def test_a_tied_model_may_have_a_head_that_is_its_embedding(saved: tuple[Path, str], tmp_path: Path) -> None:
    folder, digest = saved
    copy = shutil.copytree(folder / "original", tmp_path / "checkpoint")
    tensors = load_file(copy / "model.safetensors")
    if "lm_head.weight" in tensors:
        pytest.skip("not tied")
    embedding = tensors["model.embed_tokens.weight"]
    rewritten(copy, lambda tensors: tensors | {"lm_head.weight": embedding})
    noted = Noted()
    assert export(copy, tmp_path / "bundle", progress=noted).files[DATA_FILE].sha256 == digest
    assert noted.names == ["model.safetensors: tensor lm_head.weight"]
    rewritten(copy, lambda tensors: tensors | {"lm_head.weight": embedding + torch.eye(*embedding.shape)})
    with pytest.raises(InvalidFile, match="tensor lm_head.weight: expected the embedding's values"):
        export(copy, tmp_path / "bundle", progress=QUIET)
    rewritten(copy, lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"})
    rewritten(
        copy,
        lambda tensors: {k: v for k, v in tensors.items() if "embed_tokens" not in k} | {"lm_head.weight": embedding},
    )
    assert export(copy, tmp_path / "bundle", progress=QUIET).files[DATA_FILE].sha256 == digest
