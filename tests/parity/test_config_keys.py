"""Every key of config.json, with and without it: what changes the class's answer we honour or refuse by name.

The keys are the fields of the configuration classes, every attribute that loading and generating read of them, and
what other classes and tools write. A key that leaves the class's logits as they are must be accepted, and noted as
ignored unless the class itself writes it.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.models.ernie4_5_vl_moe.configuration_ernie4_5_vl_moe import (
    Ernie4_5_VLMoeTextConfig,
    Ernie4_5_VLMoeVisionConfig,
)

from ernie_export.common.errors import InvalidFile
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import check_layout
from tests.parity.conftest import fill
from tests.parity.test_config import small

SECTIONS: dict[str, type] = {
    "": Ernie4_5_VLMoeConfig,
    "text_config": Ernie4_5_VLMoeTextConfig,
    "vision_config": Ernie4_5_VLMoeVisionConfig,
}
DROP = object()
# Values to try where one number says too little. Every other key is set to 3.
VALUES: dict[str, tuple[Any, ...]] = {
    "_attn_implementation": ("eager",),
    "_experts_implementation": ("eager",),
    "architectures": (["Other"],),
    "attention_chunk_size": (2, None),
    "chunk_size_feed_forward": (2,),
    "decoder": ({}, None),
    "dtype": ("bfloat16",),
    "fusion_config": ({},),
    "generator": ({}, None),
    "gradient_checkpointing": (True,),
    "head_dim": (4, 8),
    "hidden_act": ("gelu", "silu", "quick_gelu"),
    "id2label": ({"0": "a"},),
    "image_token_id": (1, 7),
    "initializer_range": (0.5,),
    "is_causal": (False, True),
    "is_encoder_decoder": (True, False),
    "kv_sharing_modes": (["reuse", None], None),
    "label2id": ({"a": 0},),
    "layer_types": (["full_attention"] * 2, ["sliding_attention"] * 2, ["attention"] * 2),
    "mlp_layer_types": (None, ["sparse", "dense"], ["dense", "dense"]),
    "model_type": ("llama",),
    "moe_norm_min": (0.5,),
    "moe_intermediate_size": (None, [3, 3]),
    "mtp_layer_types": (["full_attention"],),
    "output_attentions": (False,),
    "output_hidden_states": (True,),
    "output_router_logits": (True,),
    "partial_rotary_factor": (0.5,),
    "per_layer_config": ({"0": {"rms_norm_eps": 1.0}}, None),
    "problem_type": ("regression",),
    "quantization_config": ({"quant_method": "gptq", "bits": 4}, None),
    "return_dict": (False,),
    "rms_norm_eps": (0.5,),
    "rope_parameters": (None, {"rope_type": "default", "rope_theta": 9.0, "mrope_section": [1, 1, 2], "factor": 2.0}),
    "rope_scaling": (None, {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}),
    "rope_theta": (9.0,),
    "router_aux_loss_coef": (0.5,),
    "sliding_window": (2, None),
    "text_encoder": ({}, None),
    "tie_word_embeddings": (True, False),
    "transformers_version": ("4.0",),
    "transformers_weights": ("nowhere.safetensors", None),
    "use_bias": (True, None),
    "use_cache": (False, True),
    "vision_feature_select_strategy": ("default",),
}
# What other classes and tools write, and nothing reads.
FOREIGN = (
    "attn_implementation attention_bias attention_dropout auto_map dropout embd_pdrop hidden_dropout im_patch_id "
    "kv_lora_rank max_window_layers mlp_bias mlp_ratio moe_layer_start_index mrope_section num_nextn_predict_layers "
    "pretraining_tp qk_norm rope_3d rotary_dim unsloth_fixed unsloth_version use_flash_attention use_sliding_window "
    "vocab_file"
).split()
# What loading and generating read of a configuration beside its fields.
READ = (
    "_attn_implementation _experts_implementation _name_or_path attention_chunk_size decoder embed_dim "
    "fusion_config generator gguf_file gradient_checkpointing head_dim init_std initializer_factor "
    "initializer_range is_causal kv_sharing_modes layer_types max_position_embeddings model_type mtp_layer_types "
    "num_heads num_labels output_router_logits partial_rotary_factor per_layer_config quantization_config "
    "rope_parameters rope_scaling rope_theta sliding_window text_encoder tie_word_embeddings torch_dtype "
    "transformers_weights vision_aspect_ratio vision_feature_layer vision_feature_select_strategy vocab_size "
).split()
# Attributes that no file sets: of the classes themselves, or of the instance.
NOT_KEYS = set(
    "_attn_implementation_internal _experts_implementation_internal _heterogeneity_spec _output_attentions "
    "_post_init_done _rope_type_labels attribute_map base_config_key base_model_ep_plan base_model_fsdp_plan "
    "base_model_pp_plan base_model_tp_plan default_rope_type default_theta ignore_keys_at_rope_validation "
    "is_heterogeneous name_or_path sub_configs sub_configs_defaults".split()
)
# Refused although the class answers: it is not asked which model this is, unties a head that differs, and fills missing
# biases with zeros.
REFUSED = {("", "model_type"), ("", "tie_word_embeddings"), ("text_config", "use_bias")}


@dataclass(frozen=True)
class Found:
    """What the class makes of a config.json: logits and tokens, or its error."""

    logits: np.ndarray | None
    tokens: list[int]
    error: str = ""

    def same(self, other: "Found") -> bool:
        """Whether both computed the same, but for the rounding of another kernel."""
        if self.logits is None or other.logits is None:
            return False
        return self.tokens == other.tokens and np.allclose(self.logits, other.logits, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint of two layers, one of them sparse."""
    folder = tmp_path_factory.mktemp("keys") / "checkpoint"
    options = small(0)
    options["text_config"] |= dict(
        vocab_size=32, head_dim=8, hidden_size=16, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2,
        mlp_layer_types=["dense", "sparse"], moe_num_experts=3, moe_k=2, moe_num_shared_experts=1, use_bias=False,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]), max_position_embeddings=64,
    )  # fmt: skip
    options["vision_config"] |= dict(depth=2, num_heads=2, hidden_size=16, in_channels=3, patch_size=2)
    options["vision_config"] |= dict(spatial_merge_size=2)
    model = Ernie4_5_VLMoeForConditionalGeneration(Ernie4_5_VLMoeConfig(**options | {"tie_word_embeddings": False}))
    fill(model, 0)
    model.save_pretrained(folder)
    return folder


