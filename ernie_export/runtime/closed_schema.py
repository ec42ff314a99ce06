"""JSON schemas whose objects have the properties that are listed and no others, where the schema does not say."""

from collections.abc import Callable
from typing import Any

# Where a schema holds others, by the form of the keyword's value. Other keywords hold data, such as `enum`.
_ONE = (
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_SEVERAL = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
# Keywords whose schemas apply to the value that the schema itself applies to.
_SAME_VALUE = ("$dynamicRef", "$ref", "allOf", "anyOf", "dependentSchemas", "if", "not", "oneOf")
# Keywords that say, or depend on, which further properties there are.
_OPEN = (
    "additionalProperties", "dependencies", "dependentRequired", "minProperties", "propertyNames",
    "unevaluatedProperties",
)  # fmt: skip


def closed(schema: Any) -> Any:
    """Return a schema whose objects take no properties but those listed, where it does not say otherwise.

    What matches it matches the schema as it was. A schema in which two list properties of one value, as `allOf` does,
    is returned as it is: closed, neither would let the other's properties in.
    """
    return schema if _overlaps(schema) else _close(schema, _says_nothing)


def closed_throughout(schema: Any) -> Any:
    """Return a schema whose objects take no further properties, except where `additionalProperties` is set.

    Source: `process_for_additional_properties` (vllm/v1/structured_output/backend_guidance.py), but for data and for
    properties with the names of keywords, which stay as they are.
    """
    return _close(schema, _has_no_additional)


def _close(schema: Any, is_open: Callable[[dict[str, Any]], bool]) -> Any:
    if not isinstance(schema, dict):
        return schema
    members = dict(schema)
    for key, value in schema.items():
        if key in _SEVERAL and isinstance(value, list):
            members[key] = [_close(item, is_open) for item in value]
        elif key in _NAMED and isinstance(value, dict):
            members[key] = {name: _close(item, is_open) for name, item in value.items()}
        elif key in _ONE:
            members[key] = _close(value, is_open)
    if ("properties" in schema or "patternProperties" in schema) and is_open(schema):
        members["additionalProperties"] = False
    return members


def _has_no_additional(schema: dict[str, Any]) -> bool:
    return "additionalProperties" not in schema


def _says_nothing(schema: dict[str, Any]) -> bool:
    """Return whether an object's schema says nothing of properties that it does not list, its required ones neither."""
    required = schema.get("required", [])
    listed = schema.get("properties", {})
    if any(key in schema for key in _OPEN) or not isinstance(required, list) or not isinstance(listed, dict):
        return False
    return all(name in listed for name in required)


def _overlaps(schema: Any) -> bool:
    """Return whether several parts of a schema may list properties of one value."""
    if not isinstance(schema, dict):
        return False
    lists = [key for key in _SAME_VALUE if key in schema]
    if "properties" in schema or "patternProperties" in schema:
        lists.append("properties")
    if len(lists) > 1 or "not" in lists or "if" in lists or _has_several(schema, "allOf"):
        return True
    if _has_several(schema, "oneOf") and "discriminator" not in schema:  # closed, others may be the one that matches
        return True
    children = [schema[key] for key in _ONE if key in schema]
    children += [item for key in _SEVERAL if isinstance(schema.get(key), list) for item in schema[key]]
    children += [item for key in _NAMED if isinstance(schema.get(key), dict) for item in schema[key].values()]
    return any(map(_overlaps, children))


def _has_several(schema: dict[str, Any], key: str) -> bool:
    value = schema.get(key)
    return isinstance(value, list) and len(value) > 1
