"""Requests that come, go and fail at any moment: each answers as if alone, and none hurts another."""

import gc
import threading
import time
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from ernie_export.common.errors import UserError
from ernie_export.runtime import Model, load
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler import Output, QueueFull, Request
from ernie_export.runtime.scheduler_config import SchedulerConfig

FORGETFUL = SchedulerConfig(enable_prefix_caching=False, feature_cache_bytes=0)
QUESTIONS = ["What is red?", "Which shape is it?", "What colour is the big circle on the left?", "Where?", "And now?"]


class Faulty:
    """An engine whose next call of a kind fails on request, and which may be held up."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.fail = ""
        self.error: BaseException | None = None
        self.calls: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def prefill(self, cache, slot, chunk):
        return self._call("prefill", len(chunk.input_ids), cache, slot, chunk)

    def decode(self, cache, tokens, positions):
        return self._call("decode", len(tokens), cache, tokens, positions)

    def _call(self, name: str, size: int, *args: Any) -> Any:
        self.calls.append((name, size))
        if self.fail == name:
            self.fail = ""
            raise self.error or RuntimeError(f"no {name}")
        return getattr(self.engine, name)(*args)


@pytest.fixture(scope="module")
def alone(mini_bundle):
    folder = mini_bundle
    with load(folder, threads=1, scheduler_config=FORGETFUL) as loaded:
        yield loaded


@pytest.fixture
def make(alone):
    """make(**config): a model on the same engine that fails on request."""
    return lambda **config: Model(alone.manifest, alone.preprocessor, Faulty(alone.engine), SchedulerConfig(**config))


def ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def options(number: int, new: int = 8) -> dict[str, Any]:
    return {"temperature": 2.0, "seed": number, "max_new_tokens": new, "min_new_tokens": new}


def drive(model: Model, *requests: Request) -> None:
    while not all(request.done for request in requests):
        model.scheduler.step()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_random_arrivals_and_departures(make, alone, seed, rows):
    """Requests arrive between steps, prefill in chunks of three beside others, and some leave before their end."""
    rng = np.random.default_rng(seed)
    model = make(max_num_seqs=rows, prefill_chunk_while_decoding=3)
    coming = [(QUESTIONS[int(rng.integers(5))], options(n, int(rng.integers(1, 12)))) for n in range(12)]
    outputs: list[list[Output]] = []
    requests: list[Request] = []
    cancelled = set()
    while len(requests) < len(coming) or not all(request.done for request in requests):
        if len(requests) < len(coming) and rng.random() < 0.4:
            question, wanted = coming[len(requests)]
            outputs.append([])
            requests.append(model.submit(ask(question), outputs[-1].append, **wanted))
        if requests and rng.random() < 0.05:
            leaving = int(rng.integers(len(requests)))
            if not requests[leaving].done:
                cancelled.add(leaving)
                requests[leaving].cancel()
        model.scheduler.step()
        assert model.scheduler.running <= rows
    for number, (question, wanted) in enumerate(coming):
        expected = alone.generate(ask(question), **wanted)
        tokens = tuple(output.token for output in outputs[number] if output.token is not None)
        text = "".join(output.text for output in outputs[number])
        reasons = [output.finish_reason for output in outputs[number]]
        assert not any(reasons[:-1])
        if number in cancelled:
            assert tokens == expected.tokens[: len(tokens)] and reasons[-1] == "cancelled"
        else:
            assert (tokens, text, reasons[-1]) == (expected.tokens, expected.text, "length")
    assert model.scheduler.running == model.scheduler.waiting == 0


def test_a_step_is_a_chunk_and_a_token(make):
    """A long prompt does not hold up those that run, and they wait for one chunk of it only."""
    model = make(prefill_chunk_while_decoding=4)
    first = model.submit(ask("What?"), **options(0, 30))
    model.scheduler.step()
    second = model.submit(ask(" ".join(QUESTIONS)), **options(1, 2))
    length = len(second.sequence.prompt.input_ids)
    model.engine.calls.clear()
    before = len(first.sequence.tokens)
    steps = 0
    while not second.sequence.tokens:
        model.scheduler.step()
        steps += 1
        assert len(first.sequence.tokens) == before + steps
    prefills = [size for name, size in model.engine.calls if name == "prefill"]
    assert max(prefills) == 4 and len(prefills) == steps
    assert sum(prefills) == length - second.sequence.reused
    drive(model, first, second)


def test_a_full_queue_refuses_before_preprocessing(make):
    model = make(max_num_seqs=1, max_queue=2)
    running = model.submit(ask("What?"), **options(0))
    model.scheduler.step()
    waiting = [model.submit(ask("What?"), **options(n)) for n in (1, 2)]
    assert (model.scheduler.running, model.scheduler.waiting) == (1, 2)
    unreadable = [{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}]
    with pytest.raises(QueueFull):
        model.submit(unreadable)
    waiting[0].cancel()
    model.scheduler.step()
    with pytest.raises(UserError, match="nowhere.png"):
        model.submit(unreadable)
    waiting.append(model.submit(ask("What?"), **options(3)))
    drive(model, running, *waiting)
    assert [r.sequence.finish_reason for r in waiting] == ["cancelled", "length", "length"]


def test_a_request_that_cannot_be_made_gives_its_place_back(make):
    model = make(max_queue=1)
    for _ in range(3):
        with pytest.raises(UserError, match="max_new_tokens"):
            model.submit(ask("What?"), max_new_tokens=-1)
        with pytest.raises(UserError, match="messages"):
            model.submit([])
    assert model.scheduler.waiting == 0
    assert model.generate(ask("What?"), max_new_tokens=1)


def test_a_reserved_place_that_is_not_used_is_given_back(make):
    model = make(max_queue=1)
    for _ in range(3):
        with model.scheduler.reserve():
            assert model.scheduler.waiting == 1
            with pytest.raises(QueueFull), model.scheduler.reserve():
                pass
        assert model.scheduler.waiting == 0


def test_a_reserved_place_takes_one_request(make):
    model = make(max_queue=1)
    params = SamplingParams(max_new_tokens=2, min_new_tokens=2)
    with model.scheduler.reserve() as place:
        request = place.submit(model.sequence(ask("What?"), params), lambda output: None)
        assert model.scheduler.waiting == 1
        with pytest.raises(RuntimeError, match="taken"):
            place.submit(model.sequence(ask("What?"), params), lambda output: None)
    assert model.scheduler.waiting == 1
    drive(model, request)
    assert model.scheduler.waiting == 0 and len(request.sequence.tokens) == 2


def test_time_for_preparing_counts_towards_the_timeout(make):
    model = make()
    with model.scheduler.reserve(timeout=0.05) as place:
        time.sleep(0.06)
        request = place.submit(model.sequence(ask("What?"), SamplingParams()), lambda output: None)
    drive(model, request)
    assert request.sequence.finish_reason == "timeout" and not request.sequence.tokens


def test_more_conversations_than_may_wait(make, alone):
    questions = [ask(QUESTIONS[n % 5]) for n in range(9)]
    results = make(max_num_seqs=2, max_queue=2).generate(questions, **options(7))
    results = [replace(result, reused_tokens=0) for result in results]  # which row an answer gets is a matter of time
    assert results == [alone.generate(question, **options(7)) for question in questions]


def test_cancelling_frees_the_row_at_once(make):
    model = make(max_num_seqs=1)
    first, second = (model.submit(ask("What?"), **options(n, 50)) for n in (0, 1))
    for _ in range(3):
        model.scheduler.step()
    assert len(first.sequence.tokens) > 0 and not second.sequence.tokens
    first.cancel()
    model.scheduler.step()
    assert first.done and second.sequence.tokens
    first.cancel()  # again: nothing happens
    second.cancel()
    assert not model.scheduler.step()


def test_a_deadline_cuts_the_answer(make, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    model = make(max_num_seqs=1)
    outputs: list[Output] = []
    timed = model.submit(ask("What?"), outputs.append, timeout=5, **options(0, 50))
    behind = model.submit(ask("What?"), timeout=4, **options(0, 50))
    untimed = model.submit(ask("What?"), **options(1, 3))
    for _ in range(4):
        model.scheduler.step()
        now[0] += 1
    model.scheduler.step()
    assert behind.done and behind.sequence.finish_reason == "timeout" and not behind.sequence.tokens
    assert not timed.done
    now[0] += 1
    drive(model, untimed)
    assert timed.done and outputs[-1].finish_reason == "timeout"
    assert "".join(o.text for o in outputs) == model.preprocessor.chat.decode(timed.sequence.tokens)
    assert len(untimed.sequence.tokens) == 3


def test_a_fault_in_prefill_ends_one_request(make, alone):
    model = make()
    good = model.submit(ask("What?"), **options(0))
    model.scheduler.step()
    outputs: list[Output] = []
    bad = model.submit(ask("Where?"), outputs.append, **options(1))
    model.engine.fail = "prefill"
    model.scheduler.step()
    assert bad.done and outputs[-1].finish_reason == "error" and str(outputs[-1].error) == "no prefill"
    again = model.submit(ask("Where?"), **options(1))
    drive(model, good, again)
    for request, question, number in ((good, "What?", 0), (again, "Where?", 1)):
        assert tuple(request.sequence.tokens) == alone.generate(ask(question), **options(number)).tokens


def test_a_fault_in_decode_ends_what_runs_and_nothing_else(make, alone):
    model = make(max_num_seqs=2)
    running = [model.submit(ask("What?"), **options(n)) for n in (0, 1)]
    waiting = model.submit(ask("What?"), **options(2))
    for _ in range(3):
        model.scheduler.step()
    model.engine.fail = "decode"
    model.scheduler.step()
    assert [request.sequence.finish_reason for request in running] == ["error", "error"]
    drive(model, waiting)
    assert waiting.sequence.reused == 0, "what the cache held then is not known"
    assert tuple(waiting.sequence.tokens) == alone.generate(ask("What?"), **options(2)).tokens


def test_an_answer_that_cannot_be_sampled_ends_alone(make, alone):
    model = make()
    good, bad = (model.submit(ask("What?"), **options(n)) for n in (0, 1))
    model.scheduler.step()
    bad.sequence.sampler.next = lambda logits: (_ for _ in ()).throw(UserError("logits: expected finite numbers"))
    drive(model, good, bad)
    assert isinstance(bad.sequence.error, UserError)
    assert tuple(good.sequence.tokens) == alone.generate(ask("What?"), **options(0)).tokens


@pytest.fixture
def uncollected():
    """Without Python's cycle collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("fault", ["prefill", "decode", "sampling"])
