"""Answers of a form, through the openai client: response_format and vLLM's structured_outputs."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

ASKED = [{"role": "user", "content": "How many sides has a triangle?"}]
SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "sides": {"type": "integer", "minimum": 3, "maximum": 9},
    },
    "required": ["colour", "sides"],
    "additionalProperties": False,
}


class Shape(BaseModel):
    colour: Literal["red", "green", "blue"]
    sides: int = Field(ge=3, le=9)


def ask(client, messages=ASKED, **options):
    return client.chat.completions.create(**{"model": "mini", "messages": messages, "max_tokens": 200, **options})


def as_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema, **more}}


def structured(**form: Any) -> dict[str, Any]:
    return {"extra_body": {"structured_outputs": form}}


def check_shape(text: str) -> None:
    shape = json.loads(text)
    assert set(shape) == {"colour", "sides"}
    assert shape["colour"] in ("red", "green", "blue") and 3 <= shape["sides"] <= 9


def test_parse_returns_the_pydantic_model(client):
    completion = client.chat.completions.parse(model="mini", messages=ASKED, response_format=Shape, max_tokens=200)
    assert isinstance(completion.choices[0].message.parsed, Shape)
    assert completion.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("sampling", [{}, {"temperature": 2.0, "seed": 5}, {"extra_body": {"repetition_penalty": 1.8}}])
def test_n_answers_match_the_schema_and_repeat(client, sampling):
    first, again = (ask(client, response_format=as_schema(SHAPE, strict=True), n=4, **sampling) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices]
    for choice in first.choices:
        check_shape(choice.message.content)
        assert choice.finish_reason == "stop"


def test_a_stream_has_the_same_text_and_the_tokens_logprobs(client):
    options = {"response_format": as_schema(SHAPE), "temperature": 1.0, "seed": 2}
    whole = ask(client, **options).choices[0].message.content
    chunks = [chunk.choices[0] for chunk in ask(client, stream=True, logprobs=True, top_logprobs=2, **options)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == whole
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert b"".join(bytes(token.bytes or []) for token in tokens).decode() == whole
    assert chunks[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"choice": ["a red circle", "a blue cross", "none"]}, "a red circle|a blue cross|none"),
        ({"regex": "[a-f]{3}-[0-9]{2}"}, "[a-f]{3}-[0-9]{2}"),
        ({"grammar": 'start: COLOUR " " COLOUR\nCOLOUR: "red" | "blue"'}, "(red|blue) (red|blue)"),
        ({"grammar": 'root ::= "red" | "blue" [0-9]'}, "red|blue[0-9]"),
        (
            {"json": json.dumps({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2})},
            r"\[.*\]",
        ),
        ({"json": SHAPE, "disable_any_whitespace": True}, r'\{"colour":"[a-z]+","sides":\d\}'),
        ({"json": SHAPE, "whitespace_pattern": " "}, r'\{ ?"colour" ?: ?"[a-z]+" ?, ?"sides" ?: ?\d ?\}'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_forms_of_vllm(client, form, pattern):
    for seed in range(3):
        choice = ask(client, temperature=1.5, seed=seed, **structured(**form)).choices[0]
        assert re.fullmatch(pattern, choice.message.content, re.S) and choice.finish_reason == "stop"


def test_json_object_is_any_object(client):
    asked = [{"role": "user", "content": "What is in the picture? Answer with a JSON object."}]
    texts = []
    for seed in range(6):
        choice = ask(client, asked, response_format={"type": "json_object"}, temperature=1.0, seed=seed).choices[0]
        if choice.finish_reason == "stop":
            texts.append(choice.message.content)
            assert isinstance(json.loads(choice.message.content), dict)
    assert texts


def test_the_limit_of_tokens_cuts_an_answer_and_says_so(client):
    choice = ask(client, response_format=as_schema(SHAPE), max_tokens=5).choices[0]
    assert choice.finish_reason == "length" and choice.message.content.startswith("{")


def test_a_stop_string_ends_an_answer_of_a_form(client):
    choice = ask(client, response_format=as_schema(SHAPE), stop="colour").choices[0]
    assert choice.finish_reason == "stop" and "colour" not in choice.message.content


@pytest.mark.parametrize("least", [{"min_tokens": 60}, {"ignore_eos": True}])
def test_a_form_that_can_go_on_does_until_there_are_enough_tokens(client, least):
    body = {"extra_body": {"structured_outputs": {"regex": "(red |blue )+"}, **least}}
    text = ask(client, max_tokens=60, **body).choices[0]
    assert text.finish_reason == "length" and re.fullmatch("(red |blue )+[a-z]*", text.message.content)
    ended = ask(client, extra_body={"structured_outputs": {"choice": ["red", "blue"]}, **least}).choices[0]
    assert ended.finish_reason == "stop" and ended.message.content in ("red", "blue")


def test_answers_with_and_without_a_form_run_together(client):
    free = ask(client).choices[0].message.content

    def one(number: int) -> str:
        options = {"response_format": as_schema(SHAPE)} if number % 2 else {}
        return ask(client, **options).choices[0].message.content

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(one, range(16)))
    for number, text in enumerate(texts):
        if number % 2:
            check_shape(text)
        else:
            assert text == free


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (
            {"response_format": as_schema({"type": "object", "properties": {"a": {"items": {"not": {}}}}})},
            "response_format.json_schema.schema.properties.a.items",
        ),
        ({"response_format": as_schema({"type": "objekt"})}, "response_format.json_schema.schema"),
        ({"response_format": as_schema({"$ref": "#"})}, "response_format.json_schema.schema"),
        ({"response_format": as_schema("object")}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (structured(regex="(?=a)b"), "structured_outputs.regex"),
        (structured(grammar="start: missing"), "structured_outputs.grammar"),
        (structured(choice=[]), "structured_outputs.choice"),
        (structured(choice=["a"], regex="a"), "structured_outputs"),
        (structured(), "structured_outputs"),
        (structured(json="{"), "structured_outputs.json"),
        (structured(structural_tag="{}"), "structured_outputs.structural_tag"),
        ({"response_format": {"type": "json_object"}, **structured(regex="a")}, "structured_outputs"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_a_form_is_refused_by_path(client, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, **options)
    assert refusal.value.param == param


def test_a_hostile_schema_is_refused_soon_and_keeps_no_other_request_waiting(client):
    """Each of the parts is one of two objects: together they are 2^14."""
    parts: list[Any] = [{"anyOf": [{"properties": {f"{side}{number}": {}}} for side in "ab"]} for number in range(14)]

    def be_refused() -> None:
        with pytest.raises(openai.BadRequestError, match="schema too large"):
            ask(client, response_format=as_schema({"type": "object", "allOf": parts}), max_tokens=1)

    began = time.monotonic()
    be_refused()
    assert time.monotonic() - began < 1
    with ThreadPoolExecutor(12) as threads:
        busy = [threads.submit(be_refused) for _ in range(12)]
        while not any(future.done() for future in busy):
            time.sleep(0.01)
        ask(client, max_tokens=1)
        assert sum(not future.done() for future in busy) >= 4
        for future in busy:
            future.result()
