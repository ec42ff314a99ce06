"""Log probabilities of a prompt's tokens: `echo` with `logprobs`, as lm-eval asks for them, and vLLM's field."""

from typing import Any

import numpy as np
import pytest

from ernie_export.runtime import Model
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.serving.prepare import prepare_text

PROMPTS = ["User: What is red?\nAssistant: ", "User: Where is the square?"]


def expected_logprobs(model: Model, text: str) -> list[float]:
    """Log probabilities of a text's tokens from the second on: what generation scores each at after those before it."""
    ids = model.preprocessor.chat.tokenizer.encode(text)
    params = SamplingParams(max_new_tokens=1, logprobs=model.manifest.model.vocab_size)
    found = []
    for stop in range(1, len(ids)):
        sequence = model.begin(prepare_text(model, ids[:stop]).prompt, params)
        with model.scheduler.reserve() as reservation:
            request = reservation.submit(sequence, lambda output: None)
        while not request.done:
            model.scheduler.step()
        found.append(dict(sequence.logprobs[0].top)[ids[stop]])
    return found


@pytest.fixture(scope="module")
def expected(alone) -> list[list[float]]:
    return [expected_logprobs(alone, text) for text in PROMPTS]


def parts_by_choice(answer: Any, stream: bool) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for part in answer if stream else [answer]:
        for choice in part.choices:
            found.setdefault(choice.index, []).append(choice)
    return found


@pytest.mark.parametrize("as_ids", [False, True], ids=["texts", "ids"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echo_has_the_log_probabilities_of_its_prompt(client, alone, expected, max_tokens, stream, as_ids):
    ids = [alone.preprocessor.chat.tokenizer.encode(text) for text in PROMPTS]
    options = {"echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2, "stream": stream}
    prompt = ids if as_ids else PROMPTS
    answer = client.completions.create(model="mini", prompt=prompt, extra_body={"ignore_eos": True}, **options)
    choices = parts_by_choice(answer, stream)
    assert sorted(choices) == [0, 1, 2, 3]
    for index, parts in choices.items():
        asked = PROMPTS[index // 2]
        length = len(ids[index // 2])
        scored = [part.logprobs for part in parts if part.logprobs]
        logprobs = [value for part in scored for value in part.token_logprobs]
        top = [value for part in scored for value in part.top_logprobs]
        offsets = [value for part in scored for value in part.text_offset]
        assert len(logprobs) == len(top) == len(offsets) == length + max_tokens
        assert logprobs[0] is None and top[0] is None
        np.testing.assert_allclose(logprobs[1:length], expected[index // 2], rtol=1e-4, atol=1e-5)
        assert all(0 < len(values) <= 2 for values in top[1:])
        assert offsets == sorted(offsets) and offsets[0] == 0
        text = "".join(part.text for part in parts)
        assert text == asked if max_tokens == 0 else text.startswith(asked)
        assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]


def test_a_token_is_the_most_likely_where_its_log_probability_is_the_greatest_listed(client, alone):
    """lm-eval's `is_greedy` compares the two: what the model itself answers is found to be its greedy answer."""
    answer = alone.generate([{"role": "user", "content": "What is red?"}], max_new_tokens=6, ignore_eos=True)
    prompt = alone.preprocess([{"role": "user", "content": "What is red?"}])["input_ids"][0].tolist()
    ids = [*prompt, *answer.tokens]
    choice = client.completions.create(model="mini", prompt=[ids], echo=True, logprobs=1, max_tokens=1).choices[0]
    logprobs = choice.logprobs.token_logprobs[len(prompt) : len(ids)]
    top = choice.logprobs.top_logprobs[len(prompt) : len(ids)]
    assert len(logprobs) == 6
    assert all(logprob == max(values.values()) for logprob, values in zip(logprobs, top, strict=True))


def test_prompt_logprobs_have_vllms_form(client, alone, expected):
    answer = client.completions.create(model="mini", prompt=PROMPTS[0], max_tokens=1, extra_body={"prompt_logprobs": 3})
    entries = answer.choices[0].prompt_logprobs
    ids = alone.preprocessor.chat.tokenizer.encode(PROMPTS[0])
    assert entries[0] is None and len(entries) == len(ids)
    for id, logprob, entry in zip(ids[1:], expected[0], entries[1:], strict=True):
        assert entry[str(id)]["logprob"] == pytest.approx(logprob, rel=1e-4, abs=1e-5)
        ranks = sorted(value["rank"] for value in entry.values())
        assert ranks[:3] == [1, 2, 3] and len(ranks) == (3 if entry[str(id)]["rank"] <= 3 else 4)
        assert set(entry[str(id)]) == {"logprob", "rank", "decoded_token"}


def test_a_chat_has_them_beside_its_choices(client):
    messages = [{"role": "user", "content": "What is red?"}]
    body = {"prompt_logprobs": 0}
    answer = client.chat.completions.create(model="mini", messages=messages, max_tokens=2, n=2, extra_body=body)
    assert len(answer.prompt_logprobs) == answer.usage.prompt_tokens
    assert [len(entry) for entry in answer.prompt_logprobs[1:]] == [1] * (answer.usage.prompt_tokens - 1)
    again = client.chat.completions.create(model="mini", messages=messages, max_tokens=2)
    assert again.choices[0].message.content == answer.choices[0].message.content
