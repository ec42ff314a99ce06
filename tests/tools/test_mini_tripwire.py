"""Faults of experts and positions change what they say, last as long as they are asked to, and can be trained on."""

from dataclasses import fields
from random import Random

import curriculum
import heldout
import mini_eval
import pytest
import torch
from conversations import Source
from mini_batches import IGNORED, Batch, Batcher
from mini_damage import DAMAGE
from mini_tripwire import FAULTS, Fault, Tripwire, unlikelihood

from tests.paths import MINI

FAULT = {fault.name: fault for fault in FAULTS}
DAMAGE_OF_FAULT = {
    "experts swapped": "groups swapped (dispatch inverted)",
    "types left out": "all tokens to the text experts",
    "vision experts lost": "vision experts zeroed",
    "text experts lost": "text experts zeroed",
    "routers exchanged": "routers swapped",
    "axes exchanged": "height and width exchanged",
    "text late": "text after media one position late",
}


def names(value: Fault | str) -> str:
    return value.name if isinstance(value, Fault) else value


@pytest.fixture(scope="module")
def reference():
    return mini_eval.Reference.load(MINI)


@pytest.fixture
def batch(reference) -> Batch:
    """Questions about pictures and clips: one of a row, and four that share a row."""
    rows = [list(heldout.undrawn(kind, 1)) for kind in ("colour", "more", "direction", "text")]
    return Batcher(reference.processor.tokenizer)([*rows, curriculum.converse(Random(5), Source())[-4:]])


def changed_fields(before: Batch, after: Batch) -> list[str]:
    return [field.name for field in fields(Batch) if getattr(before, field.name) is not getattr(after, field.name)]


# Text that is one position late shows with several pictures (see ACCURACY.md).
@pytest.mark.parametrize(
    ("fault", "kind"), [(fault, "more" if fault.name == "text late" else "colour") for fault in FAULTS], ids=names
)
def test_a_fault_ruins_the_answers_and_then_is_gone(reference, fault, kind):
    batch = Batcher(reference.processor.tokenizer)([[sample] for sample in heldout.undrawn(kind, 4)])
    opens = (batch.labels[:, 1:] != IGNORED) & (batch.labels[:, :-1] == IGNORED)

    def right(batch: Batch) -> float:
        logits = mini_eval.batch_logits(reference, batch)[:, :-1]
        return float((logits[opens].argmax(-1) == batch.labels[:, 1:][opens]).float().mean())

    tripwire = Tripwire(reference.model)
    assert right(batch) == 1.0
    with tripwire.on(fault, batch) as faulty:
        assert tripwire.fault is fault
        assert right(faulty) <= 0.25
    assert tripwire.fault is None
    assert right(batch) == 1.0


def test_exchanged_axes_swap_height_and_width_and_nothing_else(batch):
    changed = FAULT["axes exchanged"].change(batch)
    assert changed_fields(batch, changed) == ["position_ids"]
    time, height, width = batch.position_ids
    assert torch.equal(changed.position_ids, torch.stack([time, width, height]))
    assert not torch.equal(height, width)


def test_late_text_moves_text_that_follows_media_in_its_own_sequence(batch):
    changed = FAULT["text late"].change(batch)
    assert changed_fields(batch, changed) == ["position_ids"]
    moved = changed.position_ids - batch.position_ids
    assert torch.equal(moved[0], moved[1])
    assert torch.equal(moved[0], moved[2])
    for types, owner, late in zip(batch.types[:4], batch.owner, moved[0], strict=False):
        follows = (types != 0).cumsum(0) > 0
        assert torch.equal(late, (follows & (types == 0) & (owner >= 0)).long())
    assert moved[0, :3].any(1).all()
    assert not moved[0, 3].any()


def test_late_text_of_packed_questions_equals_that_of_separate_ones(reference, batch):
    """A question that comes before the first picture of its row is not moved with those that come after."""
    batcher = Batcher(reference.processor.tokenizer)
    change = FAULT["text late"].change
    packed = change(batch)
    row = len(batch.samples) - 1
    for number, sample in enumerate(batch.samples[row], 1):
        alone = change(batcher([[sample]]))
        answered = (batch.owner[row] == number) & (batch.labels[row] != IGNORED)
        assert torch.equal(
            packed.position_ids[:, row][:, answered], alone.position_ids[:, 0][:, alone.labels[0] != IGNORED]
        )