def test_a_failed_request_is_freed_with_its_last_reference(make, uncollected, fault):
    """Its error must not hold, by the frames that it came through, the prompt and its features."""
    model = make()
    outputs: list[Output] = []
    request = model.submit(ask("What?"), outputs.append, **options(0))
    prompt = weakref.ref(request.sequence.prompt)
    if fault == "sampling":
        request.sequence.sampler.next = partial(raise_error, UserError("logits: expected finite numbers"))
    model.engine.fail = fault
    drive(model, request)
    error = outputs[-1].error
    assert error is not None and error is request.sequence.error
    assert isinstance(error, UserError) or "in _call" in error.__notes__[0]  # where it was raised
    del request
    model.scheduler.step()
    assert prompt() is None


def raise_error(error: Exception, logits: Any) -> int:
    raise error


def test_an_error_is_raised_to_who_asked(make):
    model = make()
    other = model.submit(ask("Where?"), **options(0))
    drive(model, other)
    model.engine.fail = "prefill"
    with pytest.raises(RuntimeError, match="no prefill"):
        model.generate([ask("What?"), ask("Where?")], max_new_tokens=50)
    assert not model.scheduler.step(), "its other conversation goes on"
    model.engine.fail = "decode"
    with pytest.raises(RuntimeError, match="no decode"):
        list(model.stream(ask("What?"), **options(0)))


