"""The settings of a checkpoint's tokenizer: tokenizer_config.json, and the files beside it that older versions wrote.

They are merged as `PreTrainedTokenizerBase._from_pretrained` of transformers 5.23 merges them: of the older files,
special_tokens_map.json and added_tokens.json, it reads neither where tokenizer_config.json lists
`added_tokens_decoder`. A key that changes a token, a prompt or an answer is honoured or refused by name; any other is
noted in `TokenizerSettings.ignored`, but for those that the class itself writes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.runtime.preprocess.tokenizer_classes import OTHER_CLASSES

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
MAP_FILE = "special_tokens_map.json"
ADDED_FILE = "added_tokens.json"
# The tokens that chat templates may name; the Llama class defaults three of them.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LLAMA_DEFAULTS: dict[str, "Token"] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MEDIA_TOKENS = (
    "image_token", "image_start_token", "image_end_token", "video_token", "video_start_token", "video_end_token",
)  # fmt: skip
MODEL_FILE = "config.json"
LLAMA = "LlamaTokenizer"
MAX_ID = 2**31 - 1
# For these transformers takes tokenizer.json as it stands, and for names that it does not know. The last two are
# Baidu's own classes.
AS_IT_STANDS = ("TokenizersBackend", "PreTrainedTokenizer", "Ernie4_5_VLTokenizer", "Ernie4_5Tokenizer")
# What the classes write and no token depends on, where tokenizer.json is there.
BOOKKEEPING = frozenset(
    "added_tokens_file backend clean_up_tokenization_spaces is_local local_files_only max_length model_input_names "
    "model_max_length name_or_path pad_to_multiple_of pad_token_type_id padding_side processor_class sp_model_kwargs "
    "spaces_between_special_tokens special_tokens_map_file stride tokenizer_file truncation_side truncation_strategy "
    "use_default_system_prompt".split()
)
USUAL: dict[str, tuple[Any, ...]] = {
    "add_bos_token": (False, None),  # tokenizer.json says whether they are added
    "add_eos_token": (False, None),
    "clean_up_tokenization_spaces": (False, None),  # without effect on byte-pair encodings
}
Token = str | AddedToken


@dataclass(frozen=True)
class TokenizerSettings:
    """What the files beside tokenizer.json say of a tokenizer.

    Attributes:
        llama: Whether the tokenizer is of the Llama class; otherwise tokenizer.json is used as it stands.
        byte_level: Whether its pieces are bytes, each written as a character.
        named: Special tokens by name, in the order in which missing ones are added.
        extra: Special tokens without names.
        listed: Tokens to add beside these, in the order of their ids.
        add_prefix_space: Whether the Llama class puts a space before a text.
        legacy: Whether it puts one after each special token, too.
        split_special_tokens: Whether special tokens in a text are taken for plain text.
        template: The chat template as tokenizer_config.json has it, or None.
        ignored: File and key of what changes nothing.
    """

    llama: bool
    byte_level: bool
    named: dict[str, Token]
    extra: tuple[Token, ...]
    listed: tuple[AddedToken, ...]
    add_prefix_space: bool
    legacy: bool
    split_special_tokens: bool
    template: Any
    ignored: tuple[tuple[Path, str], ...]

    @classmethod
    def from_folder(cls, folder: Path, tokenizer: JsonObject) -> "TokenizerSettings":
        """Read the settings beside `tokenizer`, which is tokenizer.json.

        Raises InvalidFile where a file is missing or malformed, the class is not known, a media token is not named, or
        a value would change the result and is not implemented.
        """
        config = JsonObject(folder / CONFIG_FILE, "", read_json(folder / CONFIG_FILE))
        older = JsonObject(folder / MAP_FILE, "", {})
        added = JsonObject(folder / ADDED_FILE, "", {})
        if "added_tokens_decoder" not in config:
            older, added = (
                JsonObject(section.path, "", read_json(section.path)) if section.path.is_file() else section
                for section in (older, added)
            )
        byte_level = is_byte_level(tokenizer.members)
        llama = _is_llama(config, folder) and not byte_level
        _refuse_unsupported(config, tokenizer)
        named = _named_tokens(config, older, dict(LLAMA_DEFAULTS) if llama else {})
        padding = tokenizer.get("padding")
        if isinstance(padding, dict) and "pad_token" not in config and "pad_token" not in older:
            named["pad_token"] = str(padding.get("pad_token"))
        named |= _model_tokens(config, older)
        for key in MEDIA_TOKENS:
            if key not in named:
                raise config.error(key, "a token")
        extra = _extra_tokens(config, older)
        if "added_tokens_decoder" in config:
            listed = _listed_tokens(config)
        else:
            texts = {str(token) for token in (*named.values(), *extra)}
            listed = _older_tokens(added, texts) | _tokenizer_tokens(tokenizer)
        prefix_space = config.optional("add_prefix_space", config.flag)
        settings = cls(
            llama=llama,
            byte_level=byte_level,
            named=named,
            extra=extra,
            listed=tuple(token for _, token in sorted(listed.items(), key=lambda item: item[0])),
            add_prefix_space=prefix_space is None or prefix_space,
            legacy=bool(config.get("legacy")),
            split_special_tokens=bool(config.get("split_special_tokens")),
            template=config.get("chat_template"),
            ignored=(),
        )
        usual = {key for key, values in USUAL.items() if config.members.get(key) in values}
        config.ignore_unknown(BOOKKEEPING | usual)
        return replace(settings, ignored=tuple(config.ignored))


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Return whether tokenizer.json declares a byte-level pipeline, which the Llama class cannot serve."""

    def has(step: Any) -> bool:
        if not isinstance(step, dict):
            return False
        inner = (step.get("pretokenizers") or []) + (step.get("decoders") or [])
        return step.get("type") == "ByteLevel" or any(has(s) for s in inner)

    return has(tokenizer.get("pre_tokenizer")) or has(tokenizer.get("decoder"))


