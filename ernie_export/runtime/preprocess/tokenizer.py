"""Build the checkpoint's tokenizer as transformers 5.23 does, on the `tokenizers` library alone.

For the class "LlamaTokenizer" transformers takes only the vocabulary, merges, post-processor and added tokens from
tokenizer.json and builds the rest of the pipeline itself (models/llama/tokenization_llama.py), so that a file whose
own normaliser or decoder differs gives the same ids here as there. A byte-level file, or one with no class of its own,
is used as it stands.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import one_line, read_json

FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
PIECE = 2**15  # characters that are tokenized at a time to find out whether a text is too long
# The tokens that chat templates may name; the Llama class defaults three of them.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LLAMA_DEFAULTS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
MEDIA_TOKENS = (
    "image_token", "image_start_token", "image_end_token", "video_token", "video_start_token", "video_end_token",
)  # fmt: skip


@dataclass(frozen=True)
class ChatTokenizer:
    """A checkpoint's tokenizer.

    Attributes:
        backend: The tokenizer itself.
        named: Texts of the named special tokens (bos_token, ...).
        media: Texts of the six media tokens.
        ids: Ids of the media tokens and of eos_token.
        template: The chat template of tokenizer_config.json, or None.
        byte_level: Whether its pieces are bytes, each written as a character.
    """

    backend: Tokenizer
    named: dict[str, str]
    media: dict[str, str]
    ids: dict[str, int]
    template: Any
    byte_level: bool

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTokenizer":
        """Read tokenizer.json and tokenizer_config.json.

        Raises InvalidFile where one is missing or damaged, the class is not known, or a media token is not named.
        """
        path = Path(folder) / FILE
        config_path = Path(folder) / CONFIG_FILE
        config = read_json(config_path)
        content = read_json(path)
        kind = str(config.get("tokenizer_class") or "TokenizersBackend").removesuffix("Fast")
        byte_level = _byte_level(content)
        llama = kind == "LlamaTokenizer" and not byte_level
        if kind not in ("LlamaTokenizer", "TokenizersBackend", "PreTrainedTokenizer"):
            expected = "LlamaTokenizer or TokenizersBackend"
            raise InvalidFile(config_path, expected, one_line(kind), key="tokenizer_class")
        media = {key: _text(config.get(key), key, config_path) for key in MEDIA_TOKENS}
        named = _named_tokens(config, llama, config_path)
        try:
            backend = _llama(content, config) if llama else Tokenizer.from_str(json.dumps(content))
            backend.no_truncation()
            backend.no_padding()
            _add_tokens(backend, content, config, list(named.values()), llama)
        except Exception as e:  # a missing part of the file fails here, a malformed one in the Rust library
            found = " ".join(f"{type(e).__name__}: {e}".split())
            raise InvalidFile(path, "a tokenizer", found) from e
        ids: dict[str, int] = {}
        for key, text in media.items() | {"eos_token": named.get("eos_token", "")}.items():
            index = backend.token_to_id(text)
            if index is not None:
                ids[key] = index
        return cls(backend, named, media, ids, config.get("chat_template"), byte_level)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a rendered prompt.

        The post-processor's special tokens are added, unless the prompt begins with the beginning-of-sequence token:
        the rule of `apply_chat_template` (processing_utils.py). ERNIE's tokenizers add none either way.

        The library lets other threads run while it tokenizes a batch, but not while it tokenizes a single text.
        """
        bos = self.named.get("bos_token")
        special = not (bos is not None and text.startswith(bos))
        return self.backend.encode_batch([text], add_special_tokens=special)[0].ids

    def is_longer(self, text: str, max_tokens: int) -> bool:
        """Return whether a text certainly has more than `max_tokens` tokens, without tokenizing much more than these.

        The text is tokenized in pieces. A cut may add a few tokens: an eighth more than `max_tokens` is allowed for.
        False says nothing of a text that is hardly longer.
        """
        if len(text) <= PIECE:
            return False
        tokens = 0
        for start in range(0, len(text), PIECE):
            (encoding,) = self.backend.encode_batch([text[start : start + PIECE]], add_special_tokens=False)
            tokens += len(encoding)
            if tokens > max_tokens + max_tokens // 8:
                return True
        return False

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return self.backend.decode(ids, skip_special_tokens=True)


