"""The mini checkpoint's parts other than trained numbers: configuration, tokenizer, processor files, and saving.

Layout and names follow the released checkpoint (`baidu/ERNIE-4.5-VL-28B-A3B-PT` as transformers 5 writes it).
"""

import copy
import json
import shutil
from pathlib import Path

import torch
import torchvision_operators  # noqa: F401
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    GenerationConfig,
    LlamaTokenizer,
    logging,
)

FONT = "Roboto-Regular.ttf"
MEDIA_TOKENS = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def build_tokenizer(texts: list[str], merges_for: int = 1400) -> LlamaTokenizer:
    """Train a small byte-fallback BPE on `texts` and wrap it as the released tokenizer is.

    Digits are single added tokens, there is no BOS, and the six media tokens are reachable by attribute.
    """
    base = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    # Merges stay inside words, so that every word of the vocabulary is one token wherever it stands.
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True),
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(base) + len(bytes_) + merges_for, special_tokens=[*base, *bytes_], show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        pad_token="<unk>",
        cls_token="<|begin_of_sentence|>",
        sep_token="<|end_of_sentence|>",
        mask_token="<mask:1>",
        add_bos_token=False,
        add_prefix_space=False,
        model_max_length=4096,
        extra_special_tokens=[*MEDIA_TOKENS.values(), "<think>", "</think>"],
        **MEDIA_TOKENS,
    )
    words = [*"0123456789", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return tokenizer


def build_config(tokenizer: LlamaTokenizer) -> Ernie4_5_VLMoeConfig:
    """Everything that the released model has, small: 1 dense and 5 sparse layers, 8 + 8 experts of widths 96 and 64."""
    media = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in MEDIA_TOKENS.items()}
    vocabulary = 8 * -(-len(tokenizer) // 8)
    config = Ernie4_5_VLMoeConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "moe_intermediate_size": [96, 64],
            "moe_k": 2,
            "moe_num_experts": 8,
            "moe_num_shared_experts": 2,
            "mlp_layer_types": ["dense", *["sparse"] * 5],
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "mrope_section": [6, 6, 4]},
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={"depth": 4, "hidden_size": 96, "num_heads": 4, "intermediate_size": 384},
        tie_word_embeddings=True,
        **media,
    )
    config.architectures = ["Ernie4_5_VLMoeForConditionalGeneration"]
    return config


def write_processors(folder: Path, tokenizer: LlamaTokenizer, template: str, font: Path) -> None:
    """Tokenizer, chat template, font and the two processor files, sized for pictures of 56 to 112 pixels a side."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for local in ("is_local", "local_files_only"):  # where it was loaded from: no property of a tokenizer
        settings.pop(local, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    if font.resolve() != (folder / FONT).resolve():
        shutil.copyfile(font, folder / FONT)
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "merge_size": 2,
        "patch_size": 14,
        "processor_class": "Ernie4_5_VLMoeProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
    }
    image = common | {
        "image_processor_type": "Ernie4_5_VLMoeImageProcessor",
        "size": {"longest_edge": 112 * 112, "shortest_edge": 56 * 56},
        "temporal_patch_size": 1,
    }
    video = common | {
        "do_sample_frames": True,
        "draw_on_frames": True,
        "font": FONT,
        "max_frames": 6,
        "min_frames": 4,
        "size": {"longest_edge": 112 * 112, "shortest_edge": 112 * 112},
        "temporal_patch_size": 2,
        "video_processor_type": "Ernie4_5_VLMoeVideoProcessor",
    }
    for name, content in (("preprocessor_config.json", image), ("video_preprocessor_config.json", video)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def save_weights(model: Ernie4_5_VLMoeForConditionalGeneration, folder: Path) -> None:
    """Round all but the routers to bfloat16, as the class keeps them, and write shards in the hf layout."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if not name.endswith("gate.weight") and "moe_statics" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = "bfloat16"
    eos = model.config.text_config.eos_token_id
    pad = model.config.text_config.pad_token_id
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=eos, pad_token_id=pad)
    logging.disable_progress_bar()
    for stale in folder.glob("model*.safetensors*"):
        stale.unlink()
    model.save_pretrained(folder, max_shard_size="6MB")
    for shard in folder.glob("model*.safetensors"):
        shard.chmod(0o644)
