"""/tokenize reads a conversation as /v1/chat/completions does: the same prompt, to the token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.paths import MEDIA
from tests.runtime.server.conftest import Server, serve

TOOL = {"type": "function", "function": {"name": "zoom", "description": "Look closer.", "parameters": {}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "zoom", "arguments": '{"box": [1, 2]}'}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is it?"},
    {"role": "assistant", "content": "", "reasoning_content": "Let me see.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call_1", "content": "A red ball."},
]
TEXT = [{"role": "user", "content": "What is red?"}]
PREFIX = [*TEXT, {"role": "assistant", "content": "The ball is"}]
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}


def post(server: Server, path: str, body: dict[str, Any]) -> Any:
    return httpx2.post(f"{server.url}{path}", json=body, timeout=60)


@pytest.fixture
def shown(data_uri):
    """shown(names...): a question about files of examples/media."""

    def messages(*names: str, **link: Any) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        for name in names:
            kind = "video" if name.endswith(".mp4") else "image"
            url = data_uri(Path(MEDIA, name).read_bytes(), kind)
            parts.append({"type": f"{kind}_url", f"{kind}_url": {"url": url, **link}})
        return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]

    return messages


@pytest.mark.parametrize(
    ("names", "link", "options"),
    [
        (("shapes.png",), {}, {}),
        (("many.jpg", "shapes.png"), {}, {}),
        (("passing.mp4",), {}, {}),
        (("shapes.png", "passing.mp4"), {}, {"chat_template_kwargs": {"enable_thinking": True}}),
        (("many.jpg",), {"detail": "low"}, {}),
        (("shapes.png",), {}, {"mm_processor_kwargs": {"max_pixels": 6000}}),
        (("passing.mp4",), {}, {"media_io_kwargs": {"video": {"num_frames": 4}}}),
        (("shapes.png",), {}, {"tools": [TOOL], "add_generation_prompt": False}),
    ],
)
def test_pictures_and_clips_count_as_in_a_chat(server, shown, names, link, options):
    messages = shown(*names, **link)
    tokens, answer = both(server, {"messages": messages, **options})
    media = answer["usage"]["prompt_tokens_details"]["media"]
    info = httpx2.get(f"{server.url}/tokenizer_info").json()
    for kind in ("image", "video"):
        expected = sum(medium["tokens"] for medium in media if medium["type"] == kind)
        assert tokens["token_strs"].count(info[f"{kind}_token"]) == expected
    assert len(media) == len(names) and all(medium["tokens"] > 1 for medium in media)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": TEXT},
        {"messages": TEXT, "chat_template_kwargs": {"enable_thinking": True}},
        {"messages": TEXT, "enable_thinking": False},
        {"messages": TEXT, "reasoning_effort": "high"},
        {"messages": TEXT, "tools": [TOOL]},
        {"messages": TEXT, "tools": [TOOL], "tool_choice": "none"},
        {"messages": TURNS, "tools": [TOOL], "chat_template_kwargs": {"enable_thinking": True}},
        {"messages": TEXT, "add_generation_prompt": False},
        {"messages": PREFIX, **CONTINUED},
        {"messages": TEXT, "temperature": 0.5, "stop": ["."], "n": 1, "user": "someone", "priority": 0},
        {"messages": TEXT, "add_special_tokens": False},
    ],
)
def test_the_prompt_of_a_chat_has_as_many_tokens(server, body):
    tokens, _ = both(server, body)
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])


def test_fields_of_a_chat_change_the_prompt(server):
    """Else the tests above could pass by ignoring them."""
    bodies: list[dict[str, Any]] = [
        {"messages": TEXT},
        {"messages": TEXT, "chat_template_kwargs": {"enable_thinking": True}},
        {"messages": TEXT, "tools": [TOOL]},
        {"messages": TEXT, "add_generation_prompt": False},
        {"messages": PREFIX},
        {"messages": PREFIX, **CONTINUED},
    ]
    prompts = [tuple(post(server, "/tokenize", body).json()["tokens"]) for body in bodies]
    assert len(set(prompts)) == len(prompts)
    assert post(server, "/detokenize", {"tokens": prompts[-1]}).json()["prompt"].endswith("The ball is")


def both(server: Server, body: dict[str, Any]) -> tuple[Any, Any]:
    """Return what /tokenize and the chat say of the same body, which agree on the number of tokens."""
    tokens = post(server, "/tokenize", {**body, "return_token_strs": True}).json()
    asked = {name: value for name, value in body.items() if name != "add_special_tokens"}
    answer = post(server, "/v1/chat/completions", {**asked, "max_tokens": 1}).json()
    assert tokens["count"] == answer["usage"]["prompt_tokens"]
    return tokens, answer


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": TEXT, "tools": [TOOL], "tool_choice": "zoom"}, "tool_choice"),
        ({"messages": TEXT, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": TEXT, "chat_template_kwargs": {"other": 1}}, "chat_template_kwargs.other"),
        ({"messages": TEXT, "add_special_tokens": "yes"}, "add_special_tokens"),
        ({"messages": PREFIX, "continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0"),
        ({"messages": TEXT, "mm_processor_kwargs": {"min_pixels": 9, "max_pixels": 1}}, "mm_processor_kwargs"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
        ({"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
    ],
)
def test_a_conversation_is_refused_by_its_field(server, body, param):
    response = post(server, "/tokenize", body)
    assert response.status_code == 400 and response.json()["error"]["param"].startswith(param), response.text


def test_more_pictures_than_a_request_may_have_are_refused_unread(server, shown):
    messages = shown("shapes.png")
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages[0]["content"] += [part] * 200
    response = post(server, "/tokenize", {"messages": messages})
    assert response.status_code == 400 and response.json()["error"]["code"] == "too_large", response.text


def test_a_prompt_longer_than_the_context_is_counted(server):
    body = {"messages": [{"role": "user", "content": "red " * 5000}]}
    assert post(server, "/v1/chat/completions", body).json()["error"]["code"] == "context_length_exceeded"
    tokens = post(server, "/tokenize", body).json()
    assert tokens["count"] > tokens["max_model_len"]


@pytest.fixture(scope="module")
def without_tools(bundle) -> Iterator[Server]:
    with serve(bundle, "--ignore-tools", program=("serve_echo.py",)) as server:
        yield server


def test_tools_that_the_server_ignores_are_not_counted(without_tools):
    tokens, _ = both(without_tools, {"messages": TEXT, "tools": [TOOL]})
    assert tokens["count"] == post(without_tools, "/tokenize", {"messages": TEXT}).json()["count"]
