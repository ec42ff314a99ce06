"""Figures of a benchmark: a fake engine whose calls take known times gives known latencies and throughputs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from make_checkpoint import SHAPES, write_settings

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import Manifest
from ernie_export.runtime import Model
from ernie_export.runtime.bench.measure import (
    BatchTimes,
    ImageTimes,
    RequestTimes,
    measure,
    scheduler_config,
    statistics,
    steps,
)
from ernie_export.runtime.bench.workload import Prompts, Workload
from ernie_export.runtime.kv_cache import HostKVCache
from ernie_export.runtime.preprocess import Preprocessor
from tests.fakes.engine import ENCODE, PREFILL, Delegate, FakeEngine

WORKLOAD = Workload(prompt_tokens=40, images=(), output_tokens=3, batches=(1, 2), rounds=2, warmup=1, seed=0)


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


@pytest.fixture
def model(bundle):
    manifest = Manifest.read(bundle)
    info = manifest.model
    engine = FakeEngine(info.vocab_size, info.hidden_size, info.eos_token_ids[0])
    return Model(manifest, Preprocessor.from_folder(bundle), engine, scheduler_config(WORKLOAD))


def run(model: Model, workload: Workload) -> tuple[tuple[BatchTimes, ...], tuple[ImageTimes, ...]]:
    engine: Any = model.engine  # FakeEngine, or one that delegates to it
    return measure(model, workload, lambda: None, engine.clock)


def test_known_step_times_give_known_figures(model):
    alone, both = (times.metrics() for times in run(model, WORKLOAD)[0])
    expected = {
        "max_concurrency": 1, "num_prompts": 2, "completed": 2, "duration": 0.24, "total_input_tokens": 80,
        "total_output_tokens": 6, "request_throughput": 2 / 0.24, "output_throughput": 6 / 0.24,
        "total_token_throughput": 86 / 0.24, "decode_throughput": 4 / 0.04, "mean_ttft_ms": 100, "std_ttft_ms": 0,
        "p99_ttft_ms": 100, "mean_tpot_ms": 10, "median_itl_ms": 10, "p95_itl_ms": 10, "mean_e2el_ms": 120,
    }  # fmt: skip
    assert {key: alone[key] for key in expected} == pytest.approx(expected)
    # Seconds: 0.10 prefill of one, 0.11 its second token, 0.21 prefill of the other, 0.22 a token each, 0.23 the last.
    expected = {
        "max_concurrency": 2, "num_prompts": 4, "completed": 4, "duration": 0.46, "total_input_tokens": 160,
        "total_output_tokens": 12, "request_throughput": 4 / 0.46, "output_throughput": 12 / 0.46,
        "total_token_throughput": 172 / 0.46, "decode_throughput": 4 / 0.02, "mean_ttft_ms": 155,
        "median_ttft_ms": 155, "std_ttft_ms": 55, "p99_ttft_ms": 210, "mean_tpot_ms": 35, "p99_tpot_ms": 60,
        "mean_itl_ms": 35, "median_itl_ms": 10, "p99_itl_ms": 110, "mean_e2el_ms": 225,
    }  # fmt: skip
    assert {key: both[key] for key in expected} == pytest.approx(expected)
    assert both["ttfts"] == pytest.approx([0.1, 0.21] * 2)
    assert [itl for itls in both["itls"] for itl in itls] == pytest.approx([0.01, 0.11, 0.01, 0.01] * 2)
    assert (both["input_lens"], both["output_lens"]) == ([40] * 4, [3] * 4)


def test_pictures_count_to_the_first_token_and_have_figures_of_their_own(model):
    workload = replace(WORKLOAD, images=((112, 112), (56, 60), (56, 60)), batches=(1,))
    (times,), (large, small) = run(model, workload)
    assert times.metrics()["mean_ttft_ms"] == pytest.approx(1000 * (PREFILL + 2 * ENCODE))  # equal sizes share a call
    assert times.requests[0].prompt_tokens == 40 + (16 + 2) + 2 * (4 + 2)
    figures = large.metrics()
    assert {key: figures[key] for key in ("width", "height", "patches", "tokens")} == {
        "width": 112, "height": 112, "patches": 64, "tokens": 16
    }  # fmt: skip
    assert (small.width, small.height, small.patches, small.tokens) == (56, 60, 16, 4)
    assert figures["image_throughput"] == pytest.approx(1 / ENCODE)
    assert figures["p99_image_latency_ms"] == pytest.approx(1000 * ENCODE)
    assert figures["mean_image_preprocess_ms"] == 0  # the fake clock stands still there
    assert len(large.encode) == WORKLOAD.rounds


def test_answers_go_on_past_the_end_token_to_their_length(model):
    for times in run(model, replace(WORKLOAD, output_tokens=7))[0]:
        assert {len(request.times) for request in times.requests} == {7}


def test_rounds_to_warm_up_do_not_count(model):
    model.engine.slow_calls = 8  # those of the first round: 3 of one request, 5 of two
    assert run(model, WORKLOAD)[0][1].metrics()["duration"] == pytest.approx(0.46)
    model.engine.calls = 0
    assert run(model, replace(WORKLOAD, warmup=0))[0][1].metrics()["duration"] == pytest.approx(5.46)


def test_every_step_is_reported(model):
    workload = replace(WORKLOAD, images=((56, 56), (56, 56)))
    count = []
    measure(model, workload, lambda: count.append(1), model.engine.clock)
    assert len(count) == steps(workload) == 9


def test_statistics():
    figures = statistics("itl_ms", [n / 1000 for n in range(1, 101)])
    expected = {"mean_itl_ms": 50.5, "median_itl_ms": 50.5, "p95_itl_ms": 95.05, "p99_itl_ms": 99.01}
    assert figures == pytest.approx(expected | {"std_itl_ms": np.sqrt((100**2 - 1) / 12)})


def test_decode_counts_only_while_all_decode():
    """One request decodes while the other is in prefill, and ends before it; tokens of a step are noted in turn."""
    early = RequestTimes(10, (0.1, 0.2, 0.3, 0.4))
    late = RequestTimes(10, (0.25, 0.301, 0.401, 0.5))
    figures = BatchTimes(2, ((early, late),)).metrics()
    assert figures["decode_throughput"] == pytest.approx(4 / 0.151)
    assert (figures["duration"], figures["output_throughput"]) == pytest.approx((0.5, 8 / 0.5))
    never = BatchTimes(2, ((early, RequestTimes(10, (0.4, 0.5))),))
    assert never.metrics()["decode_throughput"] is None


class CacheAtTheLimit(HostKVCache):
    """A cache for which there is no more memory to grow into."""

    def resized(self, kept, num_slots, max_seq_len):
        raise MemoryError


def test_a_cache_past_the_memory_is_refused(model):
    def new_cache(num_slots: int, max_seq_len: int) -> CacheAtTheLimit:
        return CacheAtTheLimit(
            num_layers=1,
            num_slots=num_slots,
            num_kv_heads=1,
            max_seq_len=max_seq_len,
            head_dim=1,
            dtype=np.dtype(np.float32),
        )

    full = Model(model.manifest, model.preprocessor, Delegate(model.engine, new_cache=new_cache))
    with pytest.raises(UserError, match="--batch: expected 1 requests of 84 tokens whose KV cache fits the memory"):
        run(full, replace(WORKLOAD, prompt_tokens=81))


def test_a_fault_of_the_engine_comes_through(model):
    def decode(cache, tokens, positions):
        raise ArithmeticError("of the engine")

    faulty = Model(model.manifest, model.preprocessor, Delegate(model.engine, decode=decode))
    with pytest.raises(ArithmeticError, match="of the engine"):
        run(faulty, WORKLOAD)


@pytest.mark.parametrize("images", [(), ((112, 112),), ((60, 300), (56, 56))], ids=["text", "one picture", "two"])
@pytest.mark.parametrize("tokens", [17, 40, 333])
def test_prompts_have_exactly_the_tokens_asked_for(model, tokens, images):
    workload = replace(WORKLOAD, prompt_tokens=tokens + 10 * len(images), images=images)
    prompts = Prompts(model, workload)
    chat = model.preprocessor.chat
    special = set(chat.tokenizer.backend.get_added_tokens_decoder()) | chat.byte_tokens
    texts = set()
    for _ in range(5):
        messages = prompts.next()
        texts.add(messages[0]["content"][-1]["text"])
        arrays = model.preprocess(messages)
        assert np.count_nonzero(arrays["moe_mm_token_type_ids"] == 0) == workload.prompt_tokens
        assert arrays["input_ids"].shape[1] == workload.prompt_tokens + prompts.image_tokens
        assert not set(chat.tokenizer.encode(messages[0]["content"][-1]["text"])) & special
    assert len(texts) == 5


@pytest.mark.parametrize("tokens", [17, 333])
def test_fillers_of_a_vocabulary_do_not_keep_prompts_from_their_length(model, tmp_path, tokens):
    """Texts of the benchmarks' checkpoints: of 16,384 tokens nearly all are fillers, which no merge makes."""
    write_settings(tmp_path, SHAPES["m600"], layers=2)
    other = Model(model.manifest, Preprocessor.from_folder(tmp_path), model.engine, scheduler_config(WORKLOAD))
    prompts = Prompts(other, replace(WORKLOAD, prompt_tokens=tokens))
    messages = [prompts.next() for _ in range(3)]
    assert {len(other.preprocess(one)["input_ids"][0]) for one in messages} == {tokens}
    assert len({one[0]["content"][-1]["text"] for one in messages}) == 3


