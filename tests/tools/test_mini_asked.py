"""What the trainer's heads are asked at the tokens of an answer is what the question asks, and what the media say."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import curriculum
import heldout
import mini_asked
import pytest
import torch
from conversations import Sample, Source
from mini_batches import IGNORED, Batch, Batcher
from mini_checkpoint import build_config
from mini_readers import WEIGHT, Readers
from scenes import COLOURS, SHAPES
from transformers import Ernie4_5_VLMoeForConditionalGeneration, LlamaTokenizer

from tests.paths import MINI


@pytest.fixture(scope="module")
def tokenizer():
    return LlamaTokenizer.from_pretrained(MINI)


def batch_of(tokenizer: LlamaTokenizer, *samples: Sample) -> Batch:
    return Batcher(tokenizer)([[sample] for sample in samples])


def drawn(kind: str, fits: Callable[[Sample], bool] = lambda sample: True) -> Sample:
    return next(sample for sample in heldout.undrawn(kind, 50) if fits(sample))


def classes(labels: dict[str, torch.Tensor], name: str) -> list[int]:
    found = labels[name][0]
    return found[found != IGNORED].tolist()


def test_a_question_of_the_colour_asks_for_a_shape_and_finds_a_colour(tokenizer):
    sample = drawn("colour")
    batch = batch_of(tokenizer, sample)
    labels = mini_asked.answer_labels(batch, tokenizer)
    predicting = (batch.labels[0] != IGNORED).nonzero().flatten() - 1
    assert (labels["wording"][0] != IGNORED).nonzero().flatten().tolist() == predicting.tolist()
    assert set(classes(labels, "wording")) == {1 + mini_asked.WORDINGS.index("colour")}
    assert set(classes(labels, "asked shape")) == {1 + SHAPES.index(sample.question.slots["thing"])}
    assert set(classes(labels, "asked colour")) == {0} and set(classes(labels, "asked number")) == {1}
    assert set(classes(labels, "colour")) == {1 + list(COLOURS).index(sample.answer)}


def test_answers_that_list_things_are_labelled_thing_by_thing(tokenizer):
    sample = drawn("describe", lambda sample: len({thing.colour for thing in sample.question.things}) == 3)
    labels = mini_asked.answer_labels(batch_of(tokenizer, sample), tokenizer)
    expected = [1 + list(COLOURS).index(thing.colour) for thing in sample.question.things]
    assert list(dict.fromkeys(classes(labels, "colour"))) == expected


def test_the_number_of_the_picture_is_the_one_that_is_asked_or_found(tokenizer):
    sample = drawn("other", lambda sample: "2" in str(sample.messages[-1]["content"][-1]["text"]))
    assert set(classes(mini_asked.answer_labels(batch_of(tokenizer, sample), tokenizer), "asked number")) == {2}
    which = drawn("which", lambda sample: sample.answer == "the second")
    labels = mini_asked.answer_labels(batch_of(tokenizer, which), tokenizer)
    assert set(classes(labels, "found number")) == {2} and set(classes(labels, "asked number")) == {0}


def test_the_moment_is_the_time_of_the_answer(tokenizer):
    sample = drawn("clock")
    (moment,) = set(classes(mini_asked.answer_labels(batch_of(tokenizer, sample), tokenizer), "moment"))
    assert str(moment) in sample.answer


def test_small_talk_asks_nothing_about_shapes(tokenizer):
    labels = mini_asked.answer_labels(batch_of(tokenizer, drawn("talk")), tokenizer)
    assert set(classes(labels, "wording")) == {0} and classes(labels, "colour") == []


def test_readers_add_a_loss_that_fades_and_reaches_the_layers_below_them(tokenizer):
    torch.manual_seed(0)
    model = Ernie4_5_VLMoeForConditionalGeneration(build_config(tokenizer))
    readers = Readers(model, tokenizer)
    rng = Random(6)
    batch = Batcher(tokenizer)([curriculum.converse(rng, Source()) for _ in range(3)])
    table = torch.randn(max(1, int(batch.features.max()) + 1), 128)
    embedded = model.get_input_embeddings()(batch.input_ids)
    shown = batch.features >= 0
    embedded = embedded.masked_scatter(shown[..., None], table[batch.features[shown]])

    def loss(done: float, alone: bool = False) -> torch.Tensor:
        model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=torch.where(batch.attention_mask, 0.0, torch.finfo(torch.float32).min),
            position_ids=batch.position_ids,
            moe_mm_token_type_ids=batch.types,
            use_cache=False,
        )
        return readers.loss(batch, done, alone)

    loss(0.0, alone=True).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in readers.asked.parameters())
    early = loss(0.0)
    late = loss(1.0)
    assert 0 < float(late.detach()) < 0.2 * float(early.detach()) and WEIGHT > 0
    early.backward()
    layers = model.model.language_model.layers
    reached = [layer.self_attn.q_proj.weight.grad is not None for layer in layers]
    assert reached == [True] * 4 + [False] * (len(layers) - 4)
    assert "wording" in readers.report() and readers.report() == ""


def test_labels_need_no_question(tokenizer):
    sample = replace(drawn("colour"), question=None)
    labels = mini_asked.answer_labels(batch_of(tokenizer, sample), tokenizer)
    assert set(classes(labels, "wording")) == {0}
