"""Read config.json into frozen dataclasses, as `Ernie4_5_VLMoeConfig` of transformers 5.23 reads it.

A key that the class computes with is honoured, or refused by name where its value cannot be. A missing key has the
class's value. A key that changes nothing in what the class computes is ignored; those that no version of the class
writes are noted in `ErnieConfig.ignored`. A config.json of the original revision is translated first
(checkpoint/original/config.py).
"""

from dataclasses import dataclass, field
from pathlib import Path

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import JsonObject, one_line, read_json
from ernie_export.graphs.checkpoint.folder import require_folder
from ernie_export.graphs.checkpoint.original import config as original
from ernie_export.graphs.config_keys import (
    BOOKKEEPING,
    GENERATION_BOOKKEEPING,
    GENERATION_USUAL,
    TEXT_ALIASES,
    TEXT_BOOKKEEPING,
    TEXT_DEFAULTS,
    TEXT_NEUTRAL,
    TOP_DEFAULTS,
    TOP_NEUTRAL,
    VISION_ALIASES,
    VISION_DEFAULTS,
    VISION_NEUTRAL,
)

QUANTIZATION_WORDS = {"bits": "bits", "group_size": "group size", "format": "format", "bnb_4bit_quant_type": "type"}
QUANTIZATION_FLAGS = {"load_in_4bit": "4 bits", "load_in_8bit": "8 bits", "desc_act": "act-order"}
COUNT_LIMIT = 4096  # layers, experts, heads: past any real model, so that a silly number fails here and not in memory
SIZE_LIMIT = 2**31 - 1
MEDIA_TOKENS = tuple(key for key in TOP_DEFAULTS if key.endswith("token_id"))
PLACEHOLDERS = ("image_token_id", "video_token_id")  # the ids that the model looks for; the others are the tokenizer's


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder.

    Attributes:
        mrope_section: Pairs of head_dim/2 that follow (height, width, time).
        layer_types: "dense" or "sparse" for each layer.
        num_experts: Text experts of a layer, and as many vision experts.
        moe_intermediate_size: Of a text expert and of a vision expert.
        num_shared_experts: 0 for no shared expert.
        norm_min: Minimum of the sum that the chosen experts' scores are divided by.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    max_positions: int
    use_bias: bool
    layer_types: tuple[str, ...]
    num_experts: int
    experts_per_token: int
    moe_intermediate_size: tuple[int, int]
    num_shared_experts: int
    norm_min: float

    @staticmethod
    def from_json(section: JsonObject) -> "TextConfig":
        """Read and check `text_config`. Raises InvalidFile, naming the key."""
        section = section.with_defaults(TEXT_DEFAULTS, TEXT_ALIASES)
        section.expect("hidden_act", "silu")
        section.expect_one_of(TEXT_NEUTRAL)
        num_layers = section.integer("num_hidden_layers", maximum=COUNT_LIMIT)
        hidden_size = section.integer("hidden_size", maximum=SIZE_LIMIT)
        num_heads = section.integer("num_attention_heads", maximum=COUNT_LIMIT)
        head_dim = hidden_size // num_heads
        if "head_dim" in section:
            head_dim = section.integer("head_dim", maximum=SIZE_LIMIT)
        rope = rope_section(section, types=("default",), keys={"mrope_section"})
        config = TextConfig(
            vocab_size=section.integer("vocab_size", maximum=SIZE_LIMIT),
            hidden_size=hidden_size,
            intermediate_size=section.integer("intermediate_size", maximum=SIZE_LIMIT),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=section.integer("num_key_value_heads", maximum=COUNT_LIMIT),
            head_dim=head_dim,
            rms_norm_eps=section.positive("rms_norm_eps"),
            rope_theta=rope_theta(section, rope, default=500000.0),
            mrope_section=rope.triple("mrope_section") if "mrope_section" in rope else (22, 22, 20),
            max_positions=section.integer("max_position_embeddings", maximum=SIZE_LIMIT),
            use_bias=section.flag("use_bias", default=False),
            layer_types=layer_types(section, num_layers),
            num_experts=section.integer("moe_num_experts", "num_experts", maximum=COUNT_LIMIT),
            experts_per_token=section.integer("moe_k", "num_experts_per_tok", maximum=COUNT_LIMIT),
            moe_intermediate_size=section.pair("moe_intermediate_size", default=(1536, 512)),
            num_shared_experts=section.integer("moe_num_shared_experts", minimum=0, maximum=COUNT_LIMIT),
            norm_min=section.positive("moe_norm_min"),
        )
        expect_full_attention(section, num_layers)
        section.ignore_unknown(TEXT_BOOKKEEPING)
        config.check(section, rope)
        return config

    def check(self, section: JsonObject, rope: JsonObject) -> None:
        """Raise InvalidFile for sizes that contradict each other."""
        if self.num_heads % self.num_kv_heads:
            expected = f"a divisor of num_attention_heads {self.num_heads}"
            raise section.error("num_key_value_heads", expected, self.num_kv_heads)
        if self.experts_per_token > self.num_experts:
            expected = f"at most moe_num_experts {self.num_experts}"
            raise section.error("moe_k", expected, self.experts_per_token)
        height, width, time = self.mrope_section
        if height != width or 2 * (height + width + time) != self.head_dim:
            expected = f"[a, a, b] with a + a + b = {self.head_dim / 2:g} (half of head_dim {self.head_dim})"
            raise rope.error("mrope_section", expected, list(self.mrope_section))


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder and, through the merge sizes, of the resampler."""

    depth: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    in_channels: int
    patch_size: int
    spatial_merge_size: int
    temporal_merge_size: int
    norm_eps: float
    rope_theta: float

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @staticmethod
    def from_json(section: JsonObject) -> "VisionConfig":
        """Read and check `vision_config`. Raises InvalidFile, naming the key."""
        section = section.with_defaults(VISION_DEFAULTS, VISION_ALIASES)
        section.expect("hidden_act", "quick_gelu")
        section.expect_one_of(VISION_NEUTRAL)
        # 5.7 writes no rope_parameters here, and the class turns "default" into "axial".
        rope = rope_section(section, types=("axial", "default"), keys=set())
        config = VisionConfig(
            depth=section.integer("depth", "num_hidden_layers", maximum=COUNT_LIMIT),
            hidden_size=section.integer("hidden_size", maximum=SIZE_LIMIT),
            num_heads=section.integer("num_heads", "num_attention_heads", maximum=COUNT_LIMIT),
            intermediate_size=section.integer("intermediate_size", maximum=SIZE_LIMIT),
            in_channels=section.integer("in_channels", maximum=COUNT_LIMIT),
            patch_size=section.integer("patch_size", maximum=COUNT_LIMIT),
            spatial_merge_size=section.integer("spatial_merge_size", maximum=COUNT_LIMIT),
            temporal_merge_size=section.integer("temporal_merge_size", maximum=COUNT_LIMIT),
            norm_eps=section.positive("rms_norm_eps"),
            rope_theta=rope_theta(section, rope, default=10000.0),
        )
        section.expect_one_of({"head_dim": (config.head_dim, None)})
        section.ignore_unknown(BOOKKEEPING)
        if config.temporal_merge_size != 2:  # the reference's frame pairing is written for 2 alone
            raise section.error("temporal_merge_size", "2", config.temporal_merge_size)
        if config.hidden_size % (4 * config.num_heads):
            expected = f"a multiple of 4 * num_heads {config.num_heads} (a head is rotated in quarters)"
            raise section.error("hidden_size", expected, config.hidden_size)
        return config


@dataclass(frozen=True)
class ErnieConfig:
    """The configuration of a model; token ids are in the tokenizer's vocabulary.

    Attributes:
        eos_token_ids: Tokens that end an answer; with none, generation ends by length alone.
        ignored: File and dotted key of what changes nothing, in the order of the file.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    image_start_token_id: int
    image_end_token_id: int
    video_token_id: int
    video_start_token_id: int
    video_end_token_id: int
    tie_word_embeddings: bool
    eos_token_ids: tuple[int, ...]
    ignored: tuple[tuple[Path, str], ...] = field(default=(), compare=False)

    @staticmethod
    def from_hf(folder: Path) -> "ErnieConfig":
        """Read config.json (and generation_config.json) of a checkpoint folder. Raises InvalidFile, naming the key."""
        require_folder(folder)
        path = folder / "config.json"
        section = JsonObject(path, "", read_json(path))
        if original.is_original(section.members):
            section = JsonObject(path, "", original.translate(section))
        section.expect("model_type", "ernie4_5_vl_moe")
        refuse_quantized(section)
        section = section.with_defaults(TOP_DEFAULTS, {})
        section.expect_one_of(TOP_NEUTRAL)
        text_section = section.object("text_config")
        text = TextConfig.from_json(text_section)
        vision = VisionConfig.from_json(section.object("vision_config"))
        media = {key: section.integer(key, minimum=0, maximum=SIZE_LIMIT) for key in MEDIA_TOKENS}
        tied = section.flag("tie_word_embeddings")
        section.ignore_unknown(BOOKKEEPING)
        for key in PLACEHOLDERS:
            if media[key] >= text.vocab_size:
                raise section.error(key, f"a token below text_config.vocab_size {text.vocab_size}", media[key])
        if media["image_token_id"] == media["video_token_id"]:
            raise section.error("image_token_id", "a token different from video_token_id", media["image_token_id"])
        eos = eos_token_ids(folder, section, text_section, text.vocab_size)
        ignored = tuple(section.ignored)
        return ErnieConfig(
            text=text, vision=vision, tie_word_embeddings=tied, eos_token_ids=eos, ignored=ignored, **media
        )


