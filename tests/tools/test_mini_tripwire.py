"""Faults of the expert banks change what a model computes, last as long as they are asked to, and can be trained on."""

from pathlib import Path

import mini_eval
import pytest
import scenes
import torch
from mini_batches import Batcher
from mini_tripwire import FAULTS, Tripwire, unlikelihood

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "mini-ernie"


@pytest.fixture(scope="module")
def reference():
    return mini_eval.Reference.load(CHECKPOINT)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ruins_the_answers_and_then_is_gone(reference, fault):
    samples = list(scenes.heldout("colour", 4))
    batch, labels, _ = Batcher(reference.processor.tokenizer, CHECKPOINT / "Roboto-Regular.ttf")([[s] for s in samples])
    batch["attention_mask"] = torch.where(batch["attention_mask"], 0.0, torch.finfo(torch.float32).min)
    asked = labels[:, 1:] != -100

    def right(arguments: dict[str, torch.Tensor]) -> float:
        with torch.inference_mode():
            logits = reference.model(**arguments, use_cache=False).logits[:, :-1]
        opens = asked & (labels[:, :-1] == -100)
        return float((logits[opens].argmax(-1) == labels[:, 1:][opens]).float().mean())

    tripwire = Tripwire(reference.model)
    assert right(batch) == 1.0
    with tripwire.on(fault, batch) as faulty:
        assert right(faulty) <= 0.25
    assert right(batch) == 1.0


def test_unlikelihood_falls_with_the_probability_of_the_right_token():
    sure, unsure = torch.tensor([[9.0, 0.0]]), torch.tensor([[-9.0, 0.0]])
    wanted = torch.tensor([0])
    assert unlikelihood(sure, wanted) > 5 > 1e-3 > unlikelihood(unsure, wanted) >= 0
