"""Read and write conversations in a JSON file: one (a list of messages), or a list of them."""

import json
from pathlib import Path
from typing import Any, TypeGuard, cast

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.errors import CannotWrite, InvalidFile, InvalidValue
from ernie_export.common.json_fields import parse_json_value

Messages = list[dict[str, Any]]


def read(path: Path) -> list[Messages] | Messages:
    """Read one conversation or several; the preprocessor checks what a message may hold.

    Raises InvalidFile for a file that cannot be read, is not JSON or holds neither.
    """
    try:
        text = path.read_bytes()  # of a pipe, too
    except OSError as e:
        raise InvalidFile(path, "a file of messages", e.strerror or e) from e
    document = parse_json_value(path, text)
    if not isinstance(document, list):
        raise InvalidFile(path, "a list of messages or of conversations", type(document).__name__)
    if not document or [] in document:
        raise InvalidFile(path, "at least one message in a conversation", "none")
    kinds = sorted({type(entry).__name__ for entry in document})
    if kinds not in (["dict"], ["list"]):
        raise InvalidFile(path, "a list of messages or of conversations", f"a list of {' and '.join(kinds)}")
    return document


def is_one_conversation(document: list[Messages] | Messages) -> TypeGuard[Messages]:
    """Return whether what `read` has returned is one conversation rather than a list of them."""
    return isinstance(document[0], dict)


def is_text(document: list[Messages] | Messages) -> bool:
    """Return whether what `read` has returned holds no image or video. Whether it is valid is not checked."""
    conversations = cast(list[Messages], [document] if is_one_conversation(document) else document)
    messages = [message for conversation in conversations for message in conversation if isinstance(message, dict)]
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return all(isinstance(part, dict) and part.get("type") == "text" for part in parts)


def with_system(conversation: Messages, system: str | None) -> Messages:
    """Return a conversation that begins with a system prompt, in place of its own; None: with none."""
    others = [message for message in conversation if not isinstance(message, dict) or message.get("role") != "system"]
    return others if system is None else [{"role": "system", "content": system}, *others]


def read_one(path: Path) -> Messages:
    """Read a file of one conversation. Raises InvalidFile as `read` does, and for a file of several."""
    document = read(path)
    if not is_one_conversation(document):
        raise InvalidFile(path, "one conversation, a list of messages", "a list of conversations")
    return document


def write(path: Path, conversation: Messages) -> None:
    """Write one conversation atomically: an existing file is replaced when the new one is complete and on disk.

    Only its owner may read it. Raises CannotWrite if the file cannot be written.
    """
    text = json.dumps(conversation, indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode()
    except UnicodeEncodeError as e:  # a lone surrogate
        raise CannotWrite(path, "the conversation", str(e)) from e
    write_atomically(path, data, "the conversation", is_private=True)


def check_text(text: str, field: str) -> None:
    """Raise InvalidValue, naming `field`, for bytes that are not UTF-8: Python reads these as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise InvalidValue(field, "text in UTF-8", ascii(text)) from e
