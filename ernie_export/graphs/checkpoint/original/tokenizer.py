"""The original revision's tokenizer and chat template, translated to the files that transformers' converter writes.

The original tokenizer is a SentencePiece model (`tokenizer.model`) with further tokens beside it; the Hugging Face
layout has a byte-fallback BPE of the Llama class (`tokenizer.json`). What becomes of what is read from
`convert_ernie4_5_vl_moe_to_hf.py` and from `SentencePieceExtractor` in the transformers repository.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ernie_export.common import git_lfs
from ernie_export.common.errors import InvalidFile
from ernie_export.common.json_fields import JsonObject, one_line, read_json
from ernie_export.common.processor_settings import template_file
from ernie_export.graphs.checkpoint.original.config import check_fixed
from ernie_export.graphs.config import ErnieConfig

CONFIG_FILE = "tokenizer_config.json"
NAMED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "cls_token": "<|begin_of_sentence|>",
    "sep_token": "<|end_of_sentence|>",
    "mask_token": "<mask:1>",
}
MEDIA = {
    "image_token": "<|IMAGE_PLACEHOLDER|>",
    "image_start_token": "<|IMAGE_START|>",
    "image_end_token": "<|IMAGE_END|>",
    "video_token": "<|VIDEO_PLACEHOLDER|>",
    "video_start_token": "<|VIDEO_START|>",
    "video_end_token": "<|VIDEO_END|>",
}
# The converter adds these where they are missing, in this order. (The original code has no token for a video's place.)
ADDED = (MEDIA["video_token"], "<think>", "</think>")
DIGITS = tuple(str(digit) for digit in range(10))
# The original template's marks, which its processor cuts the prompt at, and the tokens that stand there in ours.
PLACES = {"<|image@placeholder|>": MEDIA["image_token"], "<|video@placeholder|>": MEDIA["video_token"]}
FIXED = {
    "tokenizer_class": "Ernie4_5_VLTokenizer",
    "add_bos_token": False,
    "add_eos_token": False,
    "add_prefix_space": False,
}
# Of other tokenizer classes, of batches, or of where the code is found.
WITHOUT_EFFECT = frozenset(
    "auto_map chat_template clean_up_tokenization_spaces extra_special_tokens legacy model_input_names "
    "model_max_length name_or_path padding_side processor_class spaces_between_special_tokens sp_model_kwargs "
    "truncation_side use_default_system_prompt use_fast".split()
)


def translate_tokenizer(folder: Path, config: ErnieConfig) -> dict[str, bytes]:
    """Return tokenizer.json, tokenizer_config.json and chat_template.jinja, by name.

    Raises UserError naming file and key (or token) where a file is missing or says what the translation cannot keep.
    """
    settings = JsonObject(folder / CONFIG_FILE, "", read_json(folder / CONFIG_FILE))
    check_fixed(settings, FIXED)
    special = special_tokens(settings)
    if (folder / "special_tokens_map.json").is_file():
        path = folder / "special_tokens_map.json"
        listed = JsonObject(path, "", read_json(path))
        special |= special_tokens(listed)
        listed.refuse_unknown(())
    backend = vocabulary(folder)
    add_at(backend, added_tokens(folder, settings, special), folder)
    settings.refuse_unknown(WITHOUT_EFFECT)
    for text in (*NAMED.values(), *MEDIA.values(), *DIGITS):
        if text not in ADDED and backend.token_to_id(text) is None:
            raise InvalidFile(folder, f"token {text}", "no such token", key="tokenizer")
    names = (*NAMED.values(), *MEDIA.values(), *ADDED)
    backend.add_tokens([AddedToken(text, normalized=False, special=True) for text in dict.fromkeys(names)])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in DIGITS])
    check_ids(backend, folder, config)
    translated = (
        NAMED
        | MEDIA
        | {
            "tokenizer_class": "LlamaTokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": [*MEDIA.values(), *ADDED[1:]],
            "model_max_length": config.text.max_positions,
        }
    )
    return {
        "tokenizer.json": backend.to_str().encode(),
        CONFIG_FILE: json.dumps(translated, indent=1).encode(),
        "chat_template.jinja": chat_template(folder, settings).encode(),
    }


def special_tokens(section: JsonObject) -> set[str]:
    """Return the special tokens that a file names or lists; the named ones must be those that the converter sets."""
    for key, expected in NAMED.items():
        value = section.get(key)
        if value is not None and text_of(value) != expected:
            raise section.error(key, expected, value)
    listed = section.get("additional_special_tokens") or []
    if not isinstance(listed, list) or not all(text_of(token) for token in listed):
        raise section.error("additional_special_tokens", "a list of tokens", listed)
    return {*NAMED.values(), *map(text_of, listed)}


def text_of(token: Any) -> str:
    """Return a token's text, which may stand in an object with its properties; "" where there is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def vocabulary(folder: Path) -> Tokenizer:
    """Load the tokenizer without its added tokens, from tokenizer.json if there is one, else from tokenizer.model."""
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return Tokenizer.from_file(str(path))
        except Exception as e:  # the library raises plain Exception
            raise InvalidFile(path, "a tokenizer", one_line(" ".join(str(e).split()))) from e
    return from_sentencepiece(folder / "tokenizer.model")