def refuse_quantized(section: JsonObject) -> None:
    """Raise InvalidFile for a quantised checkpoint, saying by which method, at how many bits and in which groups."""
    if section.get("quantization_config") is None:
        return
    quantization = section.object("quantization_config").members
    words = [str(quantization.get("quant_method", "an unknown method"))]
    words += [name for key, name in QUANTIZATION_FLAGS.items() if quantization.get(key) is True]
    words += [f"{name} {quantization[key]}" for key, name in QUANTIZATION_WORDS.items() if key in quantization]
    hint = "export the checkpoint that it was made from: --precision int4 and int8 quantise here"
    expected = "unquantised weights (F32, BF16 or F16)"
    raise InvalidFile(
        section.path, expected, one_line(f"weights of {', '.join(words)}"), key="quantization_config", hint=hint
    )


def rope_section(section: JsonObject, types: tuple[str, ...], keys: set[str]) -> JsonObject:
    """Return the rotary parameters, `rope_parameters` or the older `rope_scaling`, which the class prefers.

    Args:
        section: The configuration of the decoder or the vision encoder.
        types: Values of `rope_type` that are accepted; the first is the default.
        keys: Further keys that the class reads.

    Raises:
        InvalidFile: Both are there and differ, or the type is another one.
    """
    names = [name for name in ("rope_scaling", "rope_parameters") if section.get(name)] or ["rope_parameters"]
    ropes = [section.object(name, default={}) for name in names]
    read = [{key: rope.members.get(key) for key in ("rope_theta", *keys)} for rope in ropes]
    if read[0] != read[-1]:
        raise section.error("rope_scaling", "the same as rope_parameters")
    for rope in ropes:
        rope_type = rope.get("rope_type", rope.get("type", types[0]))
        if rope_type not in types:
            raise rope.error("rope_type", " or ".join(types), rope_type)
        rope.ignore_unknown({"rope_type", "type", "rope_theta", *keys})
    return ropes[0]


