"""Each option does what it does for `model.generate`; what cannot be honoured is refused by name."""

import math

import openai
import pytest

ASKED = [{"role": "user", "content": "How many sides has a triangle?"}]
LONG = {"temperature": 2.0, "max_tokens": 24, "extra_body": {"min_tokens": 24}}
SAME = {"temperature": 2.0, "max_new_tokens": 24, "min_new_tokens": 24}
TAME = {"temperature": 0.6}  # no tokens that stand for half a character


def ask(client, messages=ASKED, **options):
    return client.chat.completions.create(model="mini", messages=messages, **options)


def texts(completion) -> list[str]:
    return [choice.message.content for choice in completion.choices]


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"max_tokens": 200}, {"max_new_tokens": 200}),
        ({"max_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_completion_tokens": 3, "max_tokens": 9}, {"max_new_tokens": 3}),
        ({"temperature": 1.5, "seed": 7, "max_tokens": 16}, {"temperature": 1.5, "seed": 7, "max_new_tokens": 16}),
        ({**LONG, "seed": 3, "top_p": 0.8}, {**SAME, "seed": 3, "top_p": 0.8}),
        ({**LONG, "seed": -3}, {**SAME, "seed": 2**64 - 3}),
        ({**LONG, "seed": 3, "extra_body": {"min_tokens": 24, "top_k": 5}}, {**SAME, "seed": 3, "top_k": 5}),
        ({**LONG, "seed": 3, "extra_body": {"min_tokens": 24, "top_k": -1}}, {**SAME, "seed": 3}),
        (
            {"max_tokens": 24, "extra_body": {"min_tokens": 24, "repetition_penalty": 1.7}},
            {"max_new_tokens": 24, "min_new_tokens": 24, "repetition_penalty": 1.7},
        ),
    ],
)
def test_an_option_means_the_same(client, alone, given, same):
    completion = ask(client, **given)
    expected = alone.generate(ASKED, **same)
    assert texts(completion) == [expected.text]
    assert completion.usage.completion_tokens == len(expected.tokens)
    assert completion.choices[0].finish_reason == expected.finish_reason


def test_a_seed_repeats_and_its_absence_does_not(client):
    assert texts(ask(client, seed=1, **LONG)) == texts(ask(client, seed=1, **LONG))
    assert len({texts(ask(client, **LONG))[0] for _ in range(4)}) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer_and_are_not_in_it(client, alone, stream):
    whole = alone.generate(ASKED, seed=3, **SAME).text
    stop = whole[20:23]
    answer = ask(client, seed=3, stop=[stop, "never there"], stream=stream, **LONG)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        found = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        found = texts(answer)[0]
        reason = answer.choices[0].finish_reason
    assert found == whole[: whole.index(stop)] and reason == "stop"
    assert texts(ask(client, seed=3, stop=stop, **LONG)) == [found]


def test_choices_have_seeds_of_their_own(client, alone):
    completion = ask(client, seed=40, n=4, **LONG)
    assert texts(completion) == [alone.generate(ASKED, seed=40 + index, **SAME).text for index in range(4)]
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert completion.usage.completion_tokens == 4 * 24
    assert completion.usage.prompt_tokens == alone.generate(ASKED).prompt_tokens