def _extra_tokens(config: dict[str, Any]) -> Any:
    """Return a list of special tokens without names, or an object of named ones."""
    return config.get("extra_special_tokens") or config.get("additional_special_tokens") or []


def _named_tokens(config: dict[str, Any], llama: bool, path: Path) -> dict[str, str]:
    """Return named special tokens in transformers' order of adding missing ones: its own seven, then the model's."""
    values: dict[str, Any] = dict(_LLAMA_DEFAULTS) if llama else {}
    values |= {key: config[key] for key in NAMED_TOKENS if config.get(key) is not None}
    model = {key: value for key, value in config.items() if key.endswith("_token") and isinstance(value, str | dict)}
    extra = _extra_tokens(config)
    names = [*(key for key in NAMED_TOKENS if key in values), *(key for key in model if key not in NAMED_TOKENS)]
    values |= model | (extra if isinstance(extra, dict) else {})
    return {key: _text(values[key], key, path) for key in dict.fromkeys([*names, *values])}


def _text(value: Any, key: str, path: Path) -> str:
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or not text:
        raise InvalidFile(path, "a token", one_line(json.dumps(value)), key=one_line(key))
    return text


def _byte_level(content: dict[str, Any]) -> bool:
    """Return whether tokenizer.json declares a byte-level pipeline, which the Llama class cannot serve."""

    def has(step: Any) -> bool:
        if not isinstance(step, dict):
            return False
        inner = (step.get("pretokenizers") or []) + (step.get("decoders") or [])
        return step.get("type") == "ByteLevel" or any(has(s) for s in inner)

    return has(content.get("pre_tokenizer")) or has(content.get("decoder"))


def _llama(content: dict[str, Any], config: dict[str, Any]) -> Tokenizer:
    model = content["model"]
    merges = []
    for merge in model["merges"]:  # "left right" in older files, ["left", "right"] in newer
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, fuse_unk=True, byte_fallback=True))
    prefix = True if config.get("add_prefix_space") is None else bool(config["add_prefix_space"])
    scheme = ("always" if config.get("legacy") else "first") if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(content=" ", left=1)] if prefix else []))
    if content.get("post_processor") is not None:
        # The library reads a post-processor only as part of a complete tokenizer, so this one has an empty vocabulary.
        empty = {**content, "model": {**model, "vocab": {}, "merges": []}, "added_tokens": []}
        backend.post_processor = Tokenizer.from_str(json.dumps(empty)).post_processor
    return backend


def _add_tokens(
    backend: Tokenizer, content: dict[str, Any], config: dict[str, Any], named: list[str], llama: bool
) -> None:
    """Add the listed tokens in order of id, then the named and extra ones that are not among them, as special tokens.

    Args:
        backend: The tokenizer to add them to.
        content: tokenizer.json.
        config: tokenizer_config.json, whose added_tokens_decoder wins.
        named: Texts of the named special tokens.
        llama: Whether tokens that `backend` has are added anew, as the Llama class does.
    """
    listed = config.get("added_tokens_decoder")
    if listed is not None:
        entries = [(int(index), dict(token)) for index, token in listed.items()]
    else:
        entries = [(token["id"], {k: v for k, v in token.items() if k != "id"}) for token in content["added_tokens"]]
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokens = [AddedToken(token.pop("content"), **token) for _, token in sorted(entries, key=lambda e: e[0])]
    tokens = [token for token in tokens if llama or token.content not in known]
    known |= {token.content for token in tokens}
    extra = _extra_tokens(config)
    texts = [] if isinstance(extra, dict) else [t["content"] if isinstance(t, dict) else t for t in extra]
    for text in [*named, *texts]:
        if text not in known:
            known.add(text)
            tokens.append(AddedToken(text, special=True))
    backend.add_tokens(tokens)
