"""Load a bundle's processor files as the runtime will, and render a prompt: what would never answer is refused here."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.common.errors import InvalidFile, InvalidValue
from ernie_export.common.manifest_sections import ModelInfo
from ernie_export.common.processor_settings import TEMPLATE_FILE, TEMPLATE_FOLDER, template_file
from ernie_export.runtime.preprocess import ChatProcessor, Preprocessor
from ernie_export.runtime.preprocess import tokenizer_settings as tokenizer_files
from ernie_export.runtime.preprocess.template import TemplateRefusal

MEDIA = ("image", "video")
Content = str | list[dict[str, Any]]


def check_processors(bundle: Path, checkpoint: Path, model_info: ModelInfo) -> tuple[tuple[Path, str], ...]:
    """Load the processor files of `bundle` and render a prompt.

    Args:
        bundle: The folder that the processor files have been copied to.
        checkpoint: Where they come from.
        model_info: What the bundle's manifest will say of the model.

    Returns:
        File and key of each of the processors' settings that changes nothing.

    Raises:
        InvalidFile: The runtime could not answer; the file is one of `checkpoint`.
    """
    with blaming(checkpoint, bundle):
        preprocessor = Preprocessor.from_folder(bundle)
        preprocessor.check(bundle, model_info)
        check_media_tokens(bundle, preprocessor.chat, model_info)
        check_template(preprocessor.chat)
    others = checkpoint / TEMPLATE_FOLDER
    return (
        *(((others, ""),) if others.is_dir() and set(others.iterdir()) != {template_file(checkpoint)} else ()),
        *preprocessor.images.settings.ignored,
        *preprocessor.videos.settings.ignored,
        *preprocessor.chat.ignored,
    )


@contextmanager
def blaming(checkpoint: Path, copy: Path) -> Iterator[None]:
    """Turn an InvalidFile about a file in `copy` into one about the file of `checkpoint` that it was copied from."""
    try:
        yield
    except InvalidFile as e:
        if not e.path.is_relative_to(copy):
            raise
        is_template = e.path == copy / TEMPLATE_FILE
        raise e.moved_to(template_file(checkpoint) if is_template else checkpoint / e.path.relative_to(copy)) from e


def check_media_tokens(folder: Path, chat: ChatProcessor, model_info: ModelInfo) -> None:
    """Raise InvalidFile where the tokens that stand for media have other ids than the model expects."""
    for kind, expected in zip(MEDIA, (model_info.image_token_id, model_info.video_token_id), strict=True):
        key = f"{kind}_token"
        found = chat.token_ids[key]
        if found != expected:
            what = f"the token of id {expected}, {key}_id in config.json"
            raise InvalidFile(
                folder / tokenizer_files.CONFIG_FILE, what, f"{chat.tokenizer.media[key]} of id {found}", key=key
            )


def check_template(chat: ChatProcessor) -> None:
    """Raise InvalidFile unless the template renders a picture, a clip and a system turn, and marks each medium once.

    A template may take the contents of a turn without media as text or as a list of parts alone, and may refuse a
    system turn by `raise_exception`: then it is asked without one.
    """
    problem: InvalidFile | None = None
    for content in (as_text, as_parts):
        try:
            check_conversations(chat, content)
            return
        except InvalidFile as e:
            problem = problem or e
    assert problem is not None
    raise problem


def as_text(text: str) -> Content:
    """Return the content of a turn as text."""
    return text


def as_parts(text: str) -> Content:
    """Return the content of a turn as a list of one part."""
    return [{"type": "text", "text": text}]


def check_conversations(chat: ChatProcessor, content: Any) -> None:
    """Render a conversation of several turns and one for each kind of media, and tokenize them.

    Args:
        chat: Template and tokenizer.
        content: Makes the content of a turn from its text.

    Raises:
        InvalidFile: One cannot be rendered or tokenized, or has not one placeholder for each medium.
    """
    question = {"type": "text", "text": "What is this?"}
    for kind in MEDIA:
        render(chat, [{"role": "user", "content": [{"type": kind, kind: ""}, question]}])
    turns = [
        {"role": "system", "content": content("Answer briefly.")},
        {"role": "user", "content": [{"type": "image", "image": ""}, {"type": "video", "video": ""}, question]},
        {"role": "assistant", "content": content("A ball.")},
        {"role": "user", "content": content("And then?")},
    ]
    try:
        render(chat, turns)
    except InvalidFile as e:
        refused = e.__cause__ is not None and isinstance(e.__cause__.__cause__, TemplateRefusal)
        if not refused:
            raise
        render(chat, turns[1:])


def render(chat: ChatProcessor, messages: list[dict[str, Any]]) -> None:
    """Render and tokenize messages, each medium with the fewest patches. Raises InvalidFile where that fails."""
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    kinds = [part["type"] for part in parts if part["type"] in MEDIA]
    roles = " and ".join(dict.fromkeys(message["role"] for message in messages))
    conversation = f"a conversation of {roles} with {' and '.join(f'one {kind}' for kind in kinds)}"
    try:
        text = chat.render(messages)
    except InvalidValue as e:
        raise InvalidFile(chat.template_file, f"a chat template that renders {conversation}", e.found) from e
    found = chat.placeholders(text)
    if found != kinds:
        tokens = " and ".join(f"one {chat.tokenizer.media[f'{kind}_token']}" for kind in kinds)
        described = " and ".join(chat.tokenizer.media[f"{kind}_token"] for kind in found) or "none"
        raise InvalidFile(chat.template_file, f"a chat template that writes {tokens} for {conversation}", described)
    grids = {"image": [[1, chat.merge_size, chat.merge_size]], "video": [[2, chat.merge_size, chat.merge_size]]}
    arrays = {f"{kind}_grids": np.array(grids[kind]) for kind in kinds}
    try:
        chat.encode(text, **arrays)
    except InvalidValue as e:
        path = chat.template_file.parent / tokenizer_files.FILE
        raise InvalidFile(path, f"a tokenizer that keeps {e.expected}", e.found) from e
