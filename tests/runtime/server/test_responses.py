"""/v1/responses, stateless: the openai client's newer interface against the model that says what it is asked to say."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.runtime.server.conftest import serve
from tests.runtime.server.test_tools import CALL

TOOL = {"type": "function", "name": "zoom", "description": "Look closer.", "parameters": {"type": "object"}}
THINK = {"effort": "low"}


@pytest.fixture(scope="module")
def echo(bundle) -> Iterator[Any]:
    with serve(bundle, program=("serve_echo.py",)) as server:
        yield server.client()


def respond(client: Any, text: Any, **options: Any) -> Any:
    asked = f"say:{text}" if isinstance(text, str) else text
    return client.responses.create(model="mini", input=asked, **options)


def test_a_text(echo):
    response = respond(echo, "a red ball", metadata={"a": "b"}, instructions="Be brief.", max_output_tokens=64)
    assert response.output_text == "a red ball" and response.status == "completed" and response.object == "response"
    assert (response.metadata, response.instructions, response.max_output_tokens) == ({"a": "b"}, "Be brief.", 64)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.output_tokens_details.reasoning_tokens == 0


def test_thoughts_text_and_calls(echo):
    response = respond(echo, f"why</think>Closer.\n{CALL}", reasoning=THINK, tools=[TOOL])
    reasoning, message, call = response.output
    assert (reasoning.type, message.type, call.type) == ("reasoning", "message", "function_call")
    assert reasoning.content[0].text == "why" and response.output_text == "Closer."
    assert (call.name, call.arguments, call.status) == ("zoom", '{"box": [1, 2]}', "completed") and call.call_id
    assert response.usage.output_tokens_details.reasoning_tokens > 0


def test_a_stream_adds_up_to_the_whole(echo):
    asked = {"reasoning": THINK, "tools": [TOOL]}
    text = f"why so</think>It is red.\n{CALL}{CALL}"
    whole = respond(echo, text, **asked)
    events = list(respond(echo, text, stream=True, **asked))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]
    assert last.type == "response.completed"
    plain = [item.model_dump(exclude={"id", "call_id"}) for item in whole.output]
    assert [item.model_dump(exclude={"id", "call_id"}) for item in last.response.output] == plain

    def joined(kind: str) -> str:
        return "".join(event.delta for event in events if event.type == kind)

    assert joined("response.output_text.delta") == "It is red." and joined("response.reasoning_text.delta") == "why so"
    assert joined("response.function_call_arguments.delta") == '{"box": [1, 2]}' * 2
    done = [event.item.id for event in events if event.type == "response.output_item.done"]
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert done == added == [item.id for item in last.response.output]


def test_the_clients_stream_helper(echo):
    with echo.responses.stream(model="mini", input="say:a red ball") as stream:
        assert stream.get_final_response().output_text == "a red ball"


def test_the_response_goes_back_with_what_a_tool_said(echo):
    first = respond(echo, f"why</think>{CALL}", reasoning=THINK, tools=[TOOL])
    call = first.output[-1]
    turns = [
        {"role": "user", "content": "What is it?"},
        *[item.model_dump() for item in first.output],
        {"type": "function_call_output", "call_id": call.call_id, "output": "say:a ball"},
    ]
    assert respond(echo, turns, tools=[TOOL]).output_text.startswith("a ball")
    turns = [("user", "?"), ("assistant", "red"), ("assistant", "blue"), ("user", "say:x")]
    again = [{"role": role, "content": text} for role, text in turns]
    assert respond(echo, again).output_text == "x"


def part(given: dict[str, Any]) -> dict[str, Any]:
    """Return a part of a chat's message as this interface has it."""
    if given["type"] == "text":
        return {"type": "input_text", "text": given["text"]}
    if given["type"] == "image_url":
        return {"type": "input_image", "image_url": given["image_url"]["url"], "detail": "auto"}
    return {"type": "input_video", "video_url": given["video_url"]["url"]}


def test_pictures_and_clips(client, questions):
    for question in questions:
        turns = [
            {"role": turn["role"], "content": [part(given) for given in turn["content"]]} for turn in question["asked"]
        ]
        response = client.responses.create(model="mini", input=turns)
        assert response.output_text == question["answer"]
        media = [given for turn in question["asked"] for given in turn["content"] if given["type"] != "text"]
        assert len(response.usage.input_tokens_details.media) == len(media)


def test_an_answer_that_is_cut(echo):
    response = respond(echo, "so many words of an answer", max_output_tokens=2)
    assert response.status == "incomplete" and response.incomplete_details.reason == "max_output_tokens"
    assert response.output[0].status == "incomplete"
    assert list(respond(echo, "so many words", max_output_tokens=2, stream=True))[-1].type == "response.incomplete"


def test_an_empty_answer_is_an_empty_message(echo):
    assert respond(echo, "").output_text == "" and len(respond(echo, "").output) == 1


def test_log_probabilities(client):
    options = {"include": ["message.output_text.logprobs"], "top_logprobs": 2, "max_output_tokens": 4}
    extra = {"min_tokens": 4}
    response = client.responses.create(model="mini", input="What is red?", extra_body=extra, **options)
    tokens = response.output[0].content[0].logprobs
    assert tokens and all(len(token.top_logprobs) == 2 for token in tokens)


def test_fields_of_the_chat_mean_the_same(client, alone):
    sampled = {"temperature": 2.0, "max_output_tokens": 12, "extra_body": {"seed": 5, "min_tokens": 12, "top_k": 40}}
    response = client.responses.create(model="mini", input="What is red?", **sampled)
    options = {"temperature": 2.0, "max_new_tokens": 12, "min_new_tokens": 12, "seed": 5, "top_k": 40}
    assert response.output_text == alone.generate([{"role": "user", "content": "What is red?"}], **options).text


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [5]}, "input.0"),
        ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input.0.role"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp:"}]}]}, "input.0.content.0"),
        ({"input": [{"role": "user", "content": "x", "other": 1}]}, "input.0.other"),
        ({"input": [{"type": "function_call", "call_id": "1", "arguments": "{}"}]}, "input.0.tool_calls"),
        ({"input": "x", "instructions": 5}, "instructions.content"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x", "store": True}, "store"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "messages": []}, "messages"),
        ({"input": "x", "n": 2}, "n"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools.0.name"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": "x", "reasoning": {"effort": "vast"}}, "reasoning.effort"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "other": 3}, "other"),
        ({"input": "red " * 5000}, "input"),
    ],
)
def test_what_is_refused_is_named(server, body, param):
    response = httpx2.post(f"{server.url}/v1/responses", json={"model": "mini", **body}, timeout=30)
    error = response.json()["error"]
    assert response.status_code == 400 and (error["param"] or "").startswith(param), error


def test_an_earlier_response_is_not_found_by_its_id(client):
    with pytest.raises(openai.BadRequestError) as refusal:
        client.responses.retrieve("resp_1")
    assert refusal.value.code == "unsupported_endpoint"