def _is_llama(config: JsonObject, folder: Path) -> bool:
    """Return whether the class is Llama's, by tokenizer_config.json or else config.json, and not TokenizersBackend.

    A name in tokenizer_config.json that transformers does not know changes nothing. Raises InvalidFile for a class that
    it knows, or for code of the checkpoint's own.
    """
    section = config
    if config.get("tokenizer_class") is None and (folder / MODEL_FILE).is_file():
        section = JsonObject(folder / MODEL_FILE, "", read_json(folder / MODEL_FILE))
    name = section.text("tokenizer_class", default=AS_IT_STANDS[0]).removesuffix("Fast")
    if name == LLAMA:
        return True
    unknown = name not in AS_IT_STANDS
    if name in OTHER_CLASSES or (unknown and section is not config):
        raise section.error("tokenizer_class", f"{LLAMA} or {AS_IT_STANDS[0]}")
    if name not in AS_IT_STANDS[:2] and "auto_map" in config:
        raise config.error("auto_map", f"no code of the checkpoint's own, as for {LLAMA}")
    if unknown:
        config.ignored.append((config.path, "tokenizer_class"))
    return False


def _refuse_unsupported(config: JsonObject, tokenizer: JsonObject) -> None:
    """Raise InvalidFile for settings that change ids or answers and are not implemented."""
    config.expect_one_of({"init_inputs": ([],)})
    model = tokenizer.get("model")
    byte_pairs = isinstance(model, dict) and model.get("type", "BPE") == "BPE"
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    if config.members.get("clean_up_tokenization_spaces") and (forced or not byte_pairs):
        raise config.error("clean_up_tokenization_spaces", "false")


def _token(section: JsonObject, key: str, value: Any) -> Token:
    """Return a token: a text, or the object of an AddedToken. Raises InvalidFile for anything else."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return _added_token(section, key, {name: item for name, item in value.items() if name != "__type"})
    raise section.error(key, "a token", value)


def _added_token(section: JsonObject, key: str, members: Any) -> AddedToken:
    """Return a token with its properties. Raises InvalidFile for what is no such object."""
    try:
        token = AddedToken(**members)
    except (TypeError, ValueError) as e:
        raise section.error(key, "a token", members) from e
    if not token.content:
        raise section.error(key, "a token", members)
    return token


def _older_token(section: JsonObject, key: str, value: Any) -> Token:
    """Return a token of special_tokens_map.json, special in any case."""
    if not isinstance(value, dict):
        return _token(section, key, value)
    members = {name: item for name, item in value.items() if name not in ("special", "__type")}
    return _added_token(section, key, members | {"special": True})


def _named_tokens(config: JsonObject, older: JsonObject, defaults: dict[str, Token]) -> dict[str, Token]:
    """Return the tokens that every class may name, in transformers' order; null leaves one out."""
    values: dict[str, Token | None] = dict(defaults)
    for key in NAMED_TOKENS:
        value = config.get(key)
        if key in older:
            values[key] = None if older.get(key) is None else _older_token(older, key, older.get(key))
        elif key in config:
            values[key] = None if value is None else _token(config, key, value)
    return {key: token for key in NAMED_TOKENS if (token := values.get(key)) is not None}