@pytest.mark.parametrize("fault", FAULTS, ids=names)
def test_a_damaged_class_computes_what_a_faulty_batch_gives(reference, batch, fault):
    intact = mini_eval.batch_logits(reference, batch)
    with Tripwire(reference.model).on(fault, batch) as faulty:
        expected = mini_eval.batch_logits(reference, faulty)
    with DAMAGE[DAMAGE_OF_FAULT[fault.name]](reference):
        torch.testing.assert_close(mini_eval.batch_logits(reference, batch), expected)
    assert not torch.allclose(expected, intact, atol=1e-3)
    assert torch.equal(mini_eval.batch_logits(reference, batch), intact)


def test_under_exchanged_routers_gradients_go_to_the_router_that_was_used(reference):
    (sample,) = heldout.undrawn("text", 1)
    faulty = Batcher(reference.processor.tokenizer)([[sample]])
    model = reference.model.model
    gates = [module for module in model.modules() if hasattr(module, "moe_statics")]
    assert len(gates) == 2 * len(Tripwire(reference.model).gates) > 0
    weights = [gate.weight for gate in gates]
    with Tripwire(reference.model).on(FAULT["routers exchanged"], faulty):
        hidden = model.language_model(
            inputs_embeds=model.get_input_embeddings()(faulty.input_ids),
            attention_mask=torch.where(faulty.attention_mask, 0.0, torch.finfo(torch.float32).min),
            position_ids=faulty.position_ids,
            moe_mm_token_type_ids=faulty.types,
            use_cache=False,
        ).last_hidden_state
        hidden.square().sum().backward()
    used = [bool(weight.grad is not None and weight.grad.any()) for weight in weights]
    reference.model.zero_grad(set_to_none=True)
    assert all(gate.weight is weight for gate, weight in zip(gates, weights, strict=True))
    vision = [any(gate is pair[1] for pair in Tripwire(reference.model).gates) for gate in gates]
    assert used == vision


@pytest.mark.parametrize("name", DAMAGE)
def test_both_judges_ask_the_same_damaged_class(reference, name):
    """Three tokens generated, and the same ones predicted in one call, have equal logits; then the damage is gone."""
    sample = next(heldout.undrawn("when", 1))
    inputs = heldout.drawn(sample)
    batch = Batcher(reference.processor.tokenizer)([[sample]])
    first = int((batch.labels[0] != IGNORED).nonzero()[0])

    def found() -> tuple[torch.Tensor, torch.Tensor]:
        reference.model.model.rope_deltas = None
        with torch.inference_mode():
            generated = reference.model.generate(
                **reference.inputs(inputs),
                min_new_tokens=3,
                max_new_tokens=3,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        batch.input_ids[0, first : first + 3] = generated.sequences[0, -3:]
        return mini_eval.batch_logits(reference, batch)[0, first - 1 : first + 2], torch.cat(generated.logits)

    intact = found()
    with DAMAGE[name](reference):
        quick, generated = found()
    torch.testing.assert_close(quick, generated, rtol=0, atol=2e-2)
    assert not torch.allclose(quick[0], intact[0][0], atol=2e-2)
    for now, before in zip(found(), intact, strict=True):
        assert torch.equal(now, before)


def test_unlikelihood_falls_with_the_probability_of_the_right_token():
    sure = torch.tensor([[9.0, 0.0]])
    unsure = torch.tensor([[-9.0, 0.0]])
    wanted = torch.tensor([0])
    assert unlikelihood(sure, wanted) > 5 > 1e-3 > unlikelihood(unsure, wanted) >= 0


def test_unlikelihood_has_a_gradient_where_the_model_is_certain():
    """1 - p is 0 there in float32, and a bound on p would leave what is most certain as it is."""
    logits = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    unlikelihood(logits, torch.tensor([0])).backward()
    assert logits.grad is not None and logits.grad[0].tolist() == pytest.approx([1, -0.5, -0.5])
