"""What is kept from one request to the next: features by content, and rows of the KV cache by all that they depend on.

Answers must be those of a model that keeps nothing, and the engine must really be given only what is new.
"""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime import Model, load
from ernie_export.runtime.batch import Batch
from ernie_export.runtime.feature_cache import digest
from ernie_export.runtime.kv_cache import HostKVCache
from ernie_export.runtime.sampling_params import SamplingParams
from ernie_export.runtime.scheduler import Request
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.sequence import Prompt

FORGETFUL = SchedulerConfig(enable_prefix_caching=False, feature_cache_bytes=0)


class Spy:
    """An engine that notes what it is given."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.prefilled: list[int] = []
        self.encoded: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def encode(self, pixel_values, coordinates, pairs):
        self.encoded.extend(pixel_values)
        return self.engine.encode(pixel_values, coordinates, pairs)

    def prefill(self, cache, slot, chunk):
        self.prefilled.append(len(chunk.input_ids))
        return self.engine.prefill(cache, slot, chunk)


@pytest.fixture(scope="module")
def forgetful(mini_bundle):
    folder = mini_bundle
    with load(folder, threads=1, scheduler_config=FORGETFUL) as loaded:
        yield loaded


@pytest.fixture
def remembering(forgetful):
    """remembering(**limits): a model on the same engine, spied on, that has met nothing yet."""

    def make(**limits: Any) -> Model:
        return Model(forgetful.manifest, forgetful.preprocessor, Spy(forgetful.engine), SchedulerConfig(**limits))

    return make


def picture(seed: int, height: int = 60, width: int = 90) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def said(role: str, *parts: Any) -> dict[str, Any]:
    def part(p: Any) -> dict[str, Any]:
        if isinstance(p, str):
            return {"type": "text", "text": p}
        return {"type": "video", "video": p} if isinstance(p, list) else {"type": "image", "image": p}

    return {"role": role, "content": [part(p) for p in parts]}


def answer(model: Model, messages: Any, **options: Any) -> Request:
    """The request, done."""
    request = model.submit(messages, **({"max_new_tokens": 6} | options))
    while not request.done:
        model.scheduler.step()
    assert request.sequence.error is None
    return request


def length(model: Model, messages: Any) -> int:
    return model.preprocess(messages)["input_ids"].shape[1]


def shared(model: Model, one: Any, other: Any) -> int:
    """Tokens that two prompts of the same pictures begin with."""
    first, second = (model.preprocess(messages)["input_ids"][0] for messages in (one, other))
    n = min(len(first), len(second))
    differs = first[:n] != second[:n]
    return int(differs.argmax()) if differs.any() else n


def test_the_next_turn_prefills_only_what_is_new(remembering, forgetful):
    model = remembering()
    first = [said("user", picture(0), "What is it?")]
    request = answer(model, first)
    assert model.engine.prefilled == [length(model, first)] and request.sequence.reused == 0
    text = model.preprocessor.chat.decode(request.sequence.tokens)
    second = [*first, said("assistant", text), said("user", "And its colour?")]
    model.engine.prefilled.clear()
    again = answer(model, second)
    # The template ends a prompt otherwise than it writes a past turn, so the turns part before the answer.
    assert again.sequence.reused == shared(model, first, second) > 20
    assert model.engine.prefilled == [length(model, second) - again.sequence.reused]
    assert again.sequence.tokens == answer(forgetful, second).sequence.tokens


def test_the_tokens_of_the_answer_are_reused_too(remembering):
    """A prompt that goes on from the answer, which came by decode; its last token has not been through the model."""
    model = remembering()
    params = SamplingParams(max_new_tokens=5, min_new_tokens=5)
    one = model.sequence([said("user", "What is red?")], params)
    batch = Batch(model.engine, num_slots=2, max_seq_len=200)
    batch.add(one)
    while batch.running:
        batch.step()
    held = len(one.prompt.input_ids) + 4
    ids = np.concatenate([one.prompt.input_ids, one.tokens, [50, 51]])
    positions = np.concatenate([one.prompt.position_ids, one.prompt.position_ids[:, -1:] + 1 + np.arange(7)], axis=1)
    more = {"input_ids": ids, "position_ids": positions}
    for name in ("token_types", "feature_index", "content"):
        array = getattr(one.prompt, name)
        more[name] = np.concatenate([array, np.zeros((7, *array.shape[1:]), np.int64)])
    grown, again = (model.sequence([said("user", "?")], params) for _ in range(2))
    grown.prompt = again.prompt = Prompt(**more, features=one.prompt.features)
    model.engine.prefilled.clear()
    batch.add(grown)
    assert grown.reused == held
    assert model.engine.prefilled == [3]
    fresh = Batch(model.engine, num_slots=1, max_seq_len=200)
    fresh.add(again)
    assert again.reused == 0
    for one_batch in (batch, fresh):
        while one_batch.running:
            one_batch.step()
    assert again.tokens == grown.tokens


def test_the_same_text_about_another_picture_shares_nothing_from_the_picture_on(remembering, forgetful):
    model = remembering()
    answer(model, [said("user", "Look:", picture(0), "What is it?")])
    other = [said("user", "Look:", picture(1), "What is it?")]
    same = [said("user", "Look:", picture(0), "What is it?")]
    ids = model.preprocess(other)["input_ids"][0]
    first = int(np.argmax(ids == model.manifest.model.image_token_id))
    request = answer(model, other)
    assert request.sequence.reused == first
    assert request.sequence.tokens == answer(forgetful, other).sequence.tokens
    assert answer(model, same).sequence.reused == len(ids) - 1


def test_equal_ids_at_other_positions_are_not_reused(remembering):
    """A wide and a tall picture of as many tokens, with text behind: equal ids, other positions from the picture on."""
    model = remembering()
    answer(model, [said("user", picture(0, 56, 112), "What is it?")])
    tall = [said("user", picture(0, 112, 56), "What is it?")]
    ids = model.preprocess(tall)["input_ids"][0]
    assert answer(model, tall).sequence.reused == int(np.argmax(ids == model.manifest.model.image_token_id))


def test_an_edit_in_the_middle_reuses_what_stands_before_it(remembering, forgetful):
    model = remembering()
    turns = [said("user", picture(0), "What is it?"), said("assistant", "red"), said("user", "And where?")]
    answer(model, turns)
    edited = [turns[0], said("assistant", "blue"), turns[2]]
    request = answer(model, edited)
    assert request.sequence.reused == shared(model, turns, edited)
    assert request.sequence.tokens == answer(forgetful, edited).sequence.tokens
    assert answer(model, turns).sequence.reused == length(model, turns) - 1, "the branch cost the other its place"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limits", [{"max_num_seqs": 1}, {"max_num_seqs": 3}, {"kv_cache_bytes": 1 << 20}], ids=str)
def test_random_conversations(remembering, forgetful, seed, limits):
    """Turns added, histories edited, pictures exchanged, several at a time: always the tokens from scratch."""
    rng = np.random.default_rng(seed)
    model = remembering(feature_cache_bytes=int(rng.choice([0, 20_000, 1 << 20])), **limits)
    texts = ["What is it?", "And the other?", "Which colour?", "Where?", "red", "the circle"]

    def user() -> dict[str, Any]:
        media: list[Any] = [
            picture(int(rng.integers(3)), 56, int(rng.choice([56, 84]))) for _ in range(rng.integers(0, 3))
        ]
        if rng.random() < 0.2:
            media.append([picture(int(rng.integers(2)), 56, 56) for _ in range(4)])
        return said("user", *media, str(rng.choice(texts)))

    conversations = [[user()] for _ in range(3)]
    reused = 0
    for _ in range(5):
        chosen = [conversations[i] for i in rng.permutation(3)[: rng.integers(1, 4)]]
        requests = [model.submit(messages, max_new_tokens=4, min_new_tokens=4) for messages in chosen]
        while not all(request.done for request in requests):
            model.scheduler.step()
        for messages, request in zip(chosen, requests):
            expected = answer(forgetful, messages, max_new_tokens=4, min_new_tokens=4)
            assert request.sequence.tokens == expected.sequence.tokens
            reused += request.sequence.reused
            if rng.random() < 0.3 and len(messages) > 2:
                messages[int(rng.integers(len(messages) // 2)) * 2] = user()
            else:
                messages += [said("assistant", model.preprocessor.chat.decode(request.sequence.tokens)), user()]
    assert reused


def test_turned_off_nothing_is_reused(remembering):
    model = remembering(enable_prefix_caching=False, feature_cache_bytes=0)
    messages = [said("user", picture(0), "What is it?")]
    for _ in range(2):
        assert answer(model, messages).sequence.reused == 0
    assert model.engine.prefilled == [length(model, messages)] * 2
    assert len(model.engine.encoded) == 2


def test_the_row_used_least_recently_gives_way(remembering):
    """A row is used when its sequence ends; what another shares with it lives on in the other's own row."""
    model = remembering(max_num_seqs=3)
    one, branch = ([said("user", picture(0), text)] for text in ("What is it?", "Where is it?"))
    two, three, four = ([said("user", text)] for text in ("Two, then?", "And three?", "Where is four?"))
    for messages in (one, two, branch, three):
        answer(model, messages)
    assert answer(model, two).sequence.reused == length(model, two) - 1
    assert answer(model, four).sequence.reused < length(model, four) - 1
    for messages in (four, two):
        assert answer(model, messages).sequence.reused == length(model, messages) - 1
    assert answer(model, branch).sequence.reused < shared(model, one, branch)


