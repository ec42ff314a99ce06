"""The keys of config.json by what `Ernie4_5_VLMoeConfig` of transformers 5.23 and the code around it do with them."""

from typing import Any

# What save_pretrained (4.x and 5.x) writes into any config and no graph depends on.
BOOKKEEPING = frozenset(
    "_name_or_path architectures chunk_size_feed_forward dtype id2label initializer_range is_encoder_decoder label2id "
    "model_type output_attentions output_hidden_states problem_type return_dict torch_dtype transformers_version "
    "bos_token_id eos_token_id pad_token_id tokenizer_class".split()
)
TEXT_BOOKKEEPING = BOOKKEEPING | {
    "attention_dropout",  # the class fixes it to 0
    "output_router_logits",
    "router_aux_loss_coef",
    "tie_word_embeddings",  # without effect: the class ties by the top-level key alone
    "use_cache",
}
# Not fields of the class, but read by what it is built on (caches, masks, loading): accepted with these values alone.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "per_layer_config": (None,),
    # Other names of a decoder's configuration.
    "decoder": (None,),
    "generator": (None,),
    "quantization_config": (None,),
}
TEXT_NEUTRAL = NEUTRAL | {
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "kv_sharing_modes": (None,),
    "is_causal": (True,),
    "text_config": (None,),
}
VISION_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "per_layer_config": (None,),
    "return_dict": (True,),
    "is_causal": (),  # passed to attention, which is given it already
}
TOP_NEUTRAL = NEUTRAL | {"text_encoder": (None,), "is_encoder_decoder": (False,), "transformers_weights": (None,)}
# The class's own values.
TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "vocab_size": 103424,
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "num_hidden_layers": 28,
    "num_attention_heads": 20,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "use_bias": False,
    "moe_k": 6,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_norm_min": 1e-12,
}
TEXT_ALIASES = {"moe_num_experts": "num_experts", "moe_k": "num_experts_per_tok"}
VISION_DEFAULTS: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 5120,
    "in_channels": 3,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_merge_size": 2,
    "rms_norm_eps": 1e-6,
}
VISION_ALIASES = {"num_heads": "num_attention_heads", "depth": "num_hidden_layers"}
TOP_DEFAULTS: dict[str, Any] = {
    "image_token_id": 100295,
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_token_id": 103367,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
    "tie_word_embeddings": True,
}
# generation_config.json: what is read here or by a server (`runtime.generation_config`) or that nothing depends on, and
# the values that GenerationConfig has without it.
GENERATION_BOOKKEEPING = frozenset(
    "_from_model_config bos_token_id do_sample eos_token_id max_new_tokens min_p pad_token_id repetition_penalty "
    "temperature top_k top_p transformers_version".split()
)
GENERATION_USUAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "return_dict_in_generate": (None, False),
    "use_cache": (None, True),
}
