"""Configuration and tensor layout against the PyTorch class: what it writes we expect, what it reads we read alike."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

from ernie_export.common.errors import UserError
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import check_layout, expected_tensors

MEDIA = dict(
    image_token_id=1, image_start_token_id=2, image_end_token_id=3,
    video_token_id=4, video_start_token_id=5, video_end_token_id=6,
)  # fmt: skip


def small(seed: int) -> dict[str, Any]:
    """A random configuration of the class that builds in milliseconds."""
    pick = random.Random(seed)
    kv_heads = pick.choice([1, 2])
    head_dim = pick.choice([8, 12, 16])
    spatial = pick.randint(1, head_dim // 4 - 1)
    layers = pick.randint(1, 4)
    experts = pick.randint(1, 5)
    heads = kv_heads * pick.choice([1, 2, 3])
    text = dict(
        vocab_size=pick.randint(8, 40),
        hidden_size=heads * head_dim if pick.random() < 0.5 else pick.choice([20, 24, 32]),
        intermediate_size=pick.randint(5, 30),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rope_parameters=dict(
            rope_type="default", rope_theta=1e4, mrope_section=[spatial, spatial, head_dim // 2 - 2 * spatial]
        ),
        use_bias=pick.random() < 0.5,
        mlp_layer_types=[pick.choice(["dense", "sparse"]) for _ in range(layers)],
        moe_num_experts=experts,
        moe_k=pick.randint(1, experts),
        moe_intermediate_size=[pick.randint(3, 12), pick.randint(3, 12)],
        moe_num_shared_experts=pick.choice([0, 1, 2]),
        tie_word_embeddings=pick.random() < 0.5,  # without effect: the top level's decides
        max_position_embeddings=pick.randint(16, 64),
    )
    vision_heads = pick.choice([1, 2, 3])
    vision = dict(
        depth=pick.randint(1, 3),
        num_heads=vision_heads,
        hidden_size=vision_heads * pick.choice([4, 8]),
        intermediate_size=pick.randint(5, 20),
        in_channels=pick.choice([1, 3]),
        patch_size=pick.choice([2, 4]),
        spatial_merge_size=pick.choice([1, 2, 3]),
    )
    return dict(text_config=text, vision_config=vision, tie_word_embeddings=pick.random() < 0.5, **MEDIA)


@pytest.mark.parametrize("seed", range(12))
def test_layout_is_what_save_pretrained_writes(tmp_path: Path, seed: int) -> None:
    options = small(seed)
    model = Ernie4_5_VLMoeForConditionalGeneration(Ernie4_5_VLMoeConfig(**options))
    if seed % 3 == 1:
        model = model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB" if seed % 2 else "1GB")
    config = ErnieConfig.from_hf(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert {name: entry.shape for name, entry in checkpoint.tensors.items()} == expected_tensors(config)
    check_layout(checkpoint, config)
    assert ("lm_head.weight" in checkpoint.tensors) == (not options["tie_word_embeddings"])
    text = options["text_config"]
    assert config.text.layer_types == tuple(text["mlp_layer_types"])
    assert config.text.mrope_section == tuple(text["rope_parameters"]["mrope_section"])
    # The embedding's values, to see that offsets count from the right place.
    embedding = model.model.language_model.embed_tokens.weight.detach().float().numpy()
    rows = checkpoint.read_rows("model.embed_tokens.weight", 1, 4)
    np.testing.assert_array_equal(rows.astype(np.float32), embedding[1:4])


def test_layout_of_the_released_model(tmp_path: Path) -> None:
    """The class's defaults are the released sizes: names and shapes on the meta device, 29.4 B parameters."""
    reference = Ernie4_5_VLMoeConfig()
    reference.save_pretrained(tmp_path)
    expected = expected_tensors(ErnieConfig.from_hf(tmp_path))
    with torch.device("meta"):
        model = Ernie4_5_VLMoeForConditionalGeneration(reference)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert sum(int(np.prod(shape)) for shape in expected.values()) == count
    assert f"{count / 1e9:.1f}" == "29.4"


