"""What the server answers is what the model answers, however it is asked and whoever asks beside."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

TRIANGLE = [{"role": "user", "content": "How many sides has a triangle?"}]
FREE = {"temperature": 2.0, "extra_body": {"min_tokens": 12}, "max_tokens": 12}


def text(completion, index: int = 0) -> str:
    return completion.choices[index].message.content


def test_questions_with_pictures_and_clips(client, alone, questions):
    for question in questions:
        completion = client.chat.completions.create(model="mini", messages=question["asked"], max_tokens=100)
        expected = alone.generate(question["messages"], max_new_tokens=100)
        assert text(completion) == expected.text == question["answer"]
        assert completion.choices[0].finish_reason == expected.finish_reason == "stop"
        usage = completion.usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (expected.prompt_tokens, len(expected.tokens))
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_what_was_seen_of_pictures_and_clips(client, alone, questions):
    question = next(question for question in questions if question["name"] == "picture, then clip")
    completion = client.chat.completions.create(model="mini", messages=question["asked"])
    prepared = alone.preprocessor.prepare(question["messages"])
    expected = [(item.kind, list(item.grid), item.tokens.stop - item.tokens.start) for item in prepared.items]
    seen = completion.usage.prompt_tokens_details.media
    assert [(item["type"], item["grid"], item["tokens"]) for item in seen] == expected


def test_several_turns_with_the_clients_own_message(client, alone, questions):
    """The answer goes back as the client gave it, with all its empty fields; the picture is not prefilled again."""
    first = client.chat.completions.create(model="mini", messages=questions[0]["asked"])
    message = first.choices[0].message
    further = {"role": "user", "content": "Where is the square?"}
    second = client.chat.completions.create(
        model="mini", messages=[*questions[0]["asked"], message.model_dump(), further]
    )
    turns = [*questions[0]["messages"], {"role": "assistant", "content": message.content}, further]
    assert text(second) == alone.generate(turns).text
    assert second.usage.prompt_tokens_details.cached_tokens > 16


@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_adds_up_to_the_whole(client, questions, count):
    asked = {"model": "mini", "messages": questions[2]["asked"], "seed": 5, "n": count, "logprobs": True, **FREE}
    whole = client.chat.completions.create(**asked)
    texts = [""] * count
    roles = [""] * count
    reasons = [""] * count
    logprobs: list[list[Any]] = [[] for _ in range(count)]
    usage = None
    for chunk in client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        assert usage is None, "usage comes last"
        usage = chunk.usage
        assert len(chunk.choices) == (0 if usage else 1)
        for choice in chunk.choices:
            assert not reasons[choice.index]
            texts[choice.index] += choice.delta.content or ""
            roles[choice.index] += choice.delta.role or ""
            reasons[choice.index] = choice.finish_reason or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [text(whole, index) for index in range(count)] and len(set(texts)) == count
    assert reasons == ["length"] * count and roles == ["assistant"] * count
    assert [[token.token for token in one] for one in logprobs] == [
        [token.token for token in choice.logprobs.content] for choice in whole.choices
    ]
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, 12 * count)


def test_sixteen_at_a_time_answer_as_one_at_a_time(server, alone, questions):
    """Of unequal length and kind, sampled and greedy, streamed and whole."""

    def ask(number: int) -> str:
        question = questions[number % len(questions)]
        options = dict(FREE, max_tokens=4 + number, seed=number, extra_body={"min_tokens": 4}) if number % 2 else {}
        with server.client() as client:
            answer = client.chat.completions.create(
                model="mini", messages=question["asked"], stream=number % 3 == 0, **options
            )
            if number % 3:
                return text(answer)
            return "".join(chunk.choices[0].delta.content or "" for chunk in answer)

    def expected(number: int) -> str:
        options = {"temperature": 2.0, "max_new_tokens": 4 + number, "min_new_tokens": 4, "seed": number}
        return alone.generate(questions[number % len(questions)]["messages"], **(options if number % 2 else {})).text

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(16)))
    assert answers == [expected(number) for number in range(16)]
    assert len(set(answers)) > 12