def rope_theta(section: JsonObject, rope: JsonObject, default: float) -> float:
    """Return the rotary base.

    Args:
        section: The configuration of the decoder or the vision encoder, which counts where the next one has none.
        rope: The rotary parameters.
        default: The class's value where neither has one.
    """
    if "rope_theta" in rope:
        return rope.positive("rope_theta")
    return section.positive("rope_theta") if "rope_theta" in section else default


def expect_full_attention(section: JsonObject, num_layers: int) -> None:
    """Refuse `layer_types`, a key of other classes that caches and masks are made by, but for full attention."""
    types = section.get("layer_types")
    if types is not None and types not in (["full_attention"] * num_layers, ["attention"] * num_layers):
        raise section.error("layer_types", f'{num_layers} times "full_attention"')


def layer_types(section: JsonObject, num_layers: int) -> tuple[str, ...]:
    """Return `mlp_layer_types`; a missing key or null means one dense layer before sparse ones."""
    types = section.get("mlp_layer_types")
    if types is None:
        return ("dense",) + ("sparse",) * (num_layers - 1)
    if not isinstance(types, list) or not all(kind in ("dense", "sparse") for kind in types):
        raise section.error("mlp_layer_types", 'a list of "dense" and "sparse"')
    if len(types) != num_layers:
        raise section.error("mlp_layer_types", f"one entry for each of num_hidden_layers {num_layers}", f"{len(types)}")
    return tuple(types)


def eos_token_ids(folder: Path, section: JsonObject, text: JsonObject, vocab_size: int) -> tuple[int, ...]:
    """Return the tokens that end an answer: generation_config.json's if that file is there, else the config's.

    The bundle has a copy of the file, of which a server takes its defaults.

    Args:
        folder: The checkpoint.
        section: Its config.json.
        text: `text_config` of it, which counts where the former has none.
        vocab_size: Number of tokens.

    Raises:
        InvalidFile: A token is no whole number below `vocab_size`.
    """
    path = folder / "generation_config.json"
    generation = JsonObject(path, "", read_json(path) if path.exists() else {}, section.ignored)
    sources = [generation] if path.exists() else [section, text]
    usual = {key for key, values in GENERATION_USUAL.items() if generation.members.get(key) in values}
    generation.ignore_unknown(GENERATION_BOOKKEEPING | usual)
    for source in sources:
        value = source.get("eos_token_id")
        if value is None:
            continue
        tokens = value if isinstance(value, list) else [value]
        if not all(type(token) is int and 0 <= token < vocab_size for token in tokens):
            raise source.error("eos_token_id", f"tokens from 0 to {vocab_size - 1}")
        return tuple(dict.fromkeys(tokens))
    return ()
