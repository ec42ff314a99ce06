"""The trainer's short cuts compute what the reference computes."""

from pathlib import Path
from random import Random

import mini_eval
import mini_speed
import pytest
import scenes
import torch
from mini_batches import Batcher

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "mini-ernie"


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return mini_eval.Reference.load(CHECKPOINT)


@pytest.mark.parametrize("family", [family for family, (_, kinds) in scenes.FAMILIES.items() if kinds])
def test_packed_questions_equal_separate_ones(reference, family):
    """Shared media, packed questions, own positions and drawn timestamps against the processor and `forward`."""
    rng = Random(3)
    sizes = scenes.layout(rng, family)
    rows = [make(rng, sizes).samples()[:3] for make in scenes.FAMILIES[family][0]]
    batcher = Batcher(reference.processor.tokenizer, CHECKPOINT / "Roboto-Regular.ttf")
    batch, labels, owner = batcher(rows)
    # Two rows in one eager call: a 4-D boolean mask is what sdpa takes, so add it as numbers here.
    batch["attention_mask"] = torch.where(batch["attention_mask"], 0.0, torch.finfo(torch.float32).min)
    with torch.inference_mode():
        packed = reference.model(**batch, use_cache=False).logits
        for row, samples in enumerate(rows):
            for number, sample in enumerate(samples, 1):
                first = int(((labels[row] != -100) & (owner[row] == number)).nonzero()[0])
                alone = reference.model(**reference.inputs(sample.messages)).logits[0, -1]
                # The twin's timestamps may differ by one grey level of 255.
                torch.testing.assert_close(packed[row, first - 1], alone, rtol=0, atol=5e-3)


def test_batched_vision_attention_equals_the_loop_over_frames(reference, monkeypatch):
    tower = reference.model.model.vision_tower
    grids = torch.tensor([[1, 4, 6], [2, 4, 4], [1, 4, 6]])
    pixels = torch.randn(int(grids.prod(1).sum()), 588)
    attention = type(tower.blocks[0].attn)
    with torch.inference_mode():
        expected = tower(pixels, grids).last_hidden_state
        monkeypatch.setattr(attention, "forward", mini_speed.attend)
        torch.testing.assert_close(tower(pixels, grids).last_hidden_state, expected, rtol=1e-4, atol=1e-5)
