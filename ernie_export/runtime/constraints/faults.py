"""Find where in a JSON schema the part lies that cannot be enforced: llguidance says what it is, not where."""

import time
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.constraints.grammar import refusal

SECONDS = 0.3  # for the search; what is found until then is named
# Keywords whose value is a schema, a list of schemas, or schemas by name.
_SCHEMA = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def find_fault(schema: Any, name: str, reason: str, limits: LLParserLimits) -> InvalidValue:
    """Return the error for a schema that was refused, with the path of the smallest part that is refused alone.

    Args:
        schema: The schema.
        name: How the request names it.
        reason: Why it was refused as a whole.
        limits: The limits that it was compiled within.
    """
    deadline = time.monotonic() + SECONDS
    tokenizer = LLTokenizer("byte")
    part = schema
    searching = isinstance(schema, dict)
    while searching:
        searching = False
        for path, child in _parts(part):
            if time.monotonic() > deadline:
                break
            found = _refusal(child, schema, tokenizer, limits)
            if found:
                name = f"{name}.{path}"
                part = child
                reason = found
                searching = isinstance(child, dict)
                break
    return InvalidValue(name, "a schema that can be enforced", reason)


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas within a schema, and their paths from it."""
    for key, value in schema.items():
        if key in _SCHEMA and isinstance(value, dict | bool):
            yield key, value
        elif key in _SCHEMAS and isinstance(value, list):
            yield from ((f"{key}.{index}", child) for index, child in enumerate(value))
        elif key in _NAMED_SCHEMAS and isinstance(value, dict):
            yield from ((f"{key}.{one_line(child_key)}", child) for child_key, child in value.items())


def _refusal(part: Any, schema: dict[str, Any], tokenizer: LLTokenizer, limits: LLParserLimits) -> str:
    """Return why a part of a schema is refused alone, with the definitions that it may refer to; "" if it is not."""
    if part is False:  # says that something must not be there, which is a fault only of what needs it
        return ""
    if not isinstance(part, dict):
        return "" if part is True else f"{one_line(part)}, which is no schema"
    definitions: dict[str, Any] = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(definitions | part), log_level=0, limits=limits)
    return refusal(matcher) if matcher.is_error() else ""