def _model_tokens(config: JsonObject, older: JsonObject) -> dict[str, Token]:
    """Return the tokens that the model names: texts of tokenizer_config.json win over what else names them."""

    def own(section: JsonObject) -> dict[str, Any]:
        return {
            key: value for key, value in section.members.items() if key.endswith("_token") and key not in NAMED_TOKENS
        }

    explicit = {
        key: _token(config, key, config.get(key)) for key, value in own(config).items() if isinstance(value, str)
    }
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        explicit |= {key: _token(config, f"extra_special_tokens.{key}", value) for key, value in extra.items()}
    listed = config.get("model_specific_special_tokens")
    if not explicit and isinstance(listed, dict):
        explicit = {key: _token(config, f"model_specific_special_tokens.{key}", value) for key, value in listed.items()}
    extra = older.get("extra_special_tokens")
    if isinstance(extra, dict):
        explicit |= {key: _token(older, f"extra_special_tokens.{key}", value) for key, value in extra.items()}
    others = {
        key: _token(config, key, config.get(key))
        for key, value in own(config).items()
        if isinstance(value, dict) and value.get("__type") == "AddedToken"
    }
    others |= {
        key: _older_token(older, key, value) for key, value in own(older).items() if isinstance(value, str | dict)
    }
    return others | explicit


def _extra_tokens(config: JsonObject, older: JsonObject) -> tuple[Token, ...]:
    """Return the special tokens without names; additional_special_tokens is the older name of their list."""
    keys = ("extra_special_tokens", "additional_special_tokens")
    key = next((key for key in keys if config.get(key)), keys[0])
    value = config.get(key)
    tokens = [] if isinstance(value, dict) else _token_list(config, key, _token)
    listed = older.get(keys[0])
    if listed is not None:
        tokens = [] if isinstance(listed, dict) else [*tokens, *_token_list(older, keys[0], _older_token)]
    elif keys[1] in older and (isinstance(value, dict) or not any(name in config for name in keys)):
        tokens = _token_list(older, keys[1], _older_token)
    return tuple(tokens)


def _token_list(section: JsonObject, key: str, read: Callable[[JsonObject, str, Any], Token]) -> list[Token]:
    """Return the tokens of a list; null is an empty one. Raises InvalidFile, naming the key."""
    values = section.get(key)
    if values is None:
        return []
    if not isinstance(values, list):
        raise section.error(key, "a list of tokens")
    return [read(section, key, value) for value in values]


def _listed_tokens(config: JsonObject) -> dict[int, AddedToken]:
    """Return `added_tokens_decoder`. Raises InvalidFile where it has no ids as keys, or no tokens as values."""
    key = "added_tokens_decoder"
    members = config.object(key).members
    if not all(index.isdecimal() for index in members):
        raise config.error(key, "tokens by their ids")
    return {int(index): _added_token(config, f"{key}.{index}", token) for index, token in members.items()}


def _older_tokens(added: JsonObject, special: set[str]) -> dict[int, AddedToken]:
    """Return the tokens of added_tokens.json; those of `special` are special, and others may be normalised."""
    tokens = {}
    for text in added.members:
        index = added.integer(text, minimum=0, maximum=MAX_ID)
        tokens[index] = AddedToken(text, normalized=text not in special, special=text in special)
    return tokens


def _tokenizer_tokens(tokenizer: JsonObject) -> dict[int, AddedToken]:
    """Return the added tokens of tokenizer.json. Raises InvalidFile where they are none."""
    key = "added_tokens"
    entries = tokenizer.get(key)
    if not isinstance(entries, list) or not all(isinstance(e, dict) and type(e.get("id")) is int for e in entries):
        raise tokenizer.error(key, "a tokenizer with a list of tokens")
    return {
        entry["id"]: _added_token(tokenizer, key, {name: item for name, item in entry.items() if name != "id"})
        for entry in entries
    }
