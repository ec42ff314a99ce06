"""Requests as clients write them, and what is said of those that are malformed: in our words, not a validator's."""

import json
from typing import Any

import pytest

from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.parse import parse_chat
from ernie_export.runtime.serving.http.schema import ChatRequest

ASKED = [{"role": "user", "content": "Hello"}]


def read(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps({"messages": ASKED} | fields).encode(), 10**6)


def content(*parts: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def image(url: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": url}


def test_what_changes_nothing_is_taken() -> None:
    assert read(max_tokens=16.0, seed=3.0).max_tokens == 16
    read(guided_json=None, min_p=0, add_generation_prompt=True)
    read(**content({"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}))
    read(**content(image({"url": "data:,a", "detail": "low"})))
    turns = read(messages=[{"role": "assistant", "content": None, "id": "m1"}, *ASKED]).messages
    assert [turn.content for turn in turns] == ["", "Hello"]


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "an image's address as text": (
        content(image("data:,a")),
        "messages.0.content.0.image_url: expected an object, found text",
    ),
    "an image's address as a number": (
        content(image(3)),
        "messages.0.content.0.image_url: expected an object, found 3",
    ),
    "a message as text": ({"messages": ["Hello"]}, "messages.0: expected an object, found text"),
    "messages as text": ({"messages": "Hello"}, "messages: expected a list, found text"),
    "no messages": ({"messages": []}, "messages: expected at least 1 items, found 0"),
    "no type": (
        content({"text": "a"}),
        "messages.0.content.0: expected an object with a type of text, image_url or video_url, found none",
    ),
    "another type": (
        content({"type": "audio"}),
        "messages.0.content.0: expected text, image_url, video_url, found audio",
    ),
    "no text": (content({"type": "text"}), "messages.0.content.0.text: expected a value, found none"),
    "17 stops": ({"stop": [str(n) for n in range(17)]}, "stop: expected at most 16 items, found 17"),
    "a stop that is a number": ({"stop": [1]}, "stop.0: expected text, found 1"),
    "a fraction of a token": ({"max_tokens": 1.5}, "max_tokens: expected a whole number, found 1.5"),
    "no tokens": ({"max_tokens": 0}, "max_tokens: expected at least 1, found 0"),
    "a temperature in words": ({"temperature": "hot"}, "temperature: expected a number, found text"),
    "a temperature too high": ({"temperature": 3}, "temperature: expected at most 2.0, found 3"),
    "another role": (
        {"messages": [{"role": "robot", "content": "a"}]},
        "messages.0.role: expected system, developer, user, assistant or tool, found robot",
    ),
    "a field of another server": ({"dry_multiplier": 1}, "dry_multiplier: unknown field"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_malformed_is_named_in_our_words(case: str) -> None:
    fields, message = MALFORMED[case]
    with pytest.raises(ApiError) as refused:
        read(**fields)
    assert str(refused.value) == message