def test_a_prompt_is_shared_while_it_runs(remembering, forgetful):
    """Several answers to one question at a time: one prefill, and copies of its row."""
    model = remembering()
    messages = [said("user", picture(0), "What is it?")]
    requests = [model.submit(messages, max_new_tokens=5, temperature=1.0, seed=seed) for seed in range(3)]
    while not all(request.done for request in requests):
        model.scheduler.step()
    assert model.engine.prefilled == [length(model, messages), 1, 1]
    assert len(model.engine.encoded) == 1
    for seed, request in enumerate(requests):
        alone = answer(forgetful, messages, max_new_tokens=5, temperature=1.0, seed=seed)
        assert request.sequence.tokens == alone.sequence.tokens


def test_a_picture_is_encoded_once(remembering, forgetful):
    """Across turns, requests, duplicates in a request, and from whatever source; the features are the same values."""
    model = remembering()
    one = picture(0)
    other = picture(1)
    clip = [picture(i, 56, 56) for i in range(4)]
    for messages in ([said("user", one, one, "?")], [said("user", other, one, "!")], [said("user", clip, clip)]):
        got = model.prompt(model.preprocessor.prepare(messages)).features
        expected = forgetful.prompt(forgetful.preprocessor.prepare(messages)).features
        assert np.array_equal(got, expected)
    model.image_features([Image.fromarray(np.array(one)), other])
    assert len(model.engine.encoded) == 2 + 4