def test_logprobs_are_the_models(client, alone):
    completion = ask(client, seed=3, logprobs=True, top_logprobs=4, **LONG | TAME)
    request = alone.submit(ASKED, seed=3, logprobs=4, **SAME | TAME)
    while not request.done:
        alone.scheduler.step()
    found = completion.choices[0].logprobs.content
    assert len(found) == 24
    for token, expected in zip(found, request.sequence.logprobs):
        assert token.logprob == pytest.approx(expected.chosen, abs=1e-4)
        assert [top.logprob for top in token.top_logprobs] == pytest.approx([p for _, p in expected.top], abs=1e-4)
        assert math.fsum(math.exp(top.logprob) for top in token.top_logprobs) < 1 + 1e-5
    assert b"".join(bytes(token.bytes or []) for token in found).decode() == texts(completion)[0]
    added = alone.preprocessor.chat.tokenizer.backend.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    assert all((token.bytes is None) == (token.token in special) for token in found)
    assert ask(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(client, max_tokens=1).choices[0].logprobs is None


def test_the_template_is_asked_to_think(client, alone):
    """The prompt then ends in an open <think>, which is shorter than a closed one."""
    plain = ask(client, max_tokens=1).usage.prompt_tokens
    thinking = ask(client, max_tokens=1, extra_body={"chat_template_kwargs": {"enable_thinking": True}})
    variables = {"enable_thinking": True}
    expected = alone.preprocessor.prepare(ASKED, variables=variables).arrays["input_ids"].shape[1]
    assert thinking.usage.prompt_tokens == expected < plain


VLLM_NEUTRAL = {
    "min_p": 0.0, "stop_token_ids": [], "ignore_eos": False, "skip_special_tokens": True, "echo": False,
    "add_generation_prompt": True, "continue_final_message": False, "priority": 0, "length_penalty": 1.0, "best_of": 1,
    "use_beam_search": False, "mm_processor_kwargs": {}, "include_reasoning": True, "request_id": "mine",
    "structured_outputs": None, "documents": None, "bad_words": [], "min_tokens": 0, "prompt_logprobs": None,
}  # fmt: skip


@pytest.mark.parametrize(
    "neutral",
    [
        {"tools": [], "tool_choice": "auto", "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}},
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "modalities": ["text"]},
        {"response_format": {"type": "text"}, "parallel_tool_calls": True, "extra_body": {"top_k": 0}},
        {"messages": [{"role": "developer", "content": "Be brief."}, *ASKED]},
        {"extra_body": VLLM_NEUTRAL},
        {"extra_body": dict.fromkeys([*VLLM_NEUTRAL, "guided_json", "a_field_of_tomorrow"])},
    ],
)
def test_what_asks_for_nothing_is_taken(client, neutral):
    assert texts(ask(client, **neutral))[0]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"extra_body": {"ignore_eos": "yes"}}, "ignore_eos"),
        ({"extra_body": {"min_p": 1.1}}, "min_p"),
        ({"extra_body": {"stop_token_ids": [10**6]}}, "stop_token_ids"),
        ({"extra_body": {"allowed_token_ids": []}}, "allowed_token_ids"),
        ({"extra_body": {"allowed_token_ids": [-1]}}, "allowed_token_ids.0"),
        ({"extra_body": {"bad_words": ["red", ""]}}, "bad_words"),
        ({"extra_body": {"skip_special_tokens": "no"}}, "skip_special_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "much"}, "frequency_penalty"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"logit_bias": {"red": 1}}, "logit_bias.red"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 2, "extra_body": {"min_tokens": 3}}, "min_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop.0"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"link": "x"}}]}]},
            "messages.0.content.0.image_url.url",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}, *ASKED]},
            "messages.0.tool_calls.0.function",
        ),
        ({"messages": [{"role": "user", "content": "<|IMAGE_PLACEHOLDER|>"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "red " * 4096}]}, "messages"),
        ({"extra_body": {"chat_template_kwargs": {"bos_token": "x"}}}, "chat_template_kwargs.bos_token"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, **{"messages": ASKED, **options})
    error = refusal.value
    assert error.param == param and ("prompt:" in error.message or param.split(".")[-1] in error.message)
    assert error.type == "invalid_request_error" and error.code
    assert "Traceback" not in str(error.body) and len(str(error.body)) < 500


def test_ignore_eos_answers_to_the_last_token(client):
    completion = ask(client, messages=ASKED, max_tokens=60, extra_body={"ignore_eos": True})
    assert completion.usage.completion_tokens == 60 and completion.choices[0].finish_reason == "length"


def test_usage_in_every_chunk(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, stream=True, stream_options=options, **LONG))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 24 and len(set(counts)) > 2
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as refusal:
        client.chat.completions.create(model="gpt-9", messages=ASKED)
    assert refusal.value.code == "model_not_found" and refusal.value.param == "model"


def test_the_model_is_listed(client, alone):
    (model,) = client.models.list().data
    assert model.id == "mini" and model.max_model_len == alone.manifest.model.max_positions
    assert client.models.retrieve("mini") == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
