"""Faults of the expert groups ruin what a model computes, last as long as they are asked to, and can be trained on."""

import heldout
import mini_eval
import pytest
import torch
from mini_batches import Batcher
from mini_tripwire import FAULTS, Tripwire, unlikelihood

from tests.paths import MINI


@pytest.fixture(scope="module")
def reference():
    return mini_eval.Reference.load(MINI)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ruins_the_answers_and_then_is_gone(reference, fault):
    batch = Batcher(reference.processor.tokenizer)([[sample] for sample in heldout.undrawn("colour", 4)])
    opens = (batch.labels[:, 1:] != -100) & (batch.labels[:, :-1] == -100)

    def right(types: torch.Tensor) -> float:
        logits = mini_eval.batch_logits(reference, batch, types)[:, :-1]
        return float((logits[opens].argmax(-1) == batch.labels[:, 1:][opens]).float().mean())

    tripwire = Tripwire(reference.model)
    assert right(batch.types) == 1.0
    with tripwire.on(fault, batch.types) as faulty:
        assert right(faulty) <= 0.25
    assert right(batch.types) == 1.0


def test_unlikelihood_falls_with_the_probability_of_the_right_token():
    sure = torch.tensor([[9.0, 0.0]])
    unsure = torch.tensor([[-9.0, 0.0]])
    wanted = torch.tensor([0])
    assert unlikelihood(sure, wanted) > 5 > 1e-3 > unlikelihood(unsure, wanted) >= 0