def test_features_are_bounded_in_bytes(remembering):
    model = remembering()
    (features,) = model.image_features([picture(0)])
    assert not features.flags.writeable
    bounded = remembering(feature_cache_bytes=2 * features.nbytes)
    for seed in (0, 1, 0, 2, 0, 1):  # 2 drives out 1, the last but one used
        bounded.image_features([picture(seed)])
    assert len(bounded.engine.encoded) == 4
    three = bounded.image_features([picture(seed) for seed in (0, 1, 2)])  # more than are kept
    assert all(np.array_equal(a, model.image_features([picture(i)])[0]) for i, a in enumerate(three))


def test_a_digest_is_that_of_pixels_and_grid():
    pixels = np.arange(48, dtype=np.float32).reshape(16, 3)
    assert digest(pixels, (1, 4, 4)) == digest(pixels.copy(), (1, 4, 4))
    changed = pixels.copy()
    changed[7, 1] = np.nextafter(changed[7, 1], 0)
    others = [digest(changed, (1, 4, 4)), digest(pixels, (1, 2, 8)), digest(pixels, (4, 2, 2))]
    assert len({*others, digest(pixels, (1, 4, 4))}) == 4


def test_the_cache_stays_within_its_bytes(remembering, forgetful):
    """It grows with its requests, gives up rows for length and gets them back, and says what it can't hold."""
    token_bytes = forgetful.engine.new_cache(1, 1).token_bytes
    model = remembering(max_num_seqs=4, kv_cache_bytes=600 * token_bytes)
    shapes = []

    def note() -> None:
        cache = model.scheduler._batch._cache
        assert cache.num_slots * cache.max_seq_len <= 600
        assert all(buffer.shape[::2] == (cache.num_slots, cache.max_seq_len) for buffer in cache.keys)
        shapes.append((cache.num_slots, cache.max_seq_len))

    short = [said("user", "What?")]
    long = [said("user", " ".join(["What is it?"] * 60))]
    for messages, new in ((short, 4), (short, 100), (long, 100), (short, 4)):
        got = answer(model, messages, max_new_tokens=new, min_new_tokens=new)
        note()
        assert (
            got.sequence.tokens == answer(forgetful, messages, max_new_tokens=new, min_new_tokens=new).sequence.tokens
        )
    assert len(set(shapes)) > 1
    several = [model.submit(messages, max_new_tokens=40) for messages in (long, short, short, short, short, long)]
    while not all(request.done for request in several):
        model.scheduler.step()
        note()
    assert min(shapes) < max(shapes)
    for request, messages in zip(several, (long, short, short, short, short, long)):
        assert request.sequence.tokens == answer(forgetful, messages, max_new_tokens=40).sequence.tokens
    with pytest.raises(UserError, match="at most 600 tokens.*kv_cache_bytes"):
        model.generate(short, max_new_tokens=700)
    assert model.generate(short, max_new_tokens=4)


