"""config.json of the original remote-code revision, translated to the Hugging Face (`hf`) layout.

The main branch of the released repository writes its configuration for Baidu's own code (`model_type` ernie4_5_moe_vl:
one flat object for the decoder, counts as pairs of expert groups, a `vision_config` of its own). What each key becomes
is what `convert_ernie4_5_vl_moe_to_hf.py` in the transformers repository makes of it; what a key means, and its value
where it is absent, is from the remote code's configuration classes. Every key is moved, renamed, held to the one value
that the transformers class computes with, or listed as without effect; any other is refused by name, since the
remote code may compute with it.
"""

from collections.abc import Mapping
from typing import Any

from ernie_export.common.json_fields import JsonObject, one_line
from ernie_export.graphs.config_keys import BOOKKEEPING

MODEL_TYPE = "ernie4_5_moe_vl"

# Same name and meaning in `text_config`.
TEXT = (
    "vocab_size hidden_size intermediate_size max_position_embeddings num_hidden_layers num_attention_heads "
    "num_key_value_heads rms_norm_eps moe_k moe_intermediate_size"
).split()
# Same name and meaning in `vision_config`.
VISION = "depth hidden_size num_heads in_channels patch_size spatial_merge_size".split()
# What the converter takes from the transformers class, since the original code finds these tokens by their text.
MEDIA_TOKENS = {
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
    "video_token_id": 103367,  # the original code marks videos with the image token; this one is new
}

# Must be written: the remote code's default is another architecture.
REQUIRED = {
    "moe_gate": "topk",
    "moe_use_aux_free": True,  # a correction bias takes part in choosing experts
}
# May be absent: the value is also the remote code's default.
FIXED = {
    "text_config": None,  # the decoder's keys stand at the top
    "hidden_act": "silu",
    "use_rmsnorm": True,
    "compression_ratio": 1.0,  # positions are not divided
    "add_tail_layers": False,
    "attention_bias": False,  # `use_bias` is the key that counts
    "rope_3d": True,
    "moe_gate_act": "softmax",
    "moe_norm_gate_logits": True,
    "moe_norm_min": 1e-12,
    "moe_use_hard_gate": True,  # a token's type alone chooses its expert group
    "moe_use_token_type_bias": False,
    "moe_dense_experts_token_type_id": 3,
    "moe_num_attn_experts": False,
    "moe_num_dense_experts": 0,
    "moe_group_experts": False,
    "moe_multimodal_paired_experts": False,
    "moe_layer_feed_fake_token": False,
    "mm_vocab_size": 0,  # media tokens are rows of the one embedding
    "use_temporal_conv": True,
    "num_nextn_predict_layers": 0,
    "cachekv_quant": False,
}
VISION_FIXED = {
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-6,
}
# Without effect on an answer: where the code is found, how it trains or runs in parallel, which kernels it takes.
WITHOUT_EFFECT = frozenset(
    "auto_map paddleformers_version paddlenlp_version sub_configs use_cache _attn_implementation attn_implementation "
    "unsloth_fixed unsloth_version "
    # Dropout and losses: training alone.
    "attention_dropout attention_probs_dropout_prob hidden_dropout_prob moe_dropout_prob moe_all_to_all_dropout "
    "moe_aux_loss_lambda moe_z_loss_lambda moe_orthogonal_loss_lambda moe_group_orthogonal_loss global_aux_loss "
    "sinkhorn_2gate sinkhorn_temp token_balance_loss token_balance_seqlen enable_delay_scale_loss num_acc_steps "
    "dpo_config ignored_index ignore_index modality_detach multi_token_pred_lambda mtp_loss_scaling_factor "
    "moe_reverse_token_drop moe_capacity "  # the transformers class drops no token, however many choose an expert
    "moe_logging loss_subbatch_seqlen max_sequence_length max_text_id using_precision_check "
    # Recomputation, parallelism, dispatch between devices.
    "recompute use_recompute recompute_granularity recompute_use_reentrant refined_recompute skip_recompute_ops "
    "use_recompute_moe use_recompute_mtp use_recompute_lm_head use_recompute_loss_fn use_recompute_resampler "
    "tensor_parallel_degree tensor_model_parallel_size sequence_parallel disable_ffn_model_parallel pp_seg_method "
    "micro_batch_size use_ep_comm_overlap moe_group moe_group_origin moe_rank moe_world_size moe_use_size_all2all "
    "moe_multimodal_dispatch_use_allgather enable_mtp_magic_send "
    # Which kernel computes the same sum.
    "use_flash_attention use_flash_attn use_sparse_flash_attn use_var_len_flash_attn use_fast_ln fuse_rms_norm fuse_ln "
    "fuse_swiglu fuse_rope fuse_linear fuse_softmax_mask fuse_attn_ffn fuse_gate_detach_matmul moe_fuse_experts "
    "resampler_fuse_rms_norm use_fused_head_and_loss_fn use_sparse_head_and_loss_fn use_pure_fp16 "
    # A bias of the head, only with `use_bias`: its tensor would be refused by name.
    "weight_share_add_bias".split()
)
# Same name and meaning at the top of the translated file, or without meaning there.
KEPT = BOOKKEEPING | {"quantization_config", "tie_word_embeddings"}
VISION_WITHOUT_EFFECT = WITHOUT_EFFECT | {
    "attn_implementation",
    "attn_sep",  # attention in two steps, with the same result
    "pp_data_balance",
    "vit_first_fwd_bsz",
    "vit_num_recompute_layers",
}