def prompt() -> dict[str, torch.Tensor]:
    """A text with a picture and a clip, each of one token."""
    ids = torch.tensor([[8, 9, 2, 1, 3, 10, 5, 4, 6, 11, 12]])
    kinds = torch.tensor([[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]])
    draw = torch.Generator().manual_seed(0)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": kinds,
        "moe_mm_token_type_ids": torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2, 2, 0, 0]]),
        "pixel_values": torch.randn((4, 12), generator=draw),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "pixel_values_videos": torch.randn((8, 12), generator=draw),
        "video_grid_thw": torch.tensor([[2, 2, 2]]),
    }


def compute(folder: Path) -> Found:
    """Load a checkpoint and let the class answer."""
    try:
        model = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            output = model.generate(
                **prompt(), max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True,
                output_logits=True,
            )  # fmt: skip
        return Found(torch.cat(output.logits).numpy(), output.sequences[0].tolist())
    except Exception as e:
        return Found(None, [], f"{type(e).__name__}: {e}")


def own_keys(section: str) -> set[str]:
    """Return the keys of the class of a section; without its sections the class would have 28 billion parameters."""
    cls: Any = SECTIONS[section]
    return {field.name for field in fields(cls)} | set(cls.attribute_map) - set(SECTIONS)


def variants(section: str) -> Iterator[tuple[str, Any]]:
    """Yield key and value of each change of a section."""
    for key in sorted({*own_keys(section), *READ} - NOT_KEYS - set(SECTIONS)):
        for value in VALUES.get(key, (3,)):
            yield key, value
    for key in sorted(own_keys(section) - set(SECTIONS)):
        yield key, DROP