def test_slots_are_copied_swapped_and_carried_over():
    rng = np.random.default_rng(0)
    cache = HostKVCache(
        num_layers=2, num_slots=4, num_kv_heads=3, max_seq_len=8, head_dim=5, dtype=np.dtype(np.float32)
    )
    assert cache.token_bytes * 4 * 8 == sum(b.nbytes for b in (*cache.keys, *cache.values))
    for buffer in (*cache.keys, *cache.values):
        buffer[:] = rng.random(buffer.shape)
    cache.lengths[:] = [5, 8, 0, 3]
    before = [[b[row, :, :n].copy() for b in (*cache.keys, *cache.values)] for row, n in enumerate(cache.lengths)]

    def holds(cache: HostKVCache, row: int, source: int, length: int) -> bool:
        got = [b[row, :, :length] for b in (*cache.keys, *cache.values)]
        equal = all(np.array_equal(a, b[:, :length]) for a, b in zip(got, before[source]))
        return equal and cache.lengths[row] == length

    cache.swap_slots(0, 1)
    assert holds(cache, 0, 1, 8) and holds(cache, 1, 0, 5)
    cache.swap_slots(3, 2)
    assert holds(cache, 2, 3, 3) and holds(cache, 3, 2, 0)
    cache.copy_slot(0, 3, 6)
    assert holds(cache, 3, 1, 6) and holds(cache, 0, 1, 8)
    wide = cache.resized([2, 0], 3, 16)
    assert holds(wide, 0, 3, 3) and holds(wide, 1, 1, 8) and wide.lengths[2] == 0
    narrow = wide.resized([1], 1, 4)
    assert holds(narrow, 0, 1, 4)
