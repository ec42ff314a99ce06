"""Tools and thoughts over HTTP: the model says what it is asked to say, and the server takes it apart."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from tests.runtime.server.conftest import serve

ECHO = ("serve_echo.py",)
TOOL = {
    "type": "function",
    "function": {"name": "zoom", "description": "Look closer.", "parameters": {"type": "object", "properties": {}}},
}
CALL = '<tool_call>\n{"name": "zoom", "arguments": {"box": [1, 2]}}\n</tool_call>\n'
THINK = {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}


@pytest.fixture(scope="module")
def client(bundle) -> Iterator[openai.OpenAI]:
    with serve(bundle, program=ECHO) as server:
        yield server.client()


@pytest.fixture(scope="module")
def plain_bundle(bundle, tmp_path_factory):
    """The bundle with a template that has no place for tools, and whose tokenizer knows no thoughts."""
    folder = tmp_path_factory.mktemp("plain") / "mini"
    shutil.copytree(bundle, folder)
    text = (folder / "chat_template.jinja").read_text()
    begin = text.index("{%- if tools is defined")
    end = text.index("{%- for message in messages -%}")
    text = text[:begin] + text[end:]
    (folder / "chat_template.jinja").write_text(text.replace("<think>", "").replace("</think>", ""))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("<think>", "<muse>").replace("</think>", "</muse>"))
    return folder


def say(client: Any, text: str, **options: Any) -> Any:
    """Return the choice of a whole answer."""
    messages = [{"role": "user", "content": f"say:{text}"}]
    options = {"max_tokens": 512, **options}
    return client.chat.completions.create(model="mini", messages=messages, **options).choices[0]


def streamed(client: Any, text: str, **options: Any) -> tuple[dict[str, Any], str]:
    """Return the message that the deltas of a stream add up to, and why it ended."""
    messages = [{"role": "user", "content": f"say:{text}"}]
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "reasoning": "", "tool_calls": []}
    reason = ""
    options = {"max_tokens": 512, **options}
    for chunk in client.chat.completions.create(model="mini", messages=messages, stream=True, **options):
        delta = chunk.choices[0].delta
        message["content"] += delta.content or ""
        for key in ("reasoning_content", "reasoning"):
            message[key] += getattr(delta, key, None) or ""
        for call in delta.tool_calls or ():
            if call.index == len(message["tool_calls"]):
                message["tool_calls"].append({"id": call.id, "name": call.function.name, "arguments": ""})
            message["tool_calls"][call.index]["arguments"] += call.function.arguments
        reason = chunk.choices[0].finish_reason or reason
    return message, reason


def test_a_call_whole(client):
    choice = say(client, CALL, tools=[TOOL])
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.id and call.function.name == "zoom"
    assert json.loads(call.function.arguments) == {"box": [1, 2]}


def test_a_call_streamed(client):
    message, reason = streamed(client, f"Closer.\n{CALL}{CALL}", tools=[TOOL])
    assert reason == "tool_calls" and message["content"] == "Closer."
    assert [json.loads(call["arguments"]) for call in message["tool_calls"]] == [{"box": [1, 2]}] * 2
    assert len({call["id"] for call in message["tool_calls"]}) == 2


def test_one_call_where_several_are_not_wanted(client):
    options = {"tools": [TOOL], "parallel_tool_calls": False}
    assert len(say(client, CALL + CALL, **options).message.tool_calls) == 1
    assert len(streamed(client, CALL + CALL, **options)[0]["tool_calls"]) == 1


@pytest.mark.parametrize("text", ["<tool_call>{no}</tool_call>", '<tool_call>{"name": "zoom", "arguments": {"box'])
def test_a_malformed_call_is_text(client, text):
    choice = say(client, text, tools=[TOOL])
    assert choice.message.content == text and not choice.message.tool_calls and choice.finish_reason == "stop"
    assert streamed(client, text, tools=[TOOL]) == (
        {"content": text, "reasoning_content": "", "reasoning": "", "tool_calls": []}, "stop"
    )  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"tools": [TOOL], "tool_choice": "none"}])
def test_without_tools_a_call_is_text(client, options):
    choice = say(client, CALL.strip(), **options)
    assert choice.message.content == CALL.strip() and choice.message.tool_calls is None


def test_tools_and_their_answers_are_in_the_prompt(client):
    call = {"id": "call_1", "type": "function", "function": {"name": "zoom", "arguments": '{"box": [1, 2]}'}}
    messages: list[Any] = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "say:a ball"}]},
    ]

    def ask(**options: Any) -> Any:
        return client.chat.completions.create(model="mini", messages=messages, **options)

    answer = ask(tools=[TOOL])
    assert answer.choices[0].message.content == "a ball\n</tool_response>"
    assert answer.usage.prompt_tokens > ask().usage.prompt_tokens + len("Look closer."), "the tools are rendered"


def test_thoughts_whole_and_streamed(client):
    text = "It has\nsides.\n</think>\n\n<response>\nthree\n</response>\n"
    choice = say(client, text, **THINK)
    assert choice.message.content == "three" and choice.finish_reason == "stop"
    assert choice.message.reasoning_content == choice.message.reasoning == "It has\nsides.\n"
    message, _ = streamed(client, text, **THINK)
    assert message == {
        "content": "three", "reasoning_content": "It has\nsides.\n", "reasoning": "It has\nsides.\n", "tool_calls": []
    }  # fmt: skip


def test_a_call_after_thoughts(client):
    message, reason = streamed(client, f"I look.</think>\n\n{CALL}", tools=[TOOL], **THINK)
    assert (message["reasoning"], message["content"], reason) == ("I look.", "", "tool_calls")
    assert message["tool_calls"][0]["name"] == "zoom"
    message, _ = streamed(client, f"{CALL}</think>red", tools=[TOOL], **THINK)
    assert message["tool_calls"] == [] and message["reasoning"] == CALL and message["content"] == "red"


def test_thoughts_that_do_not_end(client):
    choice = say(client, "so many thoughts", max_tokens=3, **THINK)
    assert choice.finish_reason == "length" and choice.message.content is None and choice.message.reasoning


def test_reasoning_tokens_are_counted(client):
    messages: Any = [{"role": "user", "content": "say:abc</think>de"}]
    answer = client.chat.completions.create(model="mini", messages=messages, **THINK)
    thoughts = answer.usage.completion_tokens_details.reasoning_tokens
    assert 0 < thoughts < answer.usage.completion_tokens
    plain: Any = [{"role": "user", "content": "say:abc"}]
    answer = client.chat.completions.create(model="mini", messages=plain)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert not hasattr(answer.choices[0].message, "reasoning_content")


@pytest.mark.parametrize(
    "options",
    [
        {"reasoning_effort": "low"},
        {"extra_body": {"enable_thinking": True}},
        {"extra_body": {"chat_template_kwargs": {"options": {"thinking_mode": "open"}}}},
    ],
)
def test_each_way_of_asking_for_thoughts(client, options):
    assert say(client, "why</think>red", **options).message.reasoning == "why"


@pytest.mark.parametrize("options", [{}, {"reasoning_effort": "none"}, {"extra_body": {"enable_thinking": False}}])
def test_without_thinking_no_thoughts(client, options):
    assert say(client, "red", **options).message.content == "red"


def test_a_budget_ends_the_thoughts(client):
    extra = {"enable_thinking": True, "thinking_token_budget": 4}
    messages: Any = [{"role": "user", "content": "say:a b c d e f g h"}]
    answer = client.chat.completions.create(model="mini", messages=messages, extra_body=extra)
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4
    message = answer.choices[0].message
    assert message.reasoning + message.content == "a b c d e f g h" and message.content


def test_thoughts_can_be_left_out(client):
    choice = say(client, "why</think>red", extra_body={"enable_thinking": True, "include_reasoning": False})
    assert choice.message.content == "red" and not hasattr(choice.message, "reasoning")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_thoughts(client, stream):
    options = {"stop": ["END"], **THINK}
    text = "the END of it</think>red END blue"
    if stream:
        message, reason = streamed(client, text, **options)
        assert (message["reasoning"], message["content"], reason) == ("the ", "", "stop")
    else:
        assert say(client, text, **options).message.content is None


def test_log_probabilities_of_thoughts(client):
    messages: Any = [{"role": "user", "content": "say:ab</think>cd"}]
    answer = client.chat.completions.create(model="mini", messages=messages, logprobs=True, stream=True, **THINK)
    found = [chunk.choices[0].logprobs for chunk in answer]
    assert "".join(token.token for one in found if one for token in one.content).startswith("ab</think>cd")


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools.0.function.name"),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}},
            "tool_choice.function.name",
        ),
        ({"extra_body": {"thinking_token_budget": -1}}, "thinking_token_budget"),
        ({"reasoning_effort": "vast"}, "reasoning_effort"),
        ({"extra_body": {"chat_template_kwargs": {"options": {"a": 1}}}}, "chat_template_kwargs.options.a"),
    ],
)
def test_what_is_malformed_is_named(client, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        say(client, "x", **options)
    assert refusal.value.param == param


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"extra_body": {"thinking_token_budget": 5}}, "thinking_token_budget"),
    ],
)
def test_a_model_without_a_place_for_them(plain_bundle, options, param):
    with serve(plain_bundle, program=ECHO) as server:
        with pytest.raises(openai.BadRequestError) as refusal:
            say(server.client(), "x", **options)
        assert refusal.value.param == param and refusal.value.code in ("unsupported_parameter", "invalid_value")
        assert say(server.client(), "a</think>b", reasoning_effort="none").message.content == "a</think>b"


def test_tools_that_are_ignored(plain_bundle):
    with serve(plain_bundle, "--ignore-tools", program=ECHO) as server:
        choice = say(server.client(), CALL.strip(), tools=[TOOL], tool_choice="auto")
        assert choice.message.content == CALL.strip()
        with pytest.raises(openai.BadRequestError) as refusal:
            say(server.client(), "x", tools=[TOOL], tool_choice="required")
        assert refusal.value.param == "tools"


def test_deeply_nested_parameters_are_refused(client):
    body = b'{"messages": [{"role": "user", "content": "x"}], "tools": [{"type": "function", "function": {"name": "f", '
    body += b'"parameters": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5000 + b"}}]}"
    url = f"{client.base_url}chat/completions"
    response = httpx2.post(url, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text


def test_an_answer_that_thinks_may_be_long(client):
    """The mini checkpoint's generation_config.json has no length."""
    extra = {"min_tokens": 1100, "enable_thinking": True}
    long = say(client, "a " * 1100 + "</think>b", max_tokens=None, extra_body=extra)
    assert long.finish_reason == "stop" and long.message.content == "b"
    assert say(client, "a " * 1100, max_tokens=None).finish_reason == "length"