def test_equal_seeds_make_equal_prompts(model):
    def made(seed: int) -> list:
        prompts = Prompts(model, replace(WORKLOAD, seed=seed, images=((56, 60),)))
        parts = [prompts.next()[0]["content"] for _ in range(2)]
        return [(picture["image"].tobytes(), text["text"]) for picture, text in parts]

    assert made(1) == made(1)
    assert len({*made(1), *made(2)}) == 4


REFUSED = {
    "shorter than the template": ({"prompt_tokens": 3}, ("--prompt-tokens", "chat template", "found 3")),
    "past the positions": ({"prompt_tokens": 4094}, ("--prompt-tokens", "4096 positions", "found 4097")),
    "an answer past the positions": ({"output_tokens": 4080}, ("4096", "found 4120", "4080 of the answer")),
    "a picture past the limit": ({"images": ((90000, 9000),)}, ("--images", "89478485 pixels", "90000x9000")),
}


@pytest.mark.parametrize(("changes", "parts"), REFUSED.values(), ids=REFUSED)
def test_a_workload_that_cannot_be_served(model, changes, parts):
    with pytest.raises(UserError) as error:
        run(model, replace(WORKLOAD, **changes))
    assert all(part in str(error.value) for part in parts), error.value
    assert model.engine.calls == 0


def test_the_longest_that_fits_is_served(model):
    (times,), _ = run(model, replace(WORKLOAD, prompt_tokens=4093, batches=(1,), rounds=1, warmup=0))
    assert times.requests[0].prompt_tokens == 4093 and len(times.requests[0].times) == 3
