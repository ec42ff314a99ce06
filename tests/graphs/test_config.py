"""config.json: what is read, and that every refusal is one line naming file and key."""

import copy
import json
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ernie_export.common.errors import UserError
from ernie_export.graphs.config import ErnieConfig

# As save_pretrained of transformers 5.23 writes it.
SAVED: dict[str, Any] = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "dtype": "bfloat16",
    "image_end_token_id": 2,
    "image_start_token_id": 1,
    "image_token_id": 3,
    "model_type": "ernie4_5_vl_moe",
    "text_config": {
        "bos_token_id": None,
        "eos_token_id": 7,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "model_type": "ernie4_5_vl_moe_text",
        "moe_intermediate_size": [12, 8],
        "moe_k": 2,
        "moe_norm_min": 1e-12,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "pad_token_id": None,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"mrope_section": [3, 3, 2], "rope_theta": 10000.0, "rope_type": "default"},
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": True,
        "use_bias": False,
        "use_cache": True,
        "vocab_size": 64,
    },
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "video_end_token_id": 5,
    "video_start_token_id": 4,
    "video_token_id": 6,
    "vision_config": {
        "depth": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": 32,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 40,
        "model_type": "ernie4_5_vl_moe_vision",
        "num_heads": 4,
        "patch_size": 14,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"},
        "spatial_merge_size": 2,
        "temporal_merge_size": 2,
    },
}


class Edit(Enum):
    """Its member's name is the same in every process, which test ids need."""

    DROP = "drop"


DROP = Edit.DROP


def edited(changes: dict[str, Any]) -> dict[str, Any]:
    """SAVED with dotted keys set, or dropped."""
    config = copy.deepcopy(SAVED)
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        if value is DROP:
            del place[key]
        else:
            place[key] = value
    return config


def readable(value: object) -> str:
    """Test ids: the keys that a case changes."""
    shown = {key: "dropped" if new is DROP else new for key, new in value.items()} if isinstance(value, dict) else {}
    return " ".join(f"{key}={new}" for key, new in shown.items())


def read(folder: Path, config: object) -> ErnieConfig:
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return ErnieConfig.from_hf(folder)


def refusal(folder: Path, config: object) -> str:
    with pytest.raises(UserError) as caught:
        read(folder, config)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{folder}/config.json: ")
    assert "expected" in message and "found" in message
    return message


