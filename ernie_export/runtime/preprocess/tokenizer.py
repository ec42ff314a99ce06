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
from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.runtime.preprocess.tokenizer_settings import FILE, MEDIA_TOKENS, TokenizerSettings

PIECE = 2**15  # characters that are tokenized at a time to find out whether a text is too long


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
        ignored: File and key of each setting that changes nothing.
    """

    backend: Tokenizer
    named: dict[str, str]
    media: dict[str, str]
    ids: dict[str, int]
    template: Any
    byte_level: bool
    ignored: tuple[tuple[Path, str], ...]

    @classmethod
    def from_folder(cls, folder: Path) -> "ChatTokenizer":
        """Read tokenizer.json, tokenizer_config.json and what older versions wrote beside them.

        Raises InvalidFile where one is missing or damaged, the class is not known, or a media token is not named.
        """
        path = Path(folder) / FILE
        section = JsonObject(path, "", read_json(path))
        settings = TokenizerSettings.from_folder(Path(folder), section)
        content = section.members
        try:
            backend = _llama(content, settings) if settings.llama else Tokenizer.from_str(json.dumps(content))
            backend.no_truncation()
            backend.no_padding()
            backend.encode_special_tokens = settings.split_special_tokens
            _add_tokens(backend, settings)
        except Exception as e:  # a missing part of the file fails here, a malformed one in the Rust library
            found = " ".join(f"{type(e).__name__}: {e}".split())
            raise InvalidFile(path, "a tokenizer", found) from e
        named = {key: str(token) for key, token in settings.named.items()}
        media = {key: named[key] for key in MEDIA_TOKENS}
        ids: dict[str, int] = {}
        for key, text in media.items() | {"eos_token": named.get("eos_token", "")}.items():
            index = backend.token_to_id(text)
            if index is not None:
                ids[key] = index
        return cls(backend, named, media, ids, settings.template, settings.byte_level, settings.ignored)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a rendered prompt.

        The post-processor's special tokens are added, unless the prompt begins with the beginning-of-sequence token:
        the rule of `apply_chat_template` (processing_utils.py). ERNIE's tokenizers add none either way.

        The library lets other threads run while it tokenizes a batch, but not while it tokenizes a single text.
        """
        bos = self.named.get("bos_token")
        special = add_special_tokens and not (bos is not None and text.startswith(bos))
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

    def special_id(self, text: str) -> int | None:
        """Return the id of a special token, which `decode` leaves out; None for any other text."""
        added = self.backend.get_added_tokens_decoder().items()
        return next((id for id, token in added if token.special and token.content == text), None)

    def is_added(self, text: str) -> bool:
        """Return whether a text is one token that was added to the vocabulary, special or not."""
        return any(token.content == text for token in self.backend.get_added_tokens_decoder().values())

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, special tokens left out or with their names."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def bad_word_ids(self, word: str) -> list[list[int]]:
        """Return the token ids of a word at the beginning of a text and, where they differ in the first, within one.

        Source: `SamplingParams.update_from_tokenizer` (vllm/sampling_params.py).
        """
        bare = self.backend.encode(word.lstrip(" "), add_special_tokens=False).ids
        within = self.backend.encode(" " + word.lstrip(" "), add_special_tokens=False).ids
        forms = [bare] if bare else []
        if bare and within[0] != bare[0] and len(within) == len(bare):
            forms.append(within)
        return forms


def _llama(content: dict[str, Any], settings: TokenizerSettings) -> Tokenizer:
    model = content["model"]
    merges = []
    for merge in model["merges"]:  # "left right" in older files, ["left", "right"] in newer
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        merges.append((left, right))
    backend = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, fuse_unk=True, byte_fallback=True))
    prefix = settings.add_prefix_space
    scheme = ("always" if settings.legacy else "first") if prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(content=" ", left=1)] if prefix else []))
    if content.get("post_processor") is not None:
        # The library reads a post-processor only as part of a complete tokenizer, so this one has an empty vocabulary.
        empty = {**content, "model": {**model, "vocab": {}, "merges": []}, "added_tokens": []}
        backend.post_processor = Tokenizer.from_str(json.dumps(empty)).post_processor
    return backend


def _add_tokens(backend: Tokenizer, settings: TokenizerSettings) -> None:
    """Add the listed tokens in order of id, then the named and extra ones that are not among them.

    A text without properties is a special token; one with them is special if it is named.
    """
    present = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    names = {str(token) for token in settings.named.values()}
    tokens = [token for token in settings.listed if repr(token) not in present]
    known |= {token.content for token in tokens}
    for token in (*settings.named.values(), *settings.extra):
        if str(token) not in known:
            known.add(str(token))
            tokens.append(AddedToken(token, special=True) if isinstance(token, str) else token)
    for token in tokens:
        token.special = token.special or token.content in names
    backend.add_tokens(tokens)