def is_original(document: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of the original revision, by its `model_type`."""
    return document.get("model_type") == MODEL_TYPE


def translate(original: JsonObject) -> dict[str, Any]:
    """Return the config.json that transformers' converter would write; raise InvalidFile if a key does not fit."""
    vision = original.object("vision_config")
    original.expect("model_type", MODEL_TYPE)
    check_fixed(original, REQUIRED, required=True)
    check_fixed(original, FIXED)
    text = {key: original.require(key, "a value") for key in TEXT} | {
        "model_type": "ernie4_5_vl_moe_text",
        "hidden_act": "silu",
        "use_bias": original.get("use_bias", False),
        "moe_norm_min": FIXED["moe_norm_min"],
        "moe_num_experts": experts(original),
        "moe_num_shared_experts": original.get("moe_num_shared_experts") or 0,
        "mlp_layer_types": layer_types(original),
        "rope_parameters": rope_parameters(original),
    }
    media = {"image_token_id": original.require("im_patch_id", "the id of <|IMAGE_PLACEHOLDER|>")}
    check_fixed(original, media)
    media |= {key: original.get(key, default) for key, default in MEDIA_TOKENS.items()}
    encoder = translate_vision(original, vision)
    original.require("tie_word_embeddings", "true or false")
    kept = {key: original.get(key) for key in sorted(KEPT) if key in original}
    original.refuse_unknown(WITHOUT_EFFECT)
    return kept | media | {"model_type": "ernie4_5_vl_moe", "text_config": text, "vision_config": encoder}


def translate_vision(original: JsonObject, vision: JsonObject) -> dict[str, Any]:
    """Translate `vision_config` and what the original keeps beside it: the resampler's merge sizes and input width."""
    vision.expect("model_type", "DFNRope_vision_transformer")
    check_fixed(vision, VISION_FIXED)
    moved = {key: vision.require(key, "a value") for key in VISION}
    check_fixed(vision, {"embed_dim": moved["hidden_size"], "in_chans": moved["in_channels"]})
    check_fixed(vision, {"spatial_patch_size": moved["patch_size"]})
    check_fixed(original, {"pixel_hidden_size": moved["hidden_size"]})
    check_fixed(original, {"spatial_conv_size": moved["spatial_merge_size"]}, required=True)
    ratio = vision.positive("mlp_ratio")
    width = vision.integer("hidden_size", maximum=2**31 - 1)
    if not (width * ratio).is_integer():
        raise vision.error("mlp_ratio", f"a ratio that makes a whole number of hidden_size {width}", ratio)
    renamed = {
        "intermediate_size": int(width * ratio),
        "temporal_merge_size": original.require("temporal_conv_size", "a value"),
        "rms_norm_eps": VISION_FIXED["layer_norm_eps"],
    }
    check_fixed(vision, renamed)
    vision.refuse_unknown(VISION_WITHOUT_EFFECT | BOOKKEEPING)
    return moved | renamed | {"model_type": "ernie4_5_vl_moe_vision", "hidden_act": "quick_gelu"}


def check_fixed(section: JsonObject, values: Mapping[str, Any], required: bool = False) -> None:
    """Refuse a key with another value than the one given, or with none where it is `required`."""
    for key, value in values.items():
        expected = "no such key, or null" if value is None else one_line(value)
        found = section.require(key, expected) if required else section.get(key, value)
        if found != value and not (found is None and not value):
            raise section.error(key, expected, found)


def experts(original: JsonObject) -> int:
    """Return the number of experts of one modality; the original counts both, and its router bias needs them equal."""
    text, vision = original.pair("moe_num_experts")
    if text != vision:
        raise original.error("moe_num_experts", "as many vision experts as text experts", [text, vision])
    return text


def layer_types(original: JsonObject) -> list[str]:
    """List the layers' types: every `moe_layer_interval`th is sparse, from start to end inclusive (-1: the last).

    The original gives a range to each modality. The transformers class has both in each sparse layer, so the two
    ranges must meet the same layers; their ends may differ past the last one, as in the released [29, 28].
    """
    count = original.integer("num_hidden_layers", maximum=4096)
    interval = original.integer("moe_layer_interval", maximum=4096)
    ranges = []
    for expert_group in range(2):
        bounds = []
        for key in ("moe_layer_start_index", "moe_layer_end_index"):
            value = original.require(key, "a layer, or one for each expert group")
            pair = value if isinstance(value, list) else [value, value]
            if len(pair) != 2 or not all(type(layer) is int and layer >= -1 for layer in pair):
                raise original.error(key, "a layer, or one for each expert group", value)
            bounds.append(pair[expert_group])
        start, end = bounds[0], count - 1 if bounds[1] == -1 else min(bounds[1], count - 1)
        ranges.append([layer for layer in range(count) if (layer + 1) % interval == 0 and start <= layer <= end])
    if ranges[0] != ranges[1]:
        found = f"text {one_line(ranges[0], 30)}, vision {one_line(ranges[1], 30)}"
        raise original.error("moe_layer_start_index", "the same sparse layers for both expert groups", found)
    return ["sparse" if layer in ranges[0] else "dense" for layer in range(count)]


def rope_parameters(original: JsonObject) -> dict[str, Any]:
    """Return the rotary parameters: of head_dim/2 frequencies the last `freq_allocation` follow time, the rest h and w.

    Raises UserError where `rope_scaling`, which some revisions write too, says otherwise.
    """
    heads = original.integer("num_attention_heads", maximum=4096)
    head_dim = original.integer("hidden_size", maximum=2**31 - 1) // heads
    if original.get("head_dim") not in (None, head_dim):
        raise original.error("head_dim", f"hidden_size // num_attention_heads = {head_dim}", original.get("head_dim"))
    pairs = head_dim // 2
    time = original.get("freq_allocation", 20)
    if type(time) is not int or not 0 < time < pairs or (pairs - time) % 2:
        raise original.error("freq_allocation", f"a whole number that leaves an even rest of {pairs} frequencies", time)
    sections = [(pairs - time) // 2, (pairs - time) // 2, time]
    scaling = original.object("rope_scaling", default={})
    check_fixed(scaling, {"type": "default", "rope_type": "default", "mrope_section": sections})
    scaling.refuse_unknown(())
    return {"rope_type": "default", "rope_theta": original.require("rope_theta", "a value"), "mrope_section": sections}
