"""A generated checkpoint is what the exporter takes, its values are fit to compute with, its holes take no space."""

import json

import click
import numpy as np
import pytest
from make_checkpoint import write_checkpoint
from tokenizers import Tokenizer

from ernie_export.exporter.export import export
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import check_layout
from ernie_export.runtime.preprocess import Preprocessor
from tests.paths import MINI
from tests.progress import QUIET

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_intermediate_size": [64, 64],
    "moe_num_experts": 4,
    "moe_k": 2,
    "vocab_size": 2000,
    "mrope_section": [3, 3, 2],
}
VISION = {"hidden_size": 32, "depth": 2, "num_heads": 2, "intermediate_size": 64}


@pytest.fixture
def make(tmp_path):
    """make(dtype, **options): a checkpoint of a toy shape, from fewer random values than most of its tensors have."""

    def made(dtype, pool=1001, **options):
        shape = {"dtype": dtype, "shard_bytes": 100_000, "image_pixels": 12544, "text": TEXT, "vision": VISION}
        write_checkpoint(tmp_path / "made", shape, pool=pool, **options)
        return tmp_path / "made"

    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_exporter_takes_it(make, dtype):
    folder = make(dtype)
    config = ErnieConfig.from_hf(folder)
    checkpoint = Checkpoint.open(folder)
    check_layout(checkpoint, config)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert {entry.dtype for entry in checkpoint.tensors.values()} == {"F32" if dtype == "float32" else "BF16"}
    Preprocessor.from_folder(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 2000 and tokenizer.id_to_token(1999) == "▁filler1999"
    for token in ("<|IMAGE_PLACEHOLDER|>", "<|VIDEO_PLACEHOLDER|>"):
        assert tokenizer.token_to_id(token) == Tokenizer.from_file(str(MINI / "tokenizer.json")).token_to_id(token)
    export(folder, folder / "bundle", "onnx", "fp32", QUIET)


def test_products_keep_their_size_and_no_two_tensors_are_alike(make):
    checkpoint = Checkpoint.open(make("float32"))
    seen = []
    for name, entry in checkpoint.tensors.items():
        values = checkpoint.read_rows(name, 0, entry.shape[0])
        assert np.isfinite(values).all()
        if len(entry.shape) > 1 and "moe_statics" not in name:
            matrix = values if ".gate.weight" in name else values.T  # routers alone are stored as (in, out)
            y = np.random.default_rng(0).standard_normal((100, len(matrix))) @ matrix
            assert 0.5 < y.std() < 1.5, name
            seen.append(values.reshape(-1)[:16].tobytes())
    assert len(set(seen)) > 0.95 * len(seen)


def test_clones_are_what_the_exporter_takes_or_refused_where_files_share_no_blocks(make):
    """Whole pages are cloned: the widths give tensors of them. Most file systems refuse."""
    try:
        folder = make("float32", pool=50_001, clone=True)
    except click.ClickException as e:
        assert "--clone" in e.message and "expected XFS or Btrfs" in e.message
        return
    check_layout(Checkpoint.open(folder), ErnieConfig.from_hf(folder))
    assert not list(folder.glob("pool-*"))


def test_layers_and_holes(make):
    folder = make("bfloat16", layers=2, holes=True)
    config = ErnieConfig.from_hf(folder)
    checkpoint = Checkpoint.open(folder)
    check_layout(checkpoint, config)
    assert json.loads((folder / "config.json").read_text())["text_config"]["mlp_layer_types"] == ["dense", "sparse"]
    zeros = {
        name for name, entry in checkpoint.tensors.items() if not checkpoint.read_rows(name, 0, entry.shape[0]).any()
    }
    assert zeros == {name for name in checkpoint.tensors if any(f".experts.{e}." in name for e in range(4, 8))}
    sizes = [path.stat() for path in folder.glob("model-*.safetensors")]
    assert sum(s.st_blocks * 512 for s in sizes) < sum(s.st_size for s in sizes) - 40_000
