"""Thoughts, tags and text of an answer, by its tokens."""

import numpy as np
import pytest

from ernie_export.runtime.answer_text import AnswerFormat, AnswerText, Piece
from ernie_export.runtime.preprocess.chat import ChatProcessor
from ernie_export.runtime.sampling_params import SamplingParams
from tests.paths import MINI


@pytest.fixture(scope="module")
def chat() -> ChatProcessor:
    return ChatProcessor.from_folder(MINI)


def ids(chat: ChatProcessor, text: str) -> list[int]:
    return chat.tokenizer.backend.encode(text, add_special_tokens=False).ids


def begin(chat: ChatProcessor, prompt: str, stop: tuple[str, ...] = (), budget: int | None = None) -> AnswerText:
    return AnswerFormat.of(chat).begin(
        np.array(ids(chat, prompt)), SamplingParams(stop=stop, thinking_token_budget=budget)
    )


def read(answer: AnswerText, tokens: list[int]) -> tuple[str, str]:
    pieces = [answer.push(token) for token in tokens] + [answer.finish()]
    joined = "".join(piece.text for piece in pieces), "".join(piece.reasoning for piece in pieces)
    assert joined == (answer.text, answer.reasoning)
    return joined


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "reasoning"),
    [
        ("Assistant: <think>", "abc</think>def", "def", "abc"),
        ("Assistant: <think>\n", "abc\n</think>\n\ndef\n", "def\n", "abc\n"),
        ("Assistant: <think>", "abc</think>\n\n<response>\ndef\n</response>\n", "def", "abc"),
        ("Assistant: <think>", "abc</think><response>a </resp b\n\nc</response>\n\n", "a </resp b\n\nc", "abc"),
        ("Assistant: <think>", "abc</think><response>\ndef\n", "def", "abc"),
        ("Assistant: <think>", "abc</think><response></response>", "", "abc"),
        ("Assistant: <think>", "abc</think>a<response>", "a<response>", "abc"),
        ("Assistant: <think>", "abc</think><resp", "<resp", "abc"),
        ("Assistant: <think>", "abc", "", "abc"),
        ("Assistant: <think>", "<think>abc</think>def", "def", "abc"),
        ("Assistant: <think>", "abc</think>de</think>f", "def", "abc"),
        ("Assistant: ", "<think>abc</think>def", "def", "abc"),
        ("Assistant: ", "\n\ndef", "\n\ndef", ""),
        ("Assistant: <think>\n\n</think>\n\n", "<response>\ndef\n</response>", "def", ""),
        ("Assistant: <think>\n\n</think>\n\n", "def </response>", "def </response>", ""),
        ("Say <think>!\nAssistant: ", "def", "def", ""),
        ("Assistant: <think>", "你好🙂</think>🙂", "🙂", "你好🙂"),
    ],
)
def test_thoughts_and_text(chat, prompt, answer, text, reasoning):
    assert read(begin(chat, prompt), ids(chat, answer)) == (text, reasoning)


def test_a_tag_that_is_a_special_token_stays_in_the_text(chat):
    answer = begin(chat, "Assistant: ")
    special = {1: "<tool_call>"}
    shown = AnswerFormat(chat.decode, chat.byte_tokens, special, None).begin(np.array([5]), SamplingParams())
    assert read(shown, [*ids(chat, "a"), 1, *ids(chat, "b")])[0] == "a<tool_call>b"
    assert read(answer, [*ids(chat, "a"), 1, *ids(chat, "b")])[0] == "ab", "other special tokens leave nothing"


def test_a_budget_forces_the_end(chat):
    answer = begin(chat, "Assistant: <think>", budget=2)
    end = chat.tokenizer.backend.token_to_id("</think>")
    forced = []
    for token in ids(chat, "a b c d")[:3]:
        forced.append(answer.forced_token())
        answer.push(token if forced[-1] is None else end)
    assert forced == [None, None, end] and answer.forced_token() is None and answer.reasoning_tokens == 2
    assert begin(chat, "Assistant: <think>", budget=0).forced_token() == end
    assert begin(chat, "Assistant: ", budget=0).forced_token() is None


def test_a_stop_string_ends_thoughts_as_well_as_the_text(chat):
    answer = begin(chat, "Assistant: <think>", stop=("END",))
    assert read(answer, ids(chat, "an E</think>red END blue")) == ("red ", "an E")
    assert answer.stop_string == "END" and answer.stopped and answer.push(5) == Piece()
    answer = begin(chat, "Assistant: <think>", stop=("END",))
    assert read(answer, ids(chat, "an END of it")) == ("", "an ")
    assert answer.stop_string == "END" and answer.stopped