def edited(config: dict[str, Any], section: str, key: str, value: Any) -> dict[str, Any]:
    """Return config.json with one key set or dropped."""
    changed: dict[str, Any] = json.loads(json.dumps(config))
    place = changed[section] if section else changed
    place.pop(key, None)
    if value is not DROP:
        place[key] = value
    return changed


def computed(config: ErnieConfig) -> ErnieConfig:
    """Return what graphs are made of: the tokens around media are the tokenizer's, and a graph has no longest input."""
    around: dict[str, Any] = {key: 0 for key in vars(config) if key.endswith(("start_token_id", "end_token_id"))}
    return replace(config, text=replace(config.text, max_positions=1), **around)


def test_nothing_else_is_read_of_a_configuration(checkpoint: Path) -> None:
    read: dict[str, set[str]] = {name: set() for name in SECTIONS}
    names = {cls: name for name, cls in SECTIONS.items()}
    get = PreTrainedConfig.__getattribute__

    def note(config: PreTrainedConfig, key: str) -> Any:
        if type(config) in names and not key.startswith("__"):
            read[names[type(config)]].add(key)
        return get(config, key)

    PreTrainedConfig.__getattribute__ = note
    try:
        assert compute(checkpoint).error == ""
    finally:
        PreTrainedConfig.__getattribute__ = get
    generation = set(GenerationConfig().to_dict()) | {"max_length"}  # taken out of a config.json
    for section, keys in read.items():
        methods = {key for key in keys if callable(getattr(SECTIONS[section], key, None))}
        known = own_keys(section) | set(READ) | NOT_KEYS | generation | methods | set(SECTIONS)
        assert keys <= known, f"{section or 'the top level'}: {sorted(keys - known)}"
        assert len(keys) > 20


@pytest.mark.parametrize("section", SECTIONS, ids=["top", "text", "vision"])
def test_every_key_is_honoured_refused_or_without_effect(checkpoint: Path, tmp_path: Path, section: str) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    folder = shutil.copytree(checkpoint, tmp_path / "changed")
    base = compute(folder)
    assert base.logits is not None, base.error
    ours = ErnieConfig.from_hf(folder)
    wrong = []
    count = 0
    for key, value in variants(section):
        document = edited(config, section, key, value)
        if document == config:
            continue
        count += 1
        (folder / "config.json").write_text(json.dumps(document))
        reference = compute(folder)
        where = f"{section}.{key} = {'dropped' if value is DROP else value}"
        try:
            found = ErnieConfig.from_hf(folder)
            check_layout(Checkpoint.open(folder), found)
        except InvalidFile as e:
            assert key in str(e) or "tensor" in str(e)
            if reference.same(base) and (section, key) not in REFUSED:
                wrong.append(f"{where}: refused, and changes nothing: {e}")
            continue
        says = reference.error or "something else"
        if computed(found) == computed(ours) and not reference.same(base):
            wrong.append(f"{where}: without effect here, and the class says {says}")
        if computed(found) != computed(ours) and reference.same(base):
            wrong.append(f"{where}: changes our configuration, and the class says {says}")
    assert not wrong, "\n".join(wrong)
    assert count > 60


def test_what_nothing_reads_is_named(checkpoint: Path, tmp_path: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    for section in SECTIONS:
        for key in FOREIGN:
            (tmp_path / "config.json").write_text(json.dumps(edited(config, section, key, 3)))
            found = ErnieConfig.from_hf(tmp_path)
            expected = (
                [] if section == "text_config" and key == "attention_dropout" else [f"{section}.{key}".strip(".")]
            )
            assert [name for _, name in found.ignored] == expected
