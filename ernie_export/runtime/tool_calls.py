"""Find the calls of tools in an answer's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

import json
import uuid
from dataclasses import dataclass
from typing import Any

from ernie_export.runtime.text_stream import longest_ending

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_CALL_LENGTH = 2**18  # characters of one call; more are text
MAX_DEPTH = 64  # of objects and lists within the arguments


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
    first, calls = stream.push(text)
    rest, last = stream.finish()
    return first + rest, calls + last


class ToolCallStream:
    """Takes the text of an answer piece by piece and keeps its calls apart, each once it is complete.

    White space before a call is dropped, and that between calls. What begins like a call and is none becomes text.
    """

    def __init__(self) -> None:
        self._text = ""  # held back: white space and the beginning of a tag, or of a call
        self._inside = False
        self._after_call = False
        self._scanned = 0  # characters of the call that the search for its end has passed

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """Take more text; returns what can be shown, and the calls that it completes."""
        self._text += text
        shown = ""
        calls: list[ToolCall] = []
        while True:
            if not self._inside:
                before, tag, after = self._text.partition(OPEN)
                if not tag:
                    return shown + self._show(self._certain()), calls
                shown += self._show(before.rstrip())
                self._begin(after)
            end = self._find_end()
            if end < 0 and len(self._text) <= MAX_CALL_LENGTH + len(CLOSE):
                return shown, calls
            call = ToolCall.parse(self._text[:end]) if end >= 0 else None
            if call is None:  # its tag is text; what follows may hold another call
                shown += self._show(OPEN)
                self._inside = False
            else:
                calls.append(call)
                self._text = self._text[end + len(CLOSE) :]
                self._inside = False
                self._after_call = True

    def finish(self) -> tuple[str, list[ToolCall]]:
        """Return the rest of the text, and a call that is complete but for its last tag."""
        rest, self._text = self._text, ""
        if not self._inside:
            return ("" if self._after_call and not rest.strip() else rest), []
        self._inside = False
        call = ToolCall.parse(rest)
        return ("", [call]) if call else (OPEN + rest, [])

    def _begin(self, text: str) -> None:
        self._inside = True
        self._text = text
        self._scanned = 0

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

    def _find_end(self) -> int:
        """Return where the closing tag of the call begins; -1 where it is not there yet. In a string it is text."""
        start = max(self._scanned - len(CLOSE), 0)
        while (end := self._text.find(CLOSE, start)) >= 0:
            if not _ends_in_string(self._text[:end]):
                return end
            start = end + len(CLOSE)
        self._scanned = len(self._text)
        return -1


def _ends_in_string(text: str) -> bool:
    """Return whether JSON text ends within a string."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
    return inside


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
