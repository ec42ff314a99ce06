"""The grammar of answers that have to call tools, or that call tools or have a form."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ernie_export.runtime.closed_schema import closed
from ernie_export.runtime.structured_outputs import WHITESPACE, StructuredOutputs
from ernie_export.runtime.tool_calls import CLOSE, OPEN

NAME = "tool_choice"  # how a request names the grammar, for errors


def calls_form(
    tools: Sequence[Mapping[str, Any]],
    *,
    several: bool = True,
    tags_are_tokens: bool = False,
    otherwise: Mapping[str, Any] | bool | None = None,
) -> StructuredOutputs:
    """Return the form of an answer of calls, whose arguments match the schemas of their tools.

    Args:
        tools: Tools in OpenAI's form, at least one.
        several: Whether there may be more than one call.
        tags_are_tokens: Whether the tags around a call are tokens that were added to the vocabulary, special or not:
            llguidance takes such a token for a symbol of the grammar, not for its text.
        otherwise: A JSON schema that an answer without calls matches; None where there has to be a call.

    Raises:
        InvalidValue: The schemas together are too large.
    """
    begin, end = (OPEN, CLOSE) if tags_are_tokens else (json.dumps(OPEN), json.dumps(CLOSE))
    calls = "calls | answer" if otherwise is not None else "calls"
    line_feeds = "/\\n{0,3}/"
    more = f" ({line_feeds} call)*" if several else ""
    lines = [
        f"start: {calls}",
        f"calls: {line_feeds} call{more}",
        "call: " + " | ".join(f"call{index}" for index in range(len(tools))),
    ]
    for index, tool in enumerate(tools):
        function = tool["function"]
        head = json.dumps('\n{"name": ' + json.dumps(function["name"], ensure_ascii=False) + ', "arguments": ')
        lines.append(f"call{index}: {begin} {head} arguments{index} {json.dumps('}' + chr(10))} {end}")
        lines.append(f"arguments{index}: %json {_schema(_arguments(function))}")
    if otherwise is not None:
        lines.append(f"answer: %json {_schema(otherwise)}")
    return StructuredOutputs(grammar="\n".join(lines) + "\n", name=NAME)


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments; a function without parameters takes none."""
    return {"type": "object", **(function.get("parameters") or {"properties": {}})}


def _schema(schema: Mapping[str, Any] | bool) -> str:
    """Return a schema with a bound on the whitespace between its parts, as the grammar's text holds it."""
    schema = closed(schema)
    members = dict(schema) if isinstance(schema, Mapping) else {"allOf": [schema]}
    return json.dumps({**members, "x-guidance": {"whitespace_pattern": WHITESPACE}})