def test_reads_what_save_pretrained_writes(tmp_path: Path) -> None:
    config = read(tmp_path, SAVED)
    text = config.text
    vision = config.vision
    assert (text.vocab_size, text.hidden_size, text.intermediate_size) == (64, 32, 48)
    assert (text.num_layers, text.num_heads, text.num_kv_heads, text.head_dim) == (3, 4, 2, 16)
    assert (text.rms_norm_eps, text.rope_theta, text.mrope_section) == (1e-5, 1e4, (3, 3, 2))
    assert (text.max_positions, text.use_bias, text.layer_types) == (512, False, ("dense", "sparse", "sparse"))
    assert (text.num_experts, text.experts_per_token, text.moe_intermediate_size) == (4, 2, (12, 8))
    assert (text.num_shared_experts, text.norm_min) == (2, 1e-12)
    assert (vision.depth, vision.hidden_size, vision.num_heads, vision.head_dim) == (2, 32, 4, 8)
    assert (vision.intermediate_size, vision.in_channels, vision.patch_size) == (40, 3, 14)
    assert (vision.spatial_merge_size, vision.temporal_merge_size) == (2, 2)
    assert (vision.norm_eps, vision.rope_theta) == (1e-6, 1e4)
    assert (config.image_token_id, config.image_start_token_id, config.image_end_token_id) == (3, 1, 2)
    assert (config.video_token_id, config.video_start_token_id, config.video_end_token_id) == (6, 4, 5)
    assert config.tie_word_embeddings is False
    assert config.eos_token_ids == (7,)


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"text_config.mlp_layer_types": DROP}, "text.layer_types", ("dense", "sparse", "sparse")),
        ({"text_config.mlp_layer_types": None}, "text.layer_types", ("dense", "sparse", "sparse")),
        ({"text_config.moe_intermediate_size": None}, "text.moe_intermediate_size", (1536, 512)),
        ({"text_config.moe_num_shared_experts": 0}, "text.num_shared_experts", 0),
        ({"text_config.moe_num_experts": DROP, "text_config.num_experts": 8}, "text.num_experts", 8),
        ({"text_config.moe_k": DROP, "text_config.num_experts_per_tok": 1}, "text.experts_per_token", 1),
        ({"text_config.rope_parameters.rope_theta": DROP}, "text.rope_theta", 500000.0),
        ({"text_config.rope_parameters.rope_theta": DROP, "text_config.rope_theta": 7}, "text.rope_theta", 7.0),
        ({"text_config.rope_parameters.rope_type": DROP}, "text.rope_theta", 10000.0),
        (
            {"text_config.rope_parameters": DROP, "text_config.rope_scaling": {"mrope_section": [2, 2, 4]}},
            "text.mrope_section",
            (2, 2, 4),
        ),
        ({"vision_config.rope_parameters": DROP}, "vision.rope_theta", 10000.0),  # transformers 5.7 writes none
        ({"vision_config.rope_parameters": {"rope_type": "default", "rope_theta": 9}}, "vision.rope_theta", 9.0),
        ({"vision_config.num_heads": DROP, "vision_config.num_attention_heads": 2}, "vision.num_heads", 2),
        ({"dtype": DROP, "torch_dtype": "float32"}, "text.num_layers", 3),
        (
            {
                "text_config.head_dim": DROP,
                "text_config.hidden_size": 512,
                "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1.0},
            },
            "text.mrope_section",
            (22, 22, 20),
        ),
    ],
    ids=readable,
)
def test_takes_the_class_s_value(tmp_path: Path, changes: dict[str, Any], field: str, expected: object) -> None:
    found: object = read(tmp_path, edited(changes))
    for name in field.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"text_config.num_key_value_heads": None}, "text_config.num_key_value_heads"),
        ({"text_config.head_dim": None}, "text_config.head_dim"),
        ({"text_config.hidden_size": 0}, "text_config.hidden_size"),
        ({"text_config.hidden_size": -32}, "text_config.hidden_size"),
        ({"text_config.hidden_size": "32"}, "text_config.hidden_size"),
        ({"text_config.hidden_size": 32.0}, "text_config.hidden_size"),
        ({"text_config.hidden_size": True}, "text_config.hidden_size"),
        ({"text_config.hidden_size": 2**40}, "text_config.hidden_size"),
        ({"text_config.num_hidden_layers": 10**9}, "text_config.num_hidden_layers"),
        ({"text_config.use_bias": 0}, "text_config.use_bias: expected true or false, found 0"),
        ({"text_config.rms_norm_eps": 0}, "text_config.rms_norm_eps"),
        ({"text_config.rms_norm_eps": float("nan")}, "text_config.rms_norm_eps"),
        ({"text_config.rms_norm_eps": float("inf")}, "text_config.rms_norm_eps"),
        ({"text_config.moe_norm_min": None}, "text_config.moe_norm_min"),
        ({"text_config.hidden_act": "gelu"}, "text_config.hidden_act: expected silu, found gelu"),
        ({"vision_config.hidden_act": "gelu"}, "vision_config.hidden_act: expected quick_gelu, found gelu"),
        ({"text_config.rope_parameters.rope_type": "yarn"}, "text_config.rope_parameters.rope_type"),
        ({"vision_config.rope_parameters.rope_type": "linear"}, "vision_config.rope_parameters.rope_type"),
        ({"text_config.rope_parameters": [1]}, "text_config.rope_parameters: expected an object"),
        ({"text_config.rope_scaling": {"rope_type": "default"}}, "text_config.rope_scaling"),
        ({"text_config.rope_parameters.mrope_section": [3, 2, 3]}, "text_config.rope_parameters.mrope_section"),
        ({"text_config.rope_parameters.mrope_section": [3, 3, 3]}, "text_config.rope_parameters.mrope_section"),
        ({"text_config.rope_parameters.mrope_section": [4, 4, 0]}, "text_config.rope_parameters.mrope_section"),
        ({"text_config.rope_parameters.mrope_section": DROP}, "text_config.rope_parameters.mrope_section"),
        ({"text_config.num_key_value_heads": 3}, "text_config.num_key_value_heads: expected a divisor"),
        ({"text_config.moe_k": 5}, "text_config.moe_k: expected at most moe_num_experts 4, found 5"),
        ({"text_config.moe_k": 0}, "text_config.moe_k"),
        ({"text_config.num_experts": 5}, "text_config.num_experts: expected the same as moe_num_experts 4, found 5"),
        ({"text_config.moe_intermediate_size": [12]}, "text_config.moe_intermediate_size"),
        ({"text_config.moe_intermediate_size": [12, 0]}, "text_config.moe_intermediate_size"),
        ({"text_config.moe_intermediate_size": 12}, "text_config.moe_intermediate_size"),
        ({"text_config.mlp_layer_types": ["dense", "sparse"]}, "text_config.mlp_layer_types: expected one entry"),
        ({"text_config.mlp_layer_types": ["dense", "sparse", "moe"]}, "text_config.mlp_layer_types"),
        ({"text_config.mlp_layer_types": "dense"}, "text_config.mlp_layer_types"),
        ({"text_config.sliding_window": 128}, "text_config.sliding_window: expected null, found 128"),
        ({"text_config.attention_chunk_size": 64}, "text_config.attention_chunk_size: expected null"),
        ({"text_config.is_causal": False}, "text_config.is_causal: expected true"),
        ({"text_config.layer_types": ["sliding_attention"] * 3}, "text_config.layer_types"),
        ({"text_config.per_layer_config": {"0": {"hidden_size": 8}}}, "text_config.per_layer_config"),
        ({"text_config.quantization_config": {}}, "text_config.quantization_config: expected null"),
        ({"vision_config.is_causal": True}, "vision_config.is_causal: expected no such key"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder: expected false"),
        ({"transformers_weights": "other.safetensors"}, "transformers_weights: expected null"),
        ({"text_config.eos_token_id": 64}, "text_config.eos_token_id: expected tokens from 0 to 63, found 64"),
        ({"text_config.eos_token_id": [1, "2"]}, "text_config.eos_token_id"),
        ({"text_config": DROP}, "text_config: expected an object, found no such key"),
        ({"text_config": "big"}, "text_config: expected an object, found big"),
        ({"vision_config": None}, "vision_config"),
        ({"vision_config.temporal_merge_size": 1}, "vision_config.temporal_merge_size: expected 2, found 1"),
        ({"vision_config.num_heads": 16}, "vision_config.hidden_size: expected a multiple of 4 * num_heads 16"),
        ({"vision_config.num_heads": 3}, "vision_config.hidden_size"),
        ({"vision_config.patch_size": [14, 14]}, "vision_config.patch_size"),
        ({"vision_config.head_dim": 4}, "vision_config.head_dim: expected 8 or null, found 4"),
        ({"image_token_id": 64}, "image_token_id: expected a token below text_config.vocab_size 64, found 64"),
        ({"image_token_id": -1}, "image_token_id"),
        ({"image_token_id": 6}, "image_token_id: expected a token different from video_token_id, found 6"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"model_type": "qwen2_vl"}, "model_type: expected ernie4_5_vl_moe, found qwen2_vl"),
        ({"model_type": DROP}, "model_type"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config: expected unquantised"),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}},
            "found weights of gptq, bits 4, group size 128 (export the checkpoint that it was made from",
        ),
        ({"quantization_config": "int4"}, "quantization_config: expected an object, found int4"),
        ({"text_config.moe_num_experts": [64, 64]}, "text_config.moe_num_experts: expected a whole number"),
    ],
    ids=readable,
)
def test_refuses_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    assert named in refusal(tmp_path, edited(changes))


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({}, []),
        ({"use_cache": False}, ["use_cache"]),
        ({"vision_config.use_cache": False}, ["vision_config.use_cache"]),
        ({"auto_map": {"AutoConfig": "a.B"}, "unsloth_version": "2025.1"}, ["auto_map", "unsloth_version"]),
        (
            {"_attn_implementation": "sdpa", "attn_implementation": None},
            ["_attn_implementation", "attn_implementation"],
        ),
        ({"text_config.sliding_window": None, "text_config.is_causal": True}, []),
        ({"text_config.layer_types": ["full_attention"] * 3}, []),
        ({"text_config.rope_scaling": SAVED["text_config"]["rope_parameters"]}, []),
        ({"text_config.rope_parameters.factor": 2.0}, ["text_config.rope_parameters.factor"]),
        ({"text_config.rope_theta": 5.0}, ["text_config.rope_theta"]),
        ({"text_config.model_type": "another"}, []),
        ({"moe_dropout": 0.1, "odd\nkey": 1}, ["moe_dropout", '"odd\\nkey"']),
        ({"vision_config.mlp_ratio": 4, "vision_config.head_dim": 8}, ["vision_config.mlp_ratio"]),
        ({"image_start_token_id": 10**6, "video_end_token_id": 3}, []),  # the tokenizer's ids count
    ],
    ids=readable,
)
def test_what_changes_nothing_is_accepted_and_named(
    tmp_path: Path, changes: dict[str, Any], ignored: list[str]
) -> None:
    config = read(tmp_path, edited(changes))
    assert [(path.name, key) for path, key in config.ignored] == [("config.json", key) for key in ignored]
    assert (config.text, config.vision) == (read(tmp_path, SAVED).text, read(tmp_path, SAVED).vision)