def test_a_listener_that_is_gone_cancels(make):
    model = make()

    def gone(output: Output) -> None:
        raise ConnectionError

    left = model.submit(ask("What?"), gone, **options(0, 50))
    stays = model.submit(ask("What?"), **options(1))
    drive(model, left, stays)
    assert left.sequence.finish_reason == "cancelled" and len(left.sequence.tokens) < 5
    assert len(stays.sequence.tokens) == 8


def test_an_interrupt_leaves_a_model_that_answers(make, alone):
    model = make()
    request = model.submit(ask("What?"), **options(0))
    model.scheduler.step()
    model.engine.fail = "decode"
    model.engine.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        model.generate(ask("Where?"), max_new_tokens=3)
    assert request.done and isinstance(request.sequence.error, KeyboardInterrupt)
    assert model.generate(ask("What?"), **options(0)) == alone.generate(ask("What?"), **options(0))


def test_many_threads_ask_and_one_steps(make, alone):
    """As in a server: a thread that runs, callers that submit, listen and leave, and callers of generate besides."""
    model = make(max_num_seqs=4)
    runner = threading.Thread(target=model.scheduler.run)
    runner.start()
    found: dict[int, Any] = {}

    def ask_for(number: int) -> None:
        question = ask(QUESTIONS[number % 5])
        if number % 3 == 0:
            found[number] = model.generate(question, **options(number)).tokens
            return
        ended = threading.Event()
        tokens: list[int | None] = []

        def listen(output: Output) -> None:
            tokens.append(output.token)
            if output.finish_reason:
                ended.set()

        model.submit(question, listen, **options(number))
        assert ended.wait(60)
        found[number] = tuple(tokens)

    threads = [threading.Thread(target=ask_for, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    endless = model.submit(ask("What?"), **options(0, 300))
    model.scheduler.close()
    runner.join(60)
    assert not runner.is_alive()
    assert endless.done and endless.sequence.finish_reason == "error"
    assert found == {n: alone.generate(ask(QUESTIONS[n % 5]), **options(n)).tokens for n in range(12)}
    with pytest.raises(RuntimeError, match="closed"):
        model.submit(ask("What?"))


def test_logprobs_come_with_their_tokens(make):
    model = make()
    outputs: list[Output] = []
    drive(model, model.submit(ask("What is red?"), outputs.append, max_new_tokens=5, min_new_tokens=5, logprobs=3))
    assert len(outputs) == 5
    for output in outputs:
        found = output.logprobs
        assert found is not None and [p for _, p in found.top] == sorted((p for _, p in found.top), reverse=True)
        assert len(found.top) == 3 and found.chosen <= found.top[0][1] + 1e-6 <= 1e-5
        assert output.token is not None
        assert dict(found.top).get(output.token, found.chosen) == pytest.approx(found.chosen)
    drive(model, model.submit(ask("What is red?"), outputs.append, max_new_tokens=1))
    assert outputs[-1].logprobs is None


@pytest.mark.parametrize(
    "config",
    [{"max_num_seqs": 0}, {"max_queue": 0}, {"kv_cache_bytes": 0}, {"feature_cache_bytes": -1}, {"max_num_seqs": 1.5}],
)
def test_the_configuration_is_checked(config):
    (name,) = config
    with pytest.raises(UserError, match=name):
        SchedulerConfig(**config)
