"""Find the calls of tools in an answer's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from ernie_export.runtime.text_stream import longest_ending

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALL_LENGTH = 2**18  # characters of one call; more are text
MAX_DEPTH = 64  # of objects and lists within the arguments
_IN_STRING = re.compile(r'\\.|"', re.DOTALL)  # what matters within a string of JSON
_OUTSIDE = re.compile(rf'"|{CLOSE}|{OPEN}|\\')  # the last two are no JSON


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool.

    Attributes:
        name: The tool's name.
        arguments: A JSON object, as text.
        id: Names the call in the conversation.
    """

    name: str
    arguments: str
    id: str

    @classmethod
    def parse(cls, text: str) -> "ToolCall | None":
        """Return the call in the text between the tags; None for a malformed, an over-long or a deeply nested one."""
        if len(text) > MAX_CALL_LENGTH:
            return None
        try:
            call = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            return None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
            return None
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict) or _depth(arguments) > MAX_DEPTH:
            return None
        text = json.dumps(arguments, ensure_ascii=False)
        return (
            None if _has_surrogates(text + call["name"]) else cls(call["name"], text, f"call_{uuid.uuid4().hex[:24]}")
        )

    def message(self) -> dict[str, Any]:
        """Return the call as a message of OpenAI's holds it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def find_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """Return the text of an answer without the calls in it, and the calls. A malformed call stays text."""
    stream = ToolCallStream()
    shown, calls = stream.push(text)
    rest, last = stream.finish()
    return shown + rest, calls + last


class ToolCallStream:
    """Takes the text of an answer piece by piece and keeps its calls apart, each once it is complete.

    White space before a call is dropped, and that between calls. What begins like a call and is none becomes text, in
    which another call may begin. The time grows with the length of the text alone: of two calls that begin in one
    another, the next opening tag is within a string of JSON for one at most, and ends the other.
    """

    def __init__(self) -> None:
        self._held = ""  # what is taken again with the next piece: white space, and the beginning of a tag
        self._call: _CallText | None = None
        self._after_call = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take more text; returns what can be shown, and the calls that it completes."""
        text = self._held + text
        shown: list[str] = []
        calls: list[ToolCall] = []
        position = 0
        began: int | None = None  # where in `text` the call begins; None where in an earlier piece
        while True:
            if self._call is None:
                at = text.find(OPEN, position)
                if at < 0:
                    shown.append(self._show(self._certain(text[position:])))
                    break
                before = text[position:at]
                stripped = before.rstrip()
                shown.append(self._show(stripped))
                began = position = at + len(OPEN)
                self._call = _CallText(before[len(stripped) :])
            call = self._call
            call.read(text, position)
            if not call.ended and call.length <= MAX_CALL_LENGTH:
                self._held = text[call.stop :]
                break
            self._call = None
            if call.closed and (found := ToolCall.parse(call.text())):
                calls.append(found)
                self._after_call = True
                position = call.stop + len(CLOSE)
                continue
            if began is None:
                text = call.text() + text[call.stop :]
                began = 0
            position = began + (MAX_CALL_LENGTH + 1 if call.length > MAX_CALL_LENGTH else 0)
            shown.append(self._show(call.before + OPEN + text[began:position]))
        return "".join(shown), calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return the rest of the text, and calls that are complete but for the last tag."""
        shown: list[str] = []
        calls: list[ToolCall] = []
        while self._call is not None:
            call, self._call = self._call, None
            body = call.text() + self._held
            self._held = ""
            if found := ToolCall.parse(body):
                calls.append(found)
                self._after_call = True
            else:  # its tag is text; what follows may hold another call
                shown.append(self._show(call.before + OPEN))
                more, others = self.push(body)
                shown.append(more)
                calls += others
        rest, self._held = self._held, ""
        shown.append("" if self._after_call and not rest.strip() else rest)
        return "".join(shown), calls

    def _show(self, text: str) -> str:
        """Return text that is shown; white space after a call is not."""
        if self._after_call:
            text = text.lstrip()
        self._after_call = self._after_call and not text
        return text

    def _certain(self, text: str) -> str:
        """Return what is neither before a call nor part of a tag, and hold the rest."""
        certain = text[: len(text) - longest_ending(text, OPEN)].rstrip()
        self._held = text[len(certain) :]
        return certain


class _CallText:
    """The text of a call after its opening tag, up to the closing one, which is text within a string of its JSON.

    Attributes:
        before: White space before the opening tag.
        length: Characters so far.
        stop: Where in the last text that was read it stops: the rest is not part of it, or not certainly so.
        ended: Whether it goes no further: the closing tag has come, or what no JSON has.
        closed: Whether it was the closing tag.
    """

    def __init__(self, before: str) -> None:
        self.before = before
        self.length = 0
        self.stop = 0
        self.ended = False
        self.closed = False
        self._read: list[str] = []
        self._in_string = False

    def read(self, text: str, start: int) -> None:
        """Take the text from `start` on."""
        position = start
        while mark := (_IN_STRING if self._in_string else _OUTSIDE).search(text, position):
            if not self._in_string and mark[0] != '"':
                self.ended = True
                self.closed = mark[0] == CLOSE
                self._keep(text, start, mark.start())
                return
            position = mark.end()
            self._in_string ^= mark[0] == '"'
        if self._in_string:
            uncertain = int(text.endswith("\\", position))
        else:
            uncertain = max(longest_ending(text, CLOSE), longest_ending(text, OPEN))
        self._keep(text, start, len(text) - uncertain)

    def text(self) -> str:
        """Return the text so far."""
        return "".join(self._read)

    def _keep(self, text: str, start: int, stop: int) -> None:
        self._read.append(text[start:stop])
        self.length += stop - start
        self.stop = stop


def _depth(value: Any) -> int:
    """Return how deeply objects and lists are nested; the parser has bounded it."""
    deepest = 0
    stack = [(value, 1)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict | list):
            deepest = max(deepest, depth)
            stack += [(child, depth + 1) for child in (value.values() if isinstance(value, dict) else value)]
    return deepest


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)
