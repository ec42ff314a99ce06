"""The original remote-code layout of config.json: read like the transformers layout, or refused by key."""

import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_export.common.errors import UserError
from ernie_export.graphs.config import ErnieConfig


class Edit(Enum):
    """Its member's name is the same in every process, which test ids need."""

    DROP = "drop"


DROP = Edit.DROP
# What the released 28B-A3B model's original revision says, as far as public sources show it.
RELEASED: dict[str, Any] = json.loads(Path(__file__).with_name("original_config.json").read_text())


def edited(changes: dict[str, Any]) -> dict[str, Any]:
    """RELEASED with dotted keys set, or dropped."""
    document = json.loads(json.dumps(RELEASED))
    for name, value in changes.items():
        inside = document
        *path, key = name.split(".")
        for part in path:
            inside = inside[part]
        if value is DROP:
            del inside[key]
        else:
            inside[key] = value
    return document


def read(folder: Path, document: object) -> ErnieConfig:
    (folder / "config.json").write_text(json.dumps(document))
    return ErnieConfig.from_hf(folder)


def test_reads_the_released_model(tmp_path: Path) -> None:
    config = read(tmp_path, RELEASED)
    text = config.text
    vision = config.vision
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (103424, 2560, 12288)
    assert (text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim) == (28, 20, 4, 128)
    assert (text.rms_norm_eps, text.rope_theta, text.mrope_section) == (1e-5, 500000.0, (22, 22, 20))
    assert text.layer_types == ("dense",) + ("sparse",) * 27
    assert (text.num_experts, text.experts_per_token, text.moe_intermediate_size) == (64, 6, (1536, 512))
    assert (text.num_shared_experts, text.norm_min, text.use_bias, text.max_positions) == (2, 1e-12, False, 131072)
    assert (vision.depth, vision.hidden_size, vision.num_heads, vision.intermediate_size) == (32, 1280, 16, 5120)
    assert (vision.in_channels, vision.patch_size, vision.norm_eps, vision.rope_theta) == (3, 14, 1e-6, 10000.0)
    assert (vision.spatial_merge_size, vision.temporal_merge_size) == (2, 2)
    assert (config.image_token_id, config.image_start_token_id, config.image_end_token_id) == (100295, 101304, 101305)
    assert (config.video_token_id, config.video_start_token_id, config.video_end_token_id) == (103367, 101306, 101307)
    assert (config.tie_word_embeddings, config.eos_token_ids) == (True, (2,))


