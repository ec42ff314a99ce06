"""Fields of vLLM's chat completions mean what they mean there: options of tokens, of the prompt's end, and defaults."""

import json
from typing import Any

import openai
import pytest

ASKED = [{"role": "user", "content": "How many sides has a triangle?"}]
BEGUN = [*ASKED, {"role": "assistant", "content": "three "}]
LONG: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_tokens": 24}


def ask(client, messages=ASKED, body: dict[str, Any] | None = None, **options):
    return client.chat.completions.create(model="mini", messages=messages, extra_body=body, **options)


def text(completion) -> str:
    return completion.choices[0].message.content


@pytest.mark.parametrize(
    "options",
    [
        {"min_p": 0.2},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logit_bias": {"372": 5.0, "284": -100}},
        {"allowed_token_ids": [372, 284, 300, 2]},
        {"bad_words": ["red", "triangle"]},
        {"stop_token_ids": [372, 284, 300]},
        {"ignore_eos": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_an_option_means_the_same_as_in_python(client, alone, options):
    same = {"temperature": 1.5, "seed": 3, "max_new_tokens": 24, **options}
    answer = ask(client, body=options, **LONG)
    expected = alone.generate(ASKED, **same)
    assert text(answer) == expected.text and answer.usage.completion_tokens == len(expected.tokens)


def test_ignore_eos_goes_on_to_the_last_token(client):
    answer = ask(client, body={"ignore_eos": True}, max_tokens=40)
    assert answer.usage.completion_tokens == 40 and answer.choices[0].finish_reason == "length"


def test_bad_words_and_allowed_tokens_hold(client, alone):
    tokenizer = alone.preprocessor.chat.tokenizer.backend
    banned = text(ask(client, body={"bad_words": ["red", "circle"]}, **LONG | {"max_tokens": 60}))
    assert "red" not in banned.split() and "circle" not in banned
    ids = [tokenizer.token_to_id(piece) for piece in ("red", "blue")]
    allowed = text(ask(client, body={"allowed_token_ids": ids}, **LONG))
    assert set(allowed.replace("red", "r").replace("blue", "b")) == {"r", "b"}


def test_a_stop_token_ends_an_answer_and_is_part_of_it_on_request(client, alone):
    free = alone.generate(ASKED, temperature=1.5, seed=3, max_new_tokens=24, ignore_eos=True)
    stop = free.tokens[5]
    first = free.tokens.index(stop)
    without = ask(client, body={"stop_token_ids": [stop], "ignore_eos": True}, **LONG)
    within = ask(
        client, body={"stop_token_ids": [stop], "ignore_eos": True, "include_stop_str_in_output": True}, **LONG
    )
    decode = alone.preprocessor.chat.decode
    assert text(without) == decode(free.tokens[:first]) and without.choices[0].finish_reason == "stop"
    assert text(within) == decode(free.tokens[: first + 1])
    assert without.usage.completion_tokens == within.usage.completion_tokens == first + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_part_of_the_text_on_request(client, alone, stream):
    whole = alone.generate(ASKED, temperature=1.5, seed=3, max_new_tokens=80, ignore_eos=True).text
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    assert len(stop) == 3
    answer = ask(
        client,
        body={"include_stop_str_in_output": True, "ignore_eos": True},
        stop=stop,
        stream=stream,
        **LONG | {"max_tokens": 80},
    )
    found = "".join(chunk.choices[0].delta.content or "" for chunk in answer) if stream else text(answer)
    assert found == whole[: whole.index(stop) + len(stop)]


def test_special_tokens_are_shown_on_request(client):
    shown = text(ask(client, body={"skip_special_tokens": False, "include_stop_str_in_output": True}))
    assert shown == text(ask(client)) + "</s>"


def test_a_message_is_continued_and_echoed(client, alone):
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = ask(client, BEGUN, body)
    chat = alone.preprocessor.chat
    prompt = chat.render(BEGUN, add_generation_prompt=False, continue_final_message=True)
    assert prompt.endswith("three ") and answer.usage.prompt_tokens == len(chat.encode(prompt))
    assert text(ask(client, BEGUN, {"continue_final_message": True})) == text(answer)
    echoed = ask(client, BEGUN, body | {"echo": True})
    assert text(echoed) == "three " + text(answer)
    chunks = ask(client, BEGUN, body | {"echo": True}, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text(echoed)
    assert text(ask(client, body={"echo": True})) == text(ask(client))  # the last message is the user's


def test_the_role_is_the_last_messages_where_no_answer_is_begun(client):
    answer = ask(client, body={"add_generation_prompt": False, "echo": True}, max_tokens=2)
    assert answer.choices[0].message.role == "user"
    assert text(answer).startswith(ASKED[0]["content"])
    assert answer.usage.prompt_tokens < ask(client, max_tokens=2).usage.prompt_tokens


@pytest.mark.parametrize(
    ("messages", "body", "param"),
    [
        (BEGUN, {"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ([*ASKED, {"role": "assistant", "content": []}], {"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_a_message_that_cannot_be_continued_is_refused(client, messages, body, param):
    with pytest.raises(openai.BadRequestError) as refusal:
        ask(client, messages, body)
    assert refusal.value.param == param


def test_more_tokens_than_there_may_be_are_cut_to_these(serving):
    with serving("--max-new-tokens", 6) as server:
        asked: list[dict[str, Any]] = [{"max_tokens": 16384}, {"max_completion_tokens": 16384}, {}]
        for most in asked:
            answer = ask(server.client(), body={"ignore_eos": True}, **most)
            assert answer.usage.completion_tokens == 6 and answer.choices[0].finish_reason == "length"


def test_every_chunk_has_the_usage_so_far_on_request(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, body={"min_tokens": 24}, stream=True, stream_options=options, **LONG))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] < counts[-1] == 24


@pytest.mark.parametrize(
    "neutral",
    [
        {"top_logprobs": 0},
        {"watermarking": False, "stream_interval": 1, "vllm_xargs": {}, "kv_transfer_params": {}, "session_id": "s"},
        {"return_mm_kwargs": True, "truncation_side": "left", "routed_experts_prompt_start": 0, "verbosity": "medium"},
        {"spaces_between_special_tokens": False, "add_special_tokens": False, "best_of": 1, "use_beam_search": False},
    ],
)
def test_what_asks_for_nothing_is_taken(client, neutral):
    assert text(ask(client, body=neutral)) == text(ask(client))


def reasons(client, alone, stream: bool, **options: Any) -> list[tuple[str, str | int | None]]:
    """Finish and stop reason of an answer of each interface."""
    chat = {"messages": ASKED, "model": "mini", "stream": stream}
    ids = alone.preprocess(ASKED)["input_ids"][0].tolist()
    plain = {"prompt": ids, "model": "mini", "stream": stream}
    answers = [client.chat.completions.create(**chat, **options), client.completions.create(**plain, **options)]
    parts = [[choice for part in (answer if stream else [answer]) for choice in part.choices] for answer in answers]
    return [(choices[-1].finish_reason, choices[-1].stop_reason) for choices in parts]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_the_stop_reason_is_the_string_or_token_that_ended_the_answer(client, alone, stream):
    (first, *_) = alone.generate(ASKED).tokens
    eos = alone.manifest.model.eos_token_ids[0]
    assert reasons(client, alone, stream, stop=["x", "ree"]) == [("stop", "ree")] * 2
    assert reasons(client, alone, stream, extra_body={"stop_token_ids": [first]}) == [("stop", first)] * 2
    assert reasons(client, alone, stream, extra_body={"stop_token_ids": [eos]}) == [("stop", None)] * 2
    ignoring = {"stop_token_ids": [eos], "ignore_eos": True}
    assert reasons(client, alone, stream, extra_body=ignoring) == [("stop", eos)] * 2
    assert reasons(client, alone, stream) == [("stop", None)] * 2
    assert reasons(client, alone, stream, max_tokens=1) == [("length", None)] * 2


def test_what_would_change_an_answer_is_refused(client):
    for body in (
        {"use_beam_search": True},
        {"prompt_logprobs": 3, "stream": True},
        {"cache_salt": "x"},
        {"stream_interval": 4},
    ):
        with pytest.raises(openai.BadRequestError) as refusal:
            ask(client, body=body)
        assert refusal.value.param in body


def test_defaults_are_those_that_the_operator_chooses(serving, tmp_path, alone):
    config = {"do_sample": True, "temperature": 1.5, "top_k": 7, "repetition_penalty": 1.2, "max_new_tokens": 9}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    expected = alone.generate(
        ASKED, temperature=1.5, top_k=7, repetition_penalty=1.2, max_new_tokens=9, seed=5, ignore_eos=True
    )
    with serving("--generation-config", tmp_path) as server:
        client = server.client()
        assert text(ask(client, body={"ignore_eos": True}, seed=5)) == expected.text
        assert ask(client, body={"ignore_eos": True}, max_tokens=50).usage.completion_tokens == 9
        greedy = ask(client, body={"repetition_penalty": 1.0, "top_k": 0}, temperature=0)
        assert text(greedy) == alone.generate(ASKED).text
    with serving("--generation-config", "vllm") as server:
        sampled = alone.generate(ASKED, temperature=1.0, seed=5, max_new_tokens=30, ignore_eos=True)
        assert text(ask(server.client(), body={"ignore_eos": True}, seed=5, max_tokens=30)) == sampled.text
