"""The Python interface on an exported mini-ernie: options, streaming, limits. (Tokens are compared in tests/parity.)"""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime import Model, Result, load
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine, Tap
from ernie_export.runtime.logits import DenseLogits
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.fakes.engine import Delegate

LONG = {"min_new_tokens": 24, "max_new_tokens": 24}  # the end token is suppressed, so that there is text to work on

FORGETFUL = SchedulerConfig(enable_prefix_caching=False, feature_cache_bytes=0)


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


@pytest.fixture(scope="module")
def model(bundle):
    """Without memory between calls; test_reuse.py is about that."""
    with load(bundle, threads=1, scheduler_config=FORGETFUL) as loaded:
        yield loaded


def picture(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def ask(question: str, *media: Any) -> list[dict[str, Any]]:
    parts = [
        {"type": "video" if isinstance(m, list) else "image", "video" if isinstance(m, list) else "image": m}
        for m in media
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


TEXT = ask("How many sides has a triangle?")
CONVERSATIONS = [
    TEXT,
    ask("Which shape is it?", picture(0, 60, 90)),
    ask("Which has more?", picture(1, 56, 56), picture(2, 90, 70)),
]


def changed(model: Model, engine: Any = None, **info: Any) -> Model:
    """The same model with other numbers in its manifest, and by another engine if one is given."""
    manifest = replace(model.manifest, model=replace(model.manifest.model, **info))
    return Model(manifest, model.preprocessor, engine or model.engine, FORGETFUL)


def streamed(model: Model, messages: Any, **options: Any) -> tuple[list[str], Result]:
    pieces = []
    stream = model.stream(messages, **options)
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["text", "image", "images"])
@pytest.mark.parametrize(
    "options", [{}, LONG, LONG | {"stop": ["e", "xyz"]}, LONG | {"temperature": 1.0, "seed": 3}], ids=str
)
def test_a_stream_is_the_answer_in_pieces(model, messages, options):
    pieces, result = streamed(model, messages, **options)
    assert result == model.generate(messages, **options)
    assert "".join(pieces) == result.text
    assert len(pieces) == len(result.tokens)


def test_an_abandoned_stream_leaves_no_trace(model):
    before = model.generate(TEXT, **LONG)
    stream = model.stream(CONVERSATIONS[1], **LONG)
    next(stream)
    assert model.generate(TEXT, **LONG) == before
    stream.close()
    assert model.generate(TEXT, **LONG) == before


def test_a_stop_string_ends_the_answer_before_it(model):
    options = LONG | {"temperature": 1.5, "seed": 5}  # varied text, whatever the checkpoint has learnt
    whole = model.generate(TEXT, **options)
    stops = [whole.text[i : i + 3] for i in range(1, len(whole.text) - 2)]
    stops = [stop for stop in stops if "\ufffd" not in stop]
    assert len(stops) > 3
    for stop in (stops[0], stops[len(stops) // 2], stops[-1]):
        cut = model.generate(TEXT, **options, stop=["never in an answer", stop])
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.tokens == whole.tokens[: len(cut.tokens)]
    assert len(model.generate(TEXT, **options, stop=stops[0]).tokens) < len(whole.tokens)


def test_a_stop_string_in_the_last_token_is_a_stop(model):
    """Text held back to the end, as a run of byte tokens is, may hold one too."""
    byte = model.preprocessor.chat.tokenizer.backend.token_to_id("<0xFF>")
    sequence = model.sequence(TEXT, SamplingParams(max_new_tokens=3, stop=("\ufffd",)))
    logits = np.zeros(model.manifest.model.vocab_size, np.float32)
    logits[byte] = 1
    assert [sequence.take(DenseLogits(logits)).text for _ in range(3)] == ["", "", ""]
    assert (sequence.finish_reason, sequence.text.text) == ("stop", "")


def test_lengths_and_reasons(model):
    for count in (1, 2, 7):
        result = model.generate(TEXT, min_new_tokens=count, max_new_tokens=count)
        assert (len(result.tokens), result.finish_reason) == (count, "length")
    assert result.prompt_tokens == model.preprocess(TEXT)["input_ids"].shape[1]
    assert result.text == model.preprocessor.chat.decode(list(result.tokens))


def test_the_end_token_ends_and_is_counted(model):
    """Declare what the model says third an end token."""
    tokens = changed(model, eos_token_ids=()).generate(TEXT, max_new_tokens=24).tokens
    end = tokens[2]
    ending = changed(model, eos_token_ids=(end,))
    first = tokens.index(end)
    result = ending.generate(TEXT, max_new_tokens=24)
    assert (result.tokens, result.finish_reason) == (tokens[: first + 1], "stop")
    assert result.text == model.preprocessor.chat.decode(list(tokens[:first]))
    forced = ending.generate(TEXT, min_new_tokens=first + 4, max_new_tokens=first + 4)
    assert end not in forced.tokens and len(forced.tokens) == first + 4
    assert forced.finish_reason == "length"


def test_several_end_tokens(model):
    endless = changed(model, eos_token_ids=())
    tokens = endless.generate(TEXT, max_new_tokens=24).tokens
    ending = changed(model, eos_token_ids=(479, tokens[1]))
    assert ending.generate(TEXT, max_new_tokens=24).tokens == tokens[: tokens.index(tokens[1]) + 1]
    assert len(endless.generate(TEXT, max_new_tokens=30).tokens) == 30


def test_a_seed_repeats_an_answer_in_any_company(model):
    options = LONG | {"temperature": 2.0, "top_k": 40, "top_p": 0.95}
    answers = [model.generate(TEXT, **options, seed=seed) for seed in (1, 2, 3, 1)]
    assert answers[0] == answers[3]
    assert len({answer.tokens for answer in answers}) == 3
    assert model.generate([CONVERSATIONS[1], TEXT, CONVERSATIONS[2]], **options, seed=2)[1] == answers[1]
    assert len({model.generate(TEXT, **options).tokens for _ in range(3)}) > 1, "no seed, and no variety"


@pytest.mark.parametrize("rows", [1, 2, 3, 16])
def test_fewer_rows_than_conversations(model, rows):
    """Conversations wait for a row, and the rows of finished ones are taken over; each answers as if alone.

    The token that makes the answers most unequal in length is declared the end token.
    """
    options = {"temperature": 3.0, "seed": 5, "max_new_tokens": 12}
    conversations = [*CONVERSATIONS, ask("What colour is the big circle on the left?"), TEXT]
    endless = changed(model, eos_token_ids=())
    answers = [endless.generate(messages, **options).tokens for messages in conversations]
    lengths = {end: {(tokens + (end,)).index(end) for tokens in answers} for tokens in answers for end in tokens}
    end = max(lengths, key=lambda end: len(lengths[end]))
    assert len(lengths[end]) > 1, "all end at once, and no row moves"
    ending = changed(model, eos_token_ids=(end,))
    alone = [ending.generate(messages, **options) for messages in conversations]
    few = Model(ending.manifest, ending.preprocessor, ending.engine, SchedulerConfig(max_num_seqs=rows))
    answered = few.generate(conversations, **options)
    assert [replace(answer, reused_tokens=0) for answer in answered] == alone


def test_answers_come_as_they_were_asked(model):
    one = model.generate(TEXT, max_new_tokens=3)
    assert isinstance(one, Result)
    assert model.generate([TEXT], max_new_tokens=3) == [one]


@pytest.mark.parametrize("messages", [[], [[]], [TEXT, []], {"role": "user"}, "What?", [1], None], ids=repr)
def test_what_is_no_conversation_is_refused(model, messages):
    with pytest.raises(UserError, match="messages"):
        model.generate(messages)


def test_an_unknown_option_is_refused_by_name(model):
    for call in (model.generate, lambda *a, **k: list(model.stream(*a, **k))):
        with pytest.raises(UserError, match="max_tokens"):
            call(TEXT, max_tokens=3)
        with pytest.raises(UserError, match="temperature"):
            call(TEXT, temperature=-1)


def test_a_prompt_over_the_position_limit_is_refused_before_anything_is_encoded(model):
    messages = CONVERSATIONS[2]
    length = model.preprocess(messages)["input_ids"].shape[1]
    engine = Delegate(model.engine, encode=lambda *arrays: pytest.fail("encoded"))
    for limit in (length, length - 1, 1):
        short = changed(model, engine, max_positions=limit)
        with pytest.raises(UserError, match=f"fewer than {limit} tokens.*found {length}"):
            short.generate(messages)


def test_an_answer_ends_at_the_position_limit(model):
    length = model.preprocess(TEXT)["input_ids"].shape[1]
    result = changed(model, max_positions=length + 2).generate(TEXT, min_new_tokens=2, max_new_tokens=50)
    assert (len(result.tokens), result.finish_reason) == (2, "length")
    assert result.tokens == model.generate(TEXT, **LONG).tokens[:2]


def test_features_of_pictures(model):
    pictures = [picture(0, 60, 90), picture(1, 112, 112), picture(2, 60, 90)]
    features = model.image_features(pictures)
    grids = model.preprocess(ask("?", *pictures))["image_grid_thw"]
    assert [f.shape for f in features] == [(h * w // 4, model.manifest.model.hidden_size) for _, h, w in grids]
    assert all(f.dtype == np.float32 and np.isfinite(f).all() for f in features)
    assert all(np.allclose(one, model.image_features([p])[0], atol=1e-5) for one, p in zip(features, pictures))
    assert not np.allclose(features[0], features[2], atol=1e-2)


def test_features_of_clips(model):
    clip = [picture(i, 64, 96) for i in range(5)]
    (features,) = model.video_features([clip])
    ((t, h, w),) = model.preprocess(ask("?", clip))["video_grid_thw"]
    assert t % 2 == 0
    assert features.shape == (t * h * w // 8, model.manifest.model.hidden_size) and features.dtype == np.float32


def test_no_media_no_features(model):
    assert model.image_features([]) == []
    assert model.video_features([]) == []


def test_pictures_are_read_from_files(model, tmp_path):
    picture(0, 60, 90).save(tmp_path / "p.png")
    (features,) = model.image_features([tmp_path / "p.png"])
    assert np.array_equal(features, model.image_features([picture(0, 60, 90)])[0])
    with pytest.raises(UserError, match="none.png"):
        model.image_features([tmp_path / "none.png"])


def test_arrays_carry_the_names_of_the_reference(model):
    arrays = model.preprocess(ask("?", picture(0, 60, 90), [picture(i, 64, 64) for i in range(4)]))
    assert sorted(arrays) == [
        "attention_mask", "image_grid_thw", "input_ids", "mm_token_type_ids", "moe_mm_token_type_ids", "pixel_values",
        "pixel_values_videos", "video_grid_thw",
    ]  # fmt: skip


def test_leaving_the_block_closes_the_engine(model):
    closed = []
    with pytest.raises(KeyboardInterrupt), changed(model, Delegate(model.engine, close=lambda: closed.append(True))):
        raise KeyboardInterrupt
    assert closed == [True]


def test_a_chunk_is_cut_where_attentions_scores_would_take_much_memory(bundle, model):
    """Queries times keys are bounded; the parts together leave what one call does."""
    rng = np.random.default_rng(0)
    tokens = 40
    ids = rng.integers(10, 200, tokens)
    types = (np.arange(tokens) % 7 == 3).astype(np.int64)
    index = np.zeros(tokens, np.int64)
    index[[3, 31]] = 1, 2
    features = rng.standard_normal((2, model.manifest.model.hidden_size)).astype(np.float32)
    chunk = PromptChunk(ids, types, index, np.tile(np.arange(tokens), (3, 1)), features)
    graph = onnx.load(bundle / "decoder.onnx", load_external_data=False)
    hidden = next(node.output[0] for node in graph.graph.node if node.name.endswith("layers.0/after_mlp"))
    graph.graph.output.append(onnx.ValueInfoProto(name=hidden))
    lengths: list[int] = []
    tap = Tap({"decoder": graph.SerializeToString()}, lambda name, value: lengths.append(value.size // value.shape[-1]))
    found = []
    for scores in (2**22, 16 * 64 + 63):
        with OrtCpuEngine(bundle, model.manifest, threads=1, tap=tap, max_scores=scores) as engine:
            cache = engine.new_cache(2, 64)
            logits = engine.prefill(cache, 1, chunk).full().copy()
        assert cache.lengths.tolist() == [0, tokens]
        found.append([logits, *(buffer[1, :, :tokens] for buffer in (*cache.keys, *cache.values))])
    assert lengths == [40, 16, 16, 8]
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_allclose(parts, whole, rtol=0, atol=2e-5 * np.abs(whole).max())


def test_an_answer_goes_on_with_the_last_message_or_begins_nowhere(model):
    begun = [*TEXT, {"role": "assistant", "content": [{"type": "text", "text": "three "}]}]
    lengths = {}
    for name, options in {
        "continued": {"continue_final_message": True},
        "closed": {"add_generation_prompt": False},
        "answered": {},
    }.items():
        result = model.generate(begun, max_new_tokens=1, **options)
        prompt = model.preprocessor.prepare(begun, **({"add_generation_prompt": False} | options if options else {}))
        lengths[name] = result.prompt_tokens
        assert result.prompt_tokens == prompt.arrays["input_ids"].shape[1]
    assert lengths["continued"] < lengths["closed"] < lengths["answered"]
    wrong: list[dict[str, Any]] = [
        {"continue_final_message": True, "add_generation_prompt": True},
        {"continue_final_message": 1},
    ]
    for options in wrong:
        with pytest.raises(UserError, match="^continue_final_message: expected"):
            model.generate(begun, **options)


def test_an_answer_without_a_length_gets_what_the_context_and_the_kv_cache_leave(model):
    prompt = model.sequence(TEXT, SamplingParams()).prompt
    length = len(prompt.input_ids)
    open_ended = SamplingParams(max_new_tokens=None, min_new_tokens=3000)
    context = model.manifest.model.max_positions
    assert model.begin(prompt, open_ended).max_new == min(context, model.scheduler.max_cached_tokens) - length
    answer = model.generate(TEXT, max_new_tokens=None)
    assert answer == model.generate(TEXT, max_new_tokens=64) and answer.finish_reason == "stop"


def test_a_small_kv_cache_bounds_an_answer_without_a_length(mini_bundle):
    config = SchedulerConfig(kv_cache_bytes=2**20)
    with load(mini_bundle, scheduler_config=config) as model:
        longest = model.scheduler.max_cached_tokens
        assert longest < model.manifest.model.max_positions
        answer = model.generate(TEXT, max_new_tokens=None, ignore_eos=True)
        assert (answer.finish_reason, answer.prompt_tokens + len(answer.tokens)) == ("length", longest)