SPARSE_EVEN = tuple("sparse" if layer % 2 and 3 <= layer <= 20 else "dense" for layer in range(28))


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"freq_allocation": 4}, "text.mrope_section", (30, 30, 4)),
        ({"freq_allocation": DROP}, "text.mrope_section", (22, 22, 20)),
        ({"rope_scaling": {"type": "default", "mrope_section": [22, 22, 20]}}, "text.mrope_section", (22, 22, 20)),
        ({"rope_scaling": None}, "text.mrope_section", (22, 22, 20)),
        ({"head_dim": 128}, "text.head_dim", 128),
        ({"head_dim": None}, "text.head_dim", 128),
        ({"moe_num_shared_experts": None}, "text.num_shared_experts", 0),
        ({"moe_num_shared_experts": DROP}, "text.num_shared_experts", 0),
        ({"use_bias": True}, "text.use_bias", True),
        ({"use_bias": DROP}, "text.use_bias", False),
        ({"moe_layer_end_index": -1}, "text.layer_types", ("dense",) + ("sparse",) * 27),
        (
            {"moe_layer_interval": 2, "moe_layer_start_index": [3, 2], "moe_layer_end_index": [19, 20]},
            "text.layer_types",
            SPARSE_EVEN,
        ),
        ({"vision_config.mlp_ratio": 4.5}, "vision.intermediate_size", 5760),
        ({"vision_config.intermediate_size": 5120}, "vision.intermediate_size", 5120),
        ({"image_token_id": 100295}, "image_token_id", 100295),
        ({"image_start_token_id": 7, "video_token_id": 8}, "image_start_token_id", 7),
        ({"image_start_token_id": 7, "video_token_id": 8}, "video_token_id", 8),
        ({"moe_num_attn_experts": 0, "compression_ratio": 1}, "text.num_experts", 64),
    ],
    ids=str,
)
def test_takes_the_converter_s_value(tmp_path: Path, changes: dict[str, Any], field: str, expected: object) -> None:
    found: object = read(tmp_path, edited(changes))
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sliding_window": 8}, "sliding_window: expected a known key"),
        ({"vision_config.window_size": 8}, "vision_config.window_size: expected a known key"),
        ({"text_config": {}}, "text_config: expected no such key, or null"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: expected unquantised"),
        ({"rope_parameters": {}}, "rope_parameters: expected a known key"),
        ({"hidden_size": DROP}, "hidden_size: expected"),
        ({"hidden_size": 0}, "hidden_size: expected a whole number from 1"),
        ({"rms_norm_eps": DROP}, "rms_norm_eps"),
        ({"rope_theta": DROP}, "rope_theta"),
        ({"tie_word_embeddings": DROP}, "tie_word_embeddings"),
        ({"im_patch_id": DROP}, "im_patch_id: expected the id of <|IMAGE_PLACEHOLDER|>, found no such key"),
        ({"image_token_id": 5}, "image_token_id: expected 100295, found 5"),
        ({"im_patch_id": 103424}, "image_token_id: expected a token below"),
        ({"moe_num_experts": 64}, "moe_num_experts: expected a list of 2"),
        ({"moe_num_experts": [64, 32]}, "moe_num_experts: expected as many vision experts as text experts"),
        ({"moe_layer_interval": DROP}, "moe_layer_interval"),
        ({"moe_layer_start_index": [1, 2]}, "moe_layer_start_index: expected the same sparse layers"),
        ({"moe_layer_end_index": [27, 26]}, "moe_layer_start_index: expected the same sparse layers"),
        ({"moe_layer_end_index": [27]}, "moe_layer_end_index: expected a layer, or one for each expert group"),
        ({"moe_layer_end_index": [27, "28"]}, "moe_layer_end_index"),
        ({"moe_layer_start_index": None}, "moe_layer_start_index"),
        ({"moe_use_aux_free": DROP}, "moe_use_aux_free: expected true, found no such key"),
        ({"moe_use_aux_free": False}, "moe_use_aux_free: expected true, found false"),
        ({"moe_gate": "top2"}, "moe_gate: expected topk, found top2"),
        ({"moe_gate": DROP}, "moe_gate"),
        ({"moe_norm_gate_logits": False}, "moe_norm_gate_logits: expected true"),
        ({"moe_gate_act": "sigmoid"}, "moe_gate_act"),
        ({"moe_num_attn_experts": 8}, "moe_num_attn_experts"),
        ({"hidden_act": "gelu"}, "hidden_act: expected silu, found gelu"),
        ({"use_rmsnorm": False}, "use_rmsnorm"),
        ({"use_rmsnorm": None}, "use_rmsnorm"),
        ({"compression_ratio": 2.0}, "compression_ratio: expected 1.0, found 2.0"),
        ({"rope_3d": False}, "rope_3d"),
        ({"freq_allocation": 19}, "freq_allocation: expected a whole number that leaves an even rest of 64"),
        ({"freq_allocation": 64}, "freq_allocation"),
        ({"freq_allocation": "20"}, "freq_allocation"),
        ({"head_dim": 64}, "head_dim: expected hidden_size // num_attention_heads = 128, found 64"),
        ({"rope_scaling": {"mrope_section": [20, 20, 24]}}, "rope_scaling.mrope_section: expected [22, 22, 20]"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling.type"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling.factor"),
        ({"use_temporal_conv": False}, "use_temporal_conv"),
        ({"temporal_conv_size": DROP}, "temporal_conv_size"),
        ({"temporal_conv_size": 4}, "vision_config.temporal_merge_size: expected 2, found 4"),
        ({"spatial_conv_size": 4}, "spatial_conv_size: expected 2, found 4"),
        ({"spatial_conv_size": DROP}, "spatial_conv_size"),
        ({"pixel_hidden_size": 1024}, "pixel_hidden_size: expected 1280, found 1024"),
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers: expected 0, found 1"),
        ({"vision_config": DROP}, "vision_config: expected an object"),
        ({"vision_config.model_type": "qwen2_vl"}, "vision_config.model_type: expected DFNRope_vision_transformer"),
        ({"vision_config.embed_dim": 1024}, "vision_config.embed_dim: expected 1280, found 1024"),
        ({"vision_config.in_chans": 1}, "vision_config.in_chans"),
        ({"vision_config.spatial_patch_size": 16}, "vision_config.spatial_patch_size: expected 14, found 16"),
        ({"vision_config.mlp_ratio": DROP}, "vision_config.mlp_ratio"),
        ({"vision_config.mlp_ratio": 4.0001}, "vision_config.mlp_ratio: expected a ratio that makes a whole number"),
        ({"vision_config.mlp_ratio": "4"}, "vision_config.mlp_ratio"),
        ({"vision_config.intermediate_size": 5000}, "vision_config.intermediate_size: expected 5120, found 5000"),
        ({"vision_config.layer_norm_eps": 1e-5}, "vision_config.layer_norm_eps"),
        ({"vision_config.hidden_act": "gelu"}, "vision_config.hidden_act: expected quick_gelu"),
    ],
    ids=str,
)
def test_refuses_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, edited(changes))
    message = str(caught.value)
    assert named in message and "\n" not in message and message.startswith(f"{tmp_path}/config.json: ")
    assert "expected" in message and "found" in message


def test_the_model_type_decides_and_nothing_is_guessed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_type: expected ernie4_5_vl_moe, found ernie4_5_moe_vlx"):
        read(tmp_path, edited({"model_type": "ernie4_5_moe_vlx"}))
    with pytest.raises(UserError, match="text_config: expected an object, found no such key"):
        read(tmp_path, edited({"model_type": "ernie4_5_vl_moe"}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*RELEASED, *(f"vision_config.{key}" for key in RELEASED["vision_config"]), "rope_scaling", "head_dim"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(KEYS), value=JSON)
def test_any_value_is_read_or_refused_in_one_line(tmp_path: Path, key: str, value: Any) -> None:
    try:
        config = read(tmp_path, edited({key: value}))
    except UserError as e:
        assert "\n" not in str(e) and "expected" in str(e) and "found" in str(e)
    else:
        assert 2 * sum(config.text.mrope_section) == config.text.head_dim
