"""The mini checkpoint in the layout of the original revision, with made-up values where the mini one has none."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save_file
from sentencepiece import sentencepiece_model_pb2

MINI = Path(__file__).resolve().parents[1] / "examples" / "mini-ernie"
PLACES = {"<|IMAGE_PLACEHOLDER|>": "<|image@placeholder|>", "<|VIDEO_PLACEHOLDER|>": "<|video@placeholder|>"}
AS_THEY_ARE = ("Roboto-Regular.ttf", "generation_config.json")


def mini(name: str) -> Any:
    """A JSON file of the mini checkpoint."""
    return json.loads((MINI / name).read_text())


def write(folder: Path, name: str, document: object) -> None:
    """Write a JSON file."""
    (folder / name).write_text(json.dumps(document))


def write_config(folder: Path) -> None:
    """config.json."""
    config = mini("config.json")
    text = config["text_config"]
    vision = config["vision_config"]
    kept = "hidden_size intermediate_size max_position_embeddings moe_intermediate_size moe_k moe_num_shared_experts"
    kept += " num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps vocab_size use_bias"
    media = {key: value for key, value in config.items() if key.endswith("token_id") and key != "image_token_id"}
    original = {key: text[key] for key in kept.split()} | media | {
        "architectures": config["architectures"],
        "auto_map": {"AutoConfig": "configuration_ernie4_5_vl.Ernie4_5_VLMoEConfig"},
        "model_type": "ernie4_5_moe_vl",
        "im_patch_id": config["image_token_id"],
        "eos_token_id": text["eos_token_id"],
        "torch_dtype": config["dtype"],
        "tie_word_embeddings": config["tie_word_embeddings"],
        "freq_allocation": text["rope_parameters"]["mrope_section"][2],
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "rope_3d": True,
        "moe_capacity": [16, 16, 16],
        "moe_gate": "topk",
        "moe_use_aux_free": True,
        "moe_num_experts": [text["moe_num_experts"]] * 2,
        "moe_layer_interval": 1,
        "moe_layer_start_index": [1, 1],
        "moe_layer_end_index": [text["num_hidden_layers"] + 1, text["num_hidden_layers"]],
        "pixel_hidden_size": vision["hidden_size"],
        "spatial_conv_size": vision["spatial_merge_size"],
        "temporal_conv_size": vision["temporal_merge_size"],
        "vision_config": {
            "model_type": "DFNRope_vision_transformer",
            "depth": vision["depth"],
            "embed_dim": vision["hidden_size"],
            "hidden_size": vision["hidden_size"],
            "hidden_act": "quick_gelu",
            "in_channels": 3,
            "mlp_ratio": vision["intermediate_size"] // vision["hidden_size"],
            "num_heads": vision["num_heads"],
            "patch_size": 14,
            "spatial_merge_size": 2,
        },
    }  # fmt: skip
    write(folder, "config.json", original)


def write_processors(folder: Path) -> None:
    """preprocessor_config.json and processor_config.json."""
    image = mini("preprocessor_config.json")
    video = mini("video_preprocessor_config.json")
    settings = {key: value for key, value in image.items() if key not in ("size", "temporal_patch_size")}
    settings |= {
        "image_processor_type": "Ernie4_5_VLImageProcessor",
        "processor_class": "Ernie4_5_VLProcessor",
        "auto_map": {"AutoProcessor": "processing_ernie4_5_vl.Ernie4_5_VLProcessor"},
        "min_pixels": 56 * 56,
        "max_pixels": 28 * 28 * 6177,
        "video_fps": 2,
    }
    options = {
        "processor_class": "Ernie4_5_VLProcessor",
        "image_min_pixels": image["size"]["shortest_edge"],
        "image_max_pixels": image["size"]["longest_edge"],
        "video_min_pixels": video["size"]["shortest_edge"],
        "video_max_pixels": video["size"]["longest_edge"],
        "video_min_frames": video["min_frames"],
        "video_max_frames": video["max_frames"],
    }
    write(folder, "preprocessor_config.json", settings)
    write(folder, "processor_config.json", options)


def write_tokenizer(folder: Path, sentencepiece: bool) -> None:
    """tokenizer.model and added_tokens.json, or tokenizer.json; the template with the original's marks."""
    settings = mini("tokenizer_config.json")
    content = mini("tokenizer.json")
    named = {key: settings[key] for key in settings if key.endswith("_token") and "image" not in key}
    special = {key: value for key, value in named.items() if "video" not in key}
    special |= {"additional_special_tokens": settings["extra_special_tokens"]}
    template = (MINI / "chat_template.jinja").read_text()
    for token, mark in PLACES.items():
        template = template.replace(token, mark)
    tokenizer = {"tokenizer_class": "Ernie4_5_VLTokenizer", "chat_template": template, "add_prefix_space": False}
    write(folder, "tokenizer_config.json", special | tokenizer)
    write(folder, "special_tokens_map.json", special)
    if not sentencepiece:
        write(folder, "tokenizer.json", content)
        return
    own = {token["content"] for token in content["added_tokens"]}
    model = sentencepiece_model_pb2.ModelProto()
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for text, index in sorted(content["model"]["vocab"].items(), key=lambda item: item[1]):
        kind = kinds.BYTE if 3 <= index < 259 else kinds.USER_DEFINED if text in own else kinds.NORMAL
        kind = kinds.UNKNOWN if index == 0 else kinds.CONTROL if index < 3 else kind
        model.pieces.add(piece=text, score=-float(index), type=kind)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    count = len(content["model"]["vocab"])
    write(folder, "added_tokens.json", {t["content"]: t["id"] for t in content["added_tokens"] if t["id"] >= count})


def write_original(folder: Path, sentencepiece: bool = True) -> Path:
    """The mini checkpoint in the original layout, the encoder's tensors under their original names."""
    folder.mkdir()

    def original_names(tensors: dict[str, Any]) -> dict[str, Any]:
        return {name.replace("model.vision_model.", "vision_model."): value for name, value in tensors.items()}

    for shard in MINI.glob("*.safetensors"):
        save_file(original_names(load_file(shard)), folder / shard.name)
    index = mini("model.safetensors.index.json")
    index["weight_map"] = original_names(index["weight_map"])
    write(folder, "model.safetensors.index.json", index)
    for name in AS_THEY_ARE:
        shutil.copyfile(MINI / name, folder / name)
    write_config(folder)
    write_processors(folder)
    write_tokenizer(folder, sentencepiece)
    return folder
