"""Conversations in a JSON file: one (a list of messages), or a list of them."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

from ernie_export.common.errors import UserError

Messages = list[dict[str, Any]]


def read(path: Path) -> list[Messages] | Messages:
    """One conversation or several; what a message may hold is for the preprocessor to check.

    Raises UserError for a file that can't be read, isn't JSON or holds neither.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as e:
        raise UserError(f"{path}: expected a file of messages, found {e.strerror}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{path}: expected JSON, found {e}") from e
    if not isinstance(document, list):
        raise UserError(f"{path}: expected a list of messages or of conversations, found {type(document).__name__}")
    if not document or [] in document:
        raise UserError(f"{path}: expected at least one message in a conversation, found none")
    kinds = sorted({type(entry).__name__ for entry in document})
    if kinds not in (["dict"], ["list"]):
        raise UserError(
            f"{path}: expected a list of messages or of conversations, found a list of {' and '.join(kinds)}"
        )
    return document


def read_one(path: Path) -> Messages:
    """As `read`, for a file of one conversation. Raises UserError for one of several, too."""
    document = read(path)
    if isinstance(document[0], list):
        raise UserError(f"{path}: expected one conversation, a list of messages, found a list of conversations")
    return cast(Messages, document)


def write(path: Path, conversation: Messages) -> None:
    """Write one conversation, in one step: what was there before stays whole until the new file is, and on disk.

    Its owner alone may read it. Raises UserError where the file can't be written.
    """
    text = json.dumps(conversation, indent=2, ensure_ascii=False) + "\n"
    try:
        data = text.encode()
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:80]}.", delete=False) as file:
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name, or half a character in the text
        found = getattr(e, "strerror", None) or e
        raise UserError(f"{path}: expected a file that can be written, found {found}") from e