READ_ALIKE: list[dict[str, Any]] = [
    {"text_config": {"mlp_layer_types": None}},
    {"text_config": {"moe_intermediate_size": None}},
    {"text_config": {"moe_num_experts": "dropped", "num_experts": 3, "moe_k": 1}},
    {"text_config": {"moe_k": "dropped", "num_experts_per_tok": 1}},
    {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}},
    {"text_config": {"rope_parameters": {"type": "default", "mrope_section": [1, 1, 2]}, "rope_theta": 7.0}},
    {"text_config": {"rope_parameters": None, "rope_scaling": {"mrope_section": [1, 1, 2]}, "rope_theta": 7.0}},
    {"text_config": {"head_dim": "dropped", "hidden_size": 256, "num_attention_heads": 2, "rope_parameters": None}},
    {"text_config": {"head_dim": "dropped", "hidden_size": 26, "num_attention_heads": 3, "num_key_value_heads": 1}},
    {"vision_config": {"rope_parameters": None}},
    {"vision_config": {"rope_parameters": {"rope_theta": 50.0, "rope_type": "default"}}},
    {"vision_config": {"depth": "dropped", "num_hidden_layers": 3}},
    {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
    {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}},
]


def saved(folder: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """config.json of a small model (head_dim 8, mrope [1, 1, 2]) with `changes` written into it."""
    options = small(0)
    options["text_config"] |= dict(
        head_dim=8, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, mlp_layer_types=None,
        moe_num_experts=3, moe_k=2, rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]),
    )  # fmt: skip
    Ernie4_5_VLMoeConfig(**options).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        place, edits = (config[key], value) if isinstance(value, dict) else (config, {key: value})
        for name, new in edits.items():
            place[name] = new
            if new == "dropped":
                del place[name]
    (folder / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("changes", READ_ALIKE, ids=str)
def test_optional_keys_are_read_as_the_class_reads_them(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path, changes)
    ours = ErnieConfig.from_hf(tmp_path)
    theirs = Ernie4_5_VLMoeConfig.from_pretrained(tmp_path)
    model = Ernie4_5_VLMoeForConditionalGeneration(theirs)
    decoder = model.model.language_model
    encoder = model.model.vision_tower
    text = theirs.text_config
    assert ours.text.head_dim == decoder.layers[0].self_attn.head_dim
    assert ours.text.mrope_section == tuple(decoder.rotary_emb.mrope_section)
    assert ours.text.rope_theta == text.rope_parameters["rope_theta"]
    assert ours.text.layer_types == tuple(text.mlp_layer_types)
    assert ours.text.moe_intermediate_size == tuple(text.moe_intermediate_size)
    assert (ours.text.num_experts, ours.text.experts_per_token) == (text.moe_num_experts, text.moe_k)
    assert ours.vision.rope_theta == theirs.vision_config.rope_parameters["rope_theta"]
    assert ours.vision.depth == len(encoder.blocks)
    assert ours.vision.norm_eps == encoder.ln.eps == model.model.resampler_model.spatial_linear.ln.eps
    assert ours.text.rms_norm_eps == model.model.resampler_model.after_norm.variance_epsilon
    tied = model.lm_head.weight is decoder.embed_tokens.weight
    assert ours.tie_word_embeddings == tied
    model.save_pretrained(tmp_path / "saved")
    check_layout(Checkpoint.open(tmp_path / "saved"), ours)


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config": {"head_dim": None}},
        {"text_config": {"num_key_value_heads": None}},
        {"text_config": {"moe_num_shared_experts": None}},
        {"text_config": {"mlp_layer_types": ["dense"]}},
        {"text_config": {"hidden_act": "no_such"}},
        {"text_config": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}},
        {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2]}}},
        {"text_config": {"hidden_size": "32"}},
        {"vision_config": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}},
        {"vision_config": {"patch_size": [2, 2]}},
    ],
    ids=str,
)
def test_what_the_class_cannot_build_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    saved(tmp_path, changes)
    with pytest.raises(Exception):  # noqa: B017 - whatever the class or its layers raise
        Ernie4_5_VLMoeForConditionalGeneration(Ernie4_5_VLMoeConfig.from_pretrained(tmp_path))
    with pytest.raises(UserError):
        ErnieConfig.from_hf(tmp_path)


@pytest.mark.parametrize(
    ("top", "text", "generation"),
    [
        (None, 7, None),
        (7, None, None),
        (5, 7, None),
        (None, [7, 3], None),
        (None, 7, {"eos_token_id": [3, 4]}),
        (None, 7, {"eos_token_id": 3}),
        (None, 7, {"use_cache": True}),
        (None, None, None),
    ],
)
def test_end_tokens_are_those_of_generate(tmp_path: Path, top: Any, text: Any, generation: Any) -> None:
    model = Ernie4_5_VLMoeForConditionalGeneration(Ernie4_5_VLMoeConfig(**small(1)))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["eos_token_id"], config["text_config"]["eos_token_id"] = top, text
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    loaded = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(tmp_path)
    expected = loaded._prepare_generation_config(None)[0].eos_token_id
    expected = expected if isinstance(expected, list) else [] if expected is None else [expected]
    assert list(ErnieConfig.from_hf(tmp_path).eos_token_ids) == expected
