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
PIECE = 4096  # characters of a text that are searched together
_IN_STRING = re.compile(r'\\.|"', re.DOTALL)  # what matters within a string of JSON
_OUTSIDE = re.compile(f'"|{CLOSE}')


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
    shown: list[str] = []
    calls: list[ToolCall] = []
    for start in range(0, len(text), PIECE):
        piece, found = stream.push(text[start : start + PIECE])
        shown.append(piece)
        calls += found
    rest, last = stream.finish()
    return "".join(shown) + rest, calls + last


class ToolCallStream:
    """Takes the text of an answer piece by piece and keeps its calls apart, each once it is complete.

    White space before a call is dropped, and that between calls. What begins like a call and is none becomes text.
    """

    def __init__(self) -> None:
        self._text = ""  # outside a call, held back: white space and the beginning of a tag
        self._call: _CallText | None = None
        self._after_call = False

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take more text; returns what can be shown, and the calls that it completes."""
        shown = ""
        calls: list[ToolCall] = []
        while True:
            if self._call is None:
                self._text += text
                before, tag, text = self._text.partition(OPEN)
                if not tag:
                    return shown + self._show(self._certain()), calls
                shown += self._show(before.rstrip())
                self._text = ""
                self._call = _CallText()
            rest = self._call.push(text)
            if rest is None and self._call.length <= MAX_CALL_LENGTH:
                return shown, calls
            body = self._call.text()
            self._call = None
            call = None if rest is None else ToolCall.parse(body)
            if call is None:  # its tag is text, and all of it that is too long; what follows may hold another call
                text = body if rest is None else f"{body}{CLOSE}{rest}"
                skipped = MAX_CALL_LENGTH + 1 if len(body) > MAX_CALL_LENGTH else 0
                shown += self._show(OPEN + text[:skipped])
                text = text[skipped:]
            else:
                calls.append(call)
                self._after_call = True
                text = rest or ""

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return the rest of the text, and a call that is complete but for its last tag."""
        if self._call is None:
            rest, self._text = self._text, ""
            return ("" if self._after_call and not rest.strip() else rest), []
        body = self._call.text()
        self._call = None
        call = ToolCall.parse(body)
        return ("", [call]) if call else (OPEN + body, [])

    def _show(self, text: str) -> str:
        """Return text that is shown; white space after a call is not."""
        if self._after_call:
            text = text.lstrip()
        self._after_call = self._after_call and not text
        return text

    def _certain(self) -> str:
        """Take from the held text what cannot be before a call or part of a tag."""
        certain = self._text[: len(self._text) - longest_ending(self._text, OPEN)].rstrip()
        self._text = self._text[len(certain) :]
        return certain


class _CallText:
    """The text of a call after its opening tag, up to the closing one, which is text within a string of its JSON.

    Attributes:
        length: Characters so far.
    """

    def __init__(self) -> None:
        self.length = 0
        self._read: list[str] = []
        self._left = ""  # what may be the beginning of a tag, or of an escaped character
        self._in_string = False

    def push(self, text: str) -> str | None:
        """Take more text; returns what stands after the closing tag, None where that has not come."""
        self.length += len(text)
        text = self._left + text
        position = 0
        while True:
            mark = (_IN_STRING if self._in_string else _OUTSIDE).search(text, position)
            if mark is None:
                break
            if mark[0] == CLOSE:
                self._read.append(text[: mark.start()])
                self._left = ""
                return text[mark.end() :]
            position = mark.end()
            self._in_string ^= mark[0] == '"'
        uncertain = int(text.endswith("\\", position)) if self._in_string else longest_ending(text, CLOSE)
        self._read.append(text[: len(text) - uncertain])
        self._left = text[len(text) - uncertain :]
        return None

    def text(self) -> str:
        """Return the text so far."""
        return "".join(self._read) + self._left


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
