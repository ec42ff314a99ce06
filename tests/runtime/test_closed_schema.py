"""Schemas whose objects have the listed properties and no others."""

from typing import Any

import pytest

from ernie_export.runtime.closed_schema import closed, closed_throughout

LISTS_A: dict[str, Any] = {"properties": {"a": {}}}
LISTS_B: dict[str, Any] = {"properties": {"b": {}}}


@pytest.mark.parametrize(
    "within",
    [
        lambda schema: schema,
        lambda schema: {"properties": {"x": schema}, "additionalProperties": True},
        lambda schema: {"type": "array", "items": schema},
        lambda schema: {"prefixItems": [{}, schema]},
        lambda schema: {"additionalProperties": schema},
        lambda schema: {"$defs": {"S": schema}, "$ref": "#/$defs/S"},
        lambda schema: {"anyOf": [schema, {"type": "null"}]},
        lambda schema: {"allOf": [schema]},
        lambda schema: {"oneOf": [schema, {}], "discriminator": {"propertyName": "kind"}},
    ],
)
def test_an_object_anywhere_is_closed(within):
    assert closed(within(LISTS_A)) == within(LISTS_A | {"additionalProperties": False})


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {"type": "object"},
        LISTS_A | {"additionalProperties": True},
        LISTS_A | {"additionalProperties": {"type": "string"}},
        LISTS_A | {"unevaluatedProperties": True},
        LISTS_A | {"minProperties": 3},
        LISTS_A | {"required": ["b"]},
        {"allOf": [LISTS_A, LISTS_B]},
        {"anyOf": [LISTS_A, {"properties": {"x": {}}, "$ref": "#/$defs/B"}], "$defs": {"B": LISTS_B}},
        LISTS_A | {"anyOf": [LISTS_B, {"required": ["a"]}]},
        LISTS_A | {"if": LISTS_B, "then": {"required": ["b"]}},
        {"not": LISTS_A},
        {"oneOf": [LISTS_A, LISTS_B | {"required": ["b"]}]},
        {"enum": [LISTS_A], "default": LISTS_A},
    ],
)
def test_what_says_otherwise_or_would_match_nothing_stays(schema):
    assert closed(schema) == schema


def test_a_property_may_have_a_keyword_for_its_name():
    found = closed({"properties": {"properties": {"type": "string"}}})
    assert found == {"properties": {"properties": {"type": "string"}}, "additionalProperties": False}


def test_on_request_every_object_is_closed():
    schema = {"allOf": [LISTS_A, LISTS_B | {"additionalProperties": True}], "const": LISTS_A}
    found = closed_throughout(schema)
    assert found["allOf"] == [LISTS_A | {"additionalProperties": False}, LISTS_B | {"additionalProperties": True}]
    assert found["const"] == LISTS_A
