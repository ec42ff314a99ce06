"""The trainer's short cuts compute what the reference computes."""

from random import Random

import curriculum
import heldout
import mini_eval
import mini_speed
import pytest
import torch
from conversations import Sample, Source
from mini_batches import IGNORED, Batch, Batcher, media_grid, media_tokens, pixels
from mini_features import LiveFeatures
from scenes import draw_picture, draw_video

from tests.paths import MINI

FONT = MINI / "Roboto-Regular.ttf"


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return mini_eval.Reference.load(MINI)


def logits(reference: mini_eval.Reference, batch: Batch) -> torch.Tensor:
    return mini_eval.batch_logits(reference, batch)


@pytest.mark.parametrize(
    ("make", "seed"),
    [(curriculum.lesson, 3), (curriculum.clip_lesson, 4), (curriculum.converse, 5), (curriculum.converse, 6)]
    + [(curriculum.tool_conversation, 7)],
)
def test_packed_questions_equal_separate_ones(reference, make, seed):
    """Shared turns, packed questions, own positions and drawn timestamps against the processor and `forward`."""
    rng = Random(seed)
    rows = [make(rng, Source())[-4:] for _ in range(2)]
    batch = Batcher(reference.processor.tokenizer)(rows)
    packed = logits(reference, batch)
    for row, samples in enumerate(rows):
        for number, sample in enumerate(samples, 1):
            answered = (batch.labels[row] != IGNORED) & (batch.owner[row] == number)
            first = int(answered.nonzero()[0])
            with torch.inference_mode():
                alone = reference.model(**reference.inputs(heldout.drawn(sample))).logits[0, -1]
            # The double's timestamps may differ by one grey level of 255.
            torch.testing.assert_close(packed[row, first - 1], alone, rtol=0, atol=5e-3)


def test_labels_are_the_answer_and_its_end(reference):
    tokenizer = reference.processor.tokenizer
    samples = curriculum.converse(Random(8), Source())
    batch = Batcher(tokenizer)([samples])
    for number, sample in enumerate(samples, 1):
        labels = batch.labels[0][(batch.labels[0] != IGNORED) & (batch.owner[0] == number)]
        assert tokenizer.decode(labels) == sample.answer + tokenizer.eos_token


def test_an_answers_first_token_has_its_own_weight_where_a_plan_says_so(reference):
    samples = [max(curriculum.lesson(Random(8), Source()), key=lambda sample: len(sample.answer))]
    tokenizer = reference.processor.tokenizer
    plain, first = (Batcher(tokenizer, weight)([samples]) for weight in (None, 1.0))
    asked = plain.labels[0] != IGNORED
    count = int(asked.sum())
    assert count > 2 and not plain.weights[0][~asked].any()
    torch.testing.assert_close(plain.weights[0][asked], torch.full((count,), count**-0.5))
    torch.testing.assert_close(first.weights[0][asked], torch.tensor([1.0] + [count**-0.5] * (count - 1)))


def test_the_quick_judge_finds_what_generation_finds(reference):
    for kind in ("colour", "direction", "talk"):
        found = mini_eval.judge_quickly(reference, kind, 8, 3)
        assert found == mini_eval.judge(reference, kind, 8, 3)


def test_grids_are_known_before_a_picture_or_a_clip_is_drawn(reference):
    rng = Random(9)
    media = [make(rng) for make in (draw_picture, draw_video) for _ in range(5)]
    for medium in media:
        assert pixels(medium, FONT)[1] == media_grid(medium)
    table = LiveFeatures(reference.model, FONT)(media)
    assert len(table) == sum(map(media_tokens, media))


def test_batched_vision_attention_equals_the_loop_over_frames(reference, monkeypatch):
    tower = reference.model.model.vision_tower
    grids = torch.tensor([[1, 4, 6], [2, 4, 4], [1, 4, 6]])
    patches = torch.randn(int(grids.prod(1).sum()), 588)
    attention = type(tower.blocks[0].attn)
    with torch.inference_mode():
        expected = tower(patches, grids).last_hidden_state
        monkeypatch.setattr(attention, "forward", mini_speed.attend)
        torch.testing.assert_close(tower(patches, grids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_an_answer_may_not_see_another_question(reference):
    """Change every token of one question: the logits of the others stay."""
    samples: list[Sample] = curriculum.lesson(Random(10), Source())[:3]
    batch = Batcher(reference.processor.tokenizer)([samples])
    before = logits(reference, batch)
    batch.input_ids[batch.owner == 2] = 5
    after = logits(reference, batch)
    others = (batch.owner == 1) | (batch.owner == 3) | (batch.owner == 0)
    torch.testing.assert_close(after[others], before[others], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(after[batch.owner == 2], before[batch.owner == 2])
