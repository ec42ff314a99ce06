"""Calls that a request asks for: the real model, which knows no tools, can write nothing else."""

import json
from typing import Any

import openai
import pytest

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Lima", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": 'now "here"'}},
]
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
ASKED: list[Any] = [{"role": "user", "content": "What is red?"}]
SAMPLED: dict[str, Any] = {"model": "mini", "temperature": 1.0, "max_tokens": 400}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "colour", "schema": {"type": "object", "properties": {"colour": {"enum": ["red"]}},
                                                 "required": ["colour"], "additionalProperties": False}},
}  # fmt: skip

MANY = [
    {"type": "function", "function": {"name": f"f{index}", "parameters": {"enum": ["x" * 1000]}}}
    for index in range(100)
]


def check(name: str, arguments: str) -> None:
    values = json.loads(arguments)
    assert name in ("weather", 'now "here"') and isinstance(values, dict)
    if name != "weather":
        assert values == {}, "a function without parameters takes none"
    else:
        assert values["city"] in ("Lima", "Oslo") and values["days"] <= 9 and set(values) == {"city", "days"}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("thinking", [False, True])
def test_a_named_tool_is_called_once(client, seed, thinking):
    extra = {"enable_thinking": thinking, **({"thinking_token_budget": 5} if thinking else {})}
    answer = client.chat.completions.create(
        messages=ASKED, tools=TOOLS, tool_choice=NAMED, seed=seed, extra_body=extra, **SAMPLED
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls", choice
    (call,) = choice.message.tool_calls
    assert call.function.name == "weather" and choice.message.content is None
    check(call.function.name, call.function.arguments)


@pytest.mark.parametrize("seed", range(3))
def test_a_required_call_streamed(client, seed):
    stream = client.chat.completions.create(
        messages=ASKED,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        seed=seed,
        stream=True,
        **SAMPLED,
    )
    chunks = [chunk.choices[0] for chunk in stream]
    calls = [call for choice in chunks for call in choice.delta.tool_calls or ()]
    assert chunks[-1].finish_reason == "tool_calls" and calls[0].function.name
    check(calls[0].function.name, "".join(call.function.arguments for call in calls))


@pytest.mark.parametrize("seed", range(4))
def test_a_form_beside_tools_is_one_or_the_other(client, seed):
    options = {**SAMPLED, "tools": TOOLS[:1], "response_format": FORMAT, "seed": seed}
    message = client.chat.completions.create(messages=ASKED, **options).choices[0].message
    for call in message.tool_calls or ():
        check(call.function.name, call.function.arguments)
    assert message.tool_calls or json.loads(message.content) == {"colour": "red"}


@pytest.mark.parametrize("seed", range(3))
def test_arguments_that_the_schema_does_not_list_are_not_made_up(client, seed):
    """The schemas of pydantic's classes, which most libraries send, do not say that there are no others."""
    parameters = {"type": "object", "properties": {"clear": {"type": "boolean"}}, "required": ["clear"]}
    tools: list[Any] = [{"type": "function", "function": {"name": "sky", "parameters": parameters}}]
    options: dict[str, Any] = {**SAMPLED, "tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    (call,) = client.chat.completions.create(messages=ASKED, seed=seed, **options).choices[0].message.tool_calls
    assert set(json.loads(call.function.arguments)) == {"clear"}


def test_a_form_is_that_of_the_text_where_a_call_is_required(client):
    """instructor sends both."""
    options: dict[str, Any] = {**SAMPLED, "tools": TOOLS, "tool_choice": NAMED, "response_format": FORMAT}
    (call,) = client.chat.completions.create(messages=ASKED, **options).choices[0].message.tool_calls
    check(call.function.name, call.function.arguments)
    tool = {"type": "function", **TOOLS[0]["function"]}
    response = client.responses.create(
        model="mini",
        input="?",
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        text={"format": {"type": "json_schema", **FORMAT["json_schema"]}},
    )
    check(response.output[0].name, response.output[0].arguments)


def test_a_required_call_of_responses(client):
    tool = {"type": "function", **TOOLS[0]["function"]}
    response = client.responses.create(
        model="mini", input="?", tools=[tool], tool_choice={"type": "function", "name": "weather"}, temperature=1.0
    )
    (call,) = response.output
    assert call.type == "function_call" and call.name == "weather"
    check(call.name, call.arguments)
    form = {"format": {"type": "json_schema", **FORMAT["json_schema"]}}
    assert json.loads(client.responses.create(model="mini", input="?", text=form).output_text) == {"colour": "red"}


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (
            {"tool_choice": "required", "extra_body": {"structured_outputs": {"choice": ["red"]}}},
            "structured_outputs",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}],
                "tool_choice": "required",
            },
            "tool_choice",
        ),
        ({"tools": MANY, "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_cannot_be_required_is_named(client, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(messages=ASKED, **{"tools": TOOLS, **SAMPLED, **options})
    assert (refusal.value.param or "").startswith(param), refusal.value
