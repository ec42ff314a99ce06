"""Weights that are none, or not in a form that is read, are refused in a line that says what they are."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ernie_export.common.errors import InvalidFile
from ernie_export.exporter.export import export
from tests.paths import MINI
from tests.progress import QUIET

POINTER = "version https://git-lfs.example/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4967\n"
# As GPTQModel 4 writes it into config.json, and alone into quantize_config.json.
GPTQ = {
    "bits": 4, "checkpoint_format": "gptq", "desc_act": False, "dynamic": None, "group_size": 128, "lm_head": False,
    "meta": {"damp_percent": 0.05, "quantizer": ["gptqmodel:4.2.0"], "true_sequential": True}, "pack_dtype": "int32",
    "quant_method": "gptq", "sym": True,
}  # fmt: skip
PACKED = 8  # weights of 4 bits in an int32


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(MINI, tmp_path / "checkpoint")


def refusal(checkpoint: Path, output: Path) -> InvalidFile:
    """The refusal of an export, which leaves nothing behind."""
    with pytest.raises(InvalidFile) as refused:
        export(checkpoint, output, progress=QUIET)
    assert not output.exists() and "\n" not in str(refused.value)
    return refused.value


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
def test_a_pointer_in_place_of_a_shard(checkpoint: Path, tmp_path: Path, name: str) -> None:
    (checkpoint / name).write_text(POINTER)
    refused = refusal(checkpoint, tmp_path / "bundle")
    assert refused.path == checkpoint / name and refused.found == "a git-lfs pointer in place of the file"
    assert "git lfs pull" in refused.hint


def test_a_pointer_in_place_of_all_weights(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").write_text(POINTER)
    assert refusal(checkpoint, tmp_path / "bundle").found == "a git-lfs pointer in place of the file"


def test_a_pointer_in_place_of_the_index(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(POINTER)
    assert refusal(checkpoint, tmp_path / "bundle").found == "a git-lfs pointer in place of the file"


def quantized(checkpoint: Path) -> None:
    """Give a checkpoint's decoder the tensors of GPTQModel: int4 in groups of 128, symmetric, no act-order."""
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if name.endswith("_proj.weight") and name.startswith("model.layers")]:
            rows, columns = tensors.pop(name).shape
            groups = -(-columns // 128)
            stem = name.removesuffix("weight")
            tensors[f"{stem}qweight"] = np.zeros((columns // PACKED, rows), np.int32)
            tensors[f"{stem}qzeros"] = np.zeros((groups, rows // PACKED), np.int32)
            tensors[f"{stem}scales"] = np.zeros((groups, rows), np.float16)
            tensors[f"{stem}g_idx"] = np.arange(columns, dtype=np.int32) // 128
        save_file(tensors, path, metadata={"format": "pt"})
    index = {name: path.name for path in checkpoint.glob("*.safetensors") for name in load_file(path)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (checkpoint / "quantize_config.json").write_text(json.dumps(GPTQ))


def test_a_checkpoint_of_gptqmodel(checkpoint: Path, tmp_path: Path) -> None:
    quantized(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text()) | {"quantization_config": GPTQ}
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused = refusal(checkpoint, tmp_path / "bundle")
    assert refused.path == checkpoint / "config.json" and refused.key == "quantization_config"
    assert refused.found == "weights of gptq, bits 4, group size 128"
    assert "export the checkpoint that it was made from" in refused.hint


def test_its_tensors_without_its_settings(checkpoint: Path, tmp_path: Path) -> None:
    quantized(checkpoint)
    refused = refusal(checkpoint, tmp_path / "bundle")
    assert refused.key is not None and refused.key.endswith("_proj.weight")
    assert refused.found.endswith("_proj.qweight, of a quantised checkpoint")