def test_a_missing_key_has_the_class_s_value(tmp_path: Path) -> None:
    few = {"model_type": "ernie4_5_vl_moe", "text_config": {}, "vision_config": {}}
    config = read(tmp_path, few)
    assert (config.text.hidden_size, config.text.num_layers, config.text.num_experts) == (2560, 28, 64)
    assert (config.vision.depth, config.vision.hidden_size) == (32, 1280)
    assert (config.image_token_id, config.video_token_id, config.tie_word_embeddings) == (100295, 103367, True)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "expected JSON"),
        ('{"a": 1', "expected JSON"),
        ("[1]", "expected a JSON object, found [1]"),
        ("null", "expected a JSON object, found null"),
        ('{"a": 1, "a": 2}', "a: expected once, found twice"),
        ("[" * 100_000, "expected JSON"),
        ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
        ('{"model_type": "\\ud800"}', "model_type"),
    ],
)
def test_refuses_what_is_no_json_object(tmp_path: Path, text: str, found: str) -> None:
    assert found in refusal(tmp_path, text)


def test_refuses_missing_or_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: expected a JSON file, found no file"):
        ErnieConfig.from_hf(tmp_path)
    with pytest.raises(UserError, match="a checkpoint folder, found none"):
        ErnieConfig.from_hf(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"config\.json: expected JSON"):
        ErnieConfig.from_hf(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="found a folder"):
        ErnieConfig.from_hf(tmp_path)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({"eos_token_id": [4, 5, 4]}, (4, 5)),
        ({"eos_token_id": 9}, (9,)),
        ({"temperature": 0.5}, ()),  # the file is there, so the reference does not ask the config
        (None, (7,)),
    ],
)
def test_generation_config_names_the_end_tokens(tmp_path: Path, generation: object, expected: tuple[int, ...]) -> None:
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert read(tmp_path, SAVED).eos_token_ids == expected