def from_sentencepiece(path: Path) -> Tokenizer:
    """Convert a SentencePiece BPE as the Llama class runs it; control and user-defined pieces are tokens of their own.

    SentencePiece merges whichever neighbours make the piece of the least id, so each way to cut a piece in two pieces
    is a merge, in order of the piece's id.
    """
    from sentencepiece import sentencepiece_model_pb2 as schema  # here alone: other checkpoints need no SentencePiece

    model = schema.ModelProto()  # type: ignore[attr-defined]  # made at run time
    try:
        content = path.read_bytes()
    except OSError as e:
        raise InvalidFile(path, "a SentencePiece model", e.strerror) from e
    if git_lfs.is_pointer(content):
        raise InvalidFile(path, "a SentencePiece model", git_lfs.FOUND, hint=git_lfs.HINT)
    try:
        model.ParseFromString(content)
    except Exception as e:  # protobuf's DecodeError
        raise InvalidFile(path, "a SentencePiece model", one_line(" ".join(str(e).split()))) from e
    kind = schema.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)  # type: ignore[attr-defined]
    if kind != "BPE" or not model.pieces:
        raise InvalidFile(path, "a BPE model", f"{kind} of {len(model.pieces)} pieces")
    pieces = {piece.piece: index for index, piece in enumerate(model.pieces)}
    if strange := [piece for piece in pieces if not isinstance(piece, str)]:  # protobuf's form of text that is no UTF-8
        raise InvalidFile(path, "pieces of text", repr(strange[0]))
    if len(pieces) != len(model.pieces):
        raise InvalidFile(path, "each piece once", f"{len(model.pieces) - len(pieces)} again")
    cuts = ((piece[:place], piece[place:]) for piece in pieces for place in range(1, len(piece)))
    merges = [(left, right) for left, right in cuts if left in pieces and right in pieces]
    backend = Tokenizer(models.BPE(vocab=pieces, merges=merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    types = model.SentencePiece
    own = [piece for piece in model.pieces if piece.type in (types.CONTROL, types.USER_DEFINED)]
    backend.add_tokens([AddedToken(p.piece, normalized=False, special=p.type == types.CONTROL) for p in own])
    return backend


def added_tokens(folder: Path, settings: JsonObject, special: set[str]) -> dict[int, AddedToken]:
    """Return the tokens beside the vocabulary, by ascending id: `added_tokens_decoder`, or else added_tokens.json."""
    found: dict[int, AddedToken] = {}
    listed = settings.get("added_tokens_decoder")
    if listed is not None:
        for index, token in settings.object("added_tokens_decoder").members.items():
            try:
                found[int(index)] = AddedToken(**token)
            except (TypeError, ValueError) as e:
                raise settings.error("added_tokens_decoder", "ids and tokens", {index: token}) from e
    elif (folder / "added_tokens.json").is_file():
        path = folder / "added_tokens.json"
        for text, index in read_json(path).items():
            if type(index) is not int:
                raise InvalidFile(path, "an id", one_line(index), key=one_line(text))
            found[index] = AddedToken(text, normalized=text not in special, special=text in special)
    return dict(sorted(found.items()))


def add_at(backend: Tokenizer, tokens: dict[int, AddedToken], folder: Path) -> None:
    """Add tokens, each of which must get its id: in the vocabulary, or the first free one."""
    backend.add_tokens(list(tokens.values()))  # all at once: each call sorts every added token again
    for index, token in tokens.items():
        place = backend.token_to_id(token.content)
        if place != index:
            raise InvalidFile(folder, f"id {place}", index, key=f"added token {one_line(token.content)}")


def check_ids(backend: Tokenizer, folder: Path, config: ErnieConfig) -> None:
    """Raise InvalidFile unless media tokens have config.json's ids, and all tokens a row of the embedding."""
    for key, text in MEDIA.items():
        expected = getattr(config, f"{key}_id")
        found = backend.token_to_id(text)
        if found != expected:
            raise InvalidFile(folder, f"id {expected} by config.json", found, key=f"token {text}")
    if backend.get_vocab_size() > config.text.vocab_size:
        expected = f"at most vocab_size {config.text.vocab_size} tokens"
        raise InvalidFile(folder, expected, backend.get_vocab_size(), key="tokenizer")


def chat_template(folder: Path, settings: JsonObject) -> str:
    """Return the checkpoint's own template, with our tokens where the original marks images and videos."""
    path = template_file(folder)
    older = folder / "chat_template.json"
    template = settings.members.get("chat_template")
    if path.is_file():
        try:
            template = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark first
        except (OSError, ValueError) as e:
            raise InvalidFile(path, "a chat template", one_line(" ".join(str(e).split()))) from e
    elif older.is_file():
        template = read_json(older).get("chat_template")
    if not isinstance(template, str):
        raise settings.error("chat_template", "a chat template", template)
    for mark, token in PLACES.items():
        template = template.replace(mark, token)
        if token not in template:
            raise settings.error("chat_template", f"a template with {mark}", template)
    return template
