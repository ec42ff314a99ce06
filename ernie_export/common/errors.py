"""The errors that a user or the machine causes. Commands print one as a single line and exit with code 2.

UserError                      anything below; one printable line
├── InvalidValue               an option, argument or request field: `field`, `expected`, `found`
│   ├── InvalidMedia           a picture or clip that cannot be read, or is beyond a limit
│   └── ContextLengthExceeded  a prompt, or prompt and answer, that the model or its KV cache cannot hold
├── InvalidFile                a file, or one key of it: `path`, `key`, `expected`, `found`
├── CannotWrite                an output that cannot be written: `path`, `reason`
├── BuildFailed                a compiler or engine builder refused or failed
└── Unavailable                a device, library or extra that is missing or too old

Callers read types and attributes, never the text. Text keeps one form: "WHAT: expected X, found Y".
"""

import traceback
from pathlib import Path
from typing import TextIO

MAX_LENGTH = 16_000  # characters of a message: enough for a few paths of the longest there are


class UserError(Exception):
    """Input or environment that cannot be used. The message is one printable line that says what, and what instead."""

    def __init__(self, message: str) -> None:
        super().__init__(one_printable_line(message))


class InvalidValue(UserError):
    """A value that cannot be used.

    Attributes:
        field: The option, argument or request field, as its user writes it ("--max-tokens", "messages[0].role").
        expected: What would be accepted.
        found: What was given.
    """

    def __init__(self, field: str, expected: str, found: object, hint: str = "") -> None:
        self.field = field
        self.expected = expected
        self.found = str(found)
        self.hint = hint
        super().__init__(f"{field}: expected {expected}, found {found}" + (f" ({hint})" if hint else ""))


class InvalidMedia(InvalidValue):
    """A picture or clip that cannot be read or decoded, or that exceeds a limit. `field` names it."""


class ContextLengthExceeded(InvalidValue):
    """A prompt, or a prompt with the answer asked for, longer than the model or the KV cache can hold."""


class InvalidFile(UserError):
    """A file that cannot be used.

    Attributes:
        path: The file or folder.
        key: The key in it at fault, dotted; None if the file as a whole is.
        expected: What would be accepted.
        found: What is there.
        hint: What may be wrong, or what to do; empty if there is nothing to say.
    """

    def __init__(self, path: Path | str, expected: str, found: object, key: str | None = None, hint: str = "") -> None:
        self.path = Path(path)
        self.key = key
        self.expected = expected
        self.found = str(found)
        self.hint = hint
        where = f"{path}: {key}" if key is not None else f"{path}"
        super().__init__(f"{where}: expected {expected}, found {found}" + (f" ({hint})" if hint else ""))

    def moved_to(self, path: Path) -> "InvalidFile":
        """Return this error with another path: that of the file which the one at fault was made from."""
        return InvalidFile(path, self.expected, self.found, self.key, self.hint)


class CannotWrite(UserError):
    """An output that cannot be written, for instance because the disk is full.

    Attributes:
        path: The output.
        reason: Why, as the operating system says it.
    """

    def __init__(self, path: Path | str, what: str, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: cannot write {what}: {reason}")


class BuildFailed(UserError):
    """A kernel that cannot be compiled, or an engine that its library refused or failed to build."""


class NodeRefused(BuildFailed):
    """A node of a graph that a library's parser does not take; no other way of building helps."""


class Unavailable(UserError):
    """A device, library or optional dependency that is missing, too old, or cannot run what is asked of it."""


def without_frames(error: BaseException) -> BaseException:
    """Return `error` without the frames that it came through, which hold all that they worked on.

    Whoever keeps an error beside what caused it would otherwise keep both until Python's next full collection. What a
    log would say of the frames is in a note, except of a UserError, which says all there is to say.
    """
    if error.__traceback__ is not None and not isinstance(error, UserError):
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    return error


def one_printable_line(message: str) -> str:
    """Return `message` with lines joined, control characters and lone surrogates escaped, the middle cut if long.

    Names of files and keys, and what libraries say of them, may hold anything.
    """
    joined = " ".join(message.splitlines())
    if len(joined) > MAX_LENGTH:
        joined = f"{joined[: MAX_LENGTH // 2]} … {joined[-MAX_LENGTH // 2 :]}"
    return printable(joined)


def printable(text: str, keep: str = "") -> str:
    """Return `text` with control characters escaped, except those in `keep`: a terminal would execute them."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def text_for(stream: TextIO, text: str) -> str:
    """Return `text` as it may be written to `stream`: at a terminal with its control characters escaped."""
    return printable(text, keep="\n\t") if stream.isatty() else text