# quantization_config as the methods' tools write it, and what the refusal calls it.
QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False},
        "gptq, bits 4, group size 128",
    ),
    "gptq with act-order": (
        {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True},
        "gptq, act-order, bits 4, group size 128",
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, "awq, bits 4, group size 128"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
        "compressed-tensors, format pack-quantized",
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes, 4 bits, type nf4",
    ),
    "fp8": ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}, "fp8"),
    "AutoRound": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128},
        "auto-round, bits 4, group size 128",
    ),
    "another": ({"quantization": "wint4"}, "an unknown method"),
}


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantised_checkpoints_are_refused_by_their_method(tmp_path: Path, method: str) -> None:
    settings, words = QUANTIZED[method]
    found = refusal(tmp_path, json.dumps(SAVED | {"quantization_config": settings}))
    expected = f"quantization_config: expected unquantised weights (F32, BF16 or F16), found weights of {words} "
    assert expected in found and "\n" not in found


def test_how_the_checkpoint_would_sample_is_not_ignored_for_ernie_serve_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text('{"eos_token_id": 4, "do_sample": true, "temperature": 0.2, "top_p": 1.0, "pad_token_id": 0}')
    ignored = read(tmp_path, SAVED).ignored
    assert [entry for entry in ignored if entry[0] == path] == []


def test_refuses_a_bad_generation_config(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 99}')
    with pytest.raises(
        UserError, match=r"generation_config\.json: eos_token_id: expected tokens from 0 to 63, found 99"
    ):
        read(tmp_path, SAVED)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*SAVED] + [f"{part}.{key}" for part in ("text_config", "vision_config") for key in SAVED[part]]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(KEYS), JSON | st.just(DROP), min_size=1, max_size=2))
def test_any_value_is_read_or_refused_in_one_line(tmp_path: Path, changes: dict[str, Any]) -> None:
    nested_first = dict(sorted(changes.items(), key=lambda change: -change[0].count(".")))
    try:
        config = read(tmp_path, edited(nested_first))
    except UserError as e:
        assert "\n" not in str(e) and "expected" in str(e) and "found" in str(e)
    else:
        assert config.text.num_experts >= config.text.experts_per_token >= 1
        assert 2 * sum(config.text.mrope_section) == config.text.head_dim
