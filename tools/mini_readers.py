"""Heads between the decoder's layers: they say early in the run what each layer should have found out.

After `GATHERING` layers media tokens know what they can by looking back, and the tokens of an answer what is asked; one
layer later these know what the media say to it. The heads are no part of the checkpoint.
"""

from collections import defaultdict

import torch
from mini_asked import ASKED_HEADS, FOUND_HEADS, answer_labels, media_labels
from mini_batches import IGNORED, Batch
from mini_heads import GATHERED_HEADS, Heads
from torch import nn
from transformers import Ernie4_5_VLMoeForConditionalGeneration, LlamaTokenizer

GATHERING = 3  # layers, the dense one among them
WEIGHT = 0.15
FADED = 1.1  # part of the run at which the weight would be nothing


class Readers(nn.Module):
    """The heads of one model, and what its layers put out last."""

    def __init__(self, model: Ernie4_5_VLMoeForConditionalGeneration, tokenizer: LlamaTokenizer) -> None:
        super().__init__()
        hidden = model.config.text_config.hidden_size
        self.gathered = Heads(GATHERED_HEADS, hidden)
        self.asked = Heads(ASKED_HEADS, hidden)
        self.found = Heads(FOUND_HEADS, hidden)
        self.tokenizer = tokenizer
        self.states: dict[int, torch.Tensor] = {}
        layers = model.model.language_model.layers
        for count in (GATHERING, GATHERING + 1):
            layers[count - 1].register_forward_hook(
                lambda _module, _inputs, output, count=count: self._keep(count, output)
            )
        self.hits: dict[str, list[float]] = defaultdict(list)

    def _keep(self, count: int, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        self.states[count] = output if isinstance(output, torch.Tensor) else output[0]

    def loss(self, batch: Batch, done: float, alone: bool) -> torch.Tensor:
        """Return the weighted loss of all heads on what the model put out for the batch.

        Args:
            batch: What the model computed last.
            done: The part of the run that is over, from 0 to 1.
            alone: Whether the heads learn and the model does not.
        """
        early, late = self.states.pop(GATHERING), self.states.pop(GATHERING + 1)
        if alone:
            early, late = early.detach(), late.detach()
        labels = answer_labels(batch, self.tokenizer)
        answers = labels["wording"] != IGNORED
        answered = {name: found[answers] for name, found in labels.items()}
        total = self.asked(early[answers], answered, self.hits) + self.found(late[answers], answered, self.hits)
        if batch.media:
            shown = batch.features >= 0
            gathered = {name: found[batch.features[shown]] for name, found in media_labels(batch).items()}
            total = total + self.gathered(early[shown], gathered, self.hits)
        return WEIGHT * max(0.0, 1 - done / FADED) * total

    def report(self) -> str:
        """Return the accuracy of each head since the last call."""
        line = " ".join(f"{name} {100 * sum(hits) / len(hits):.0f}" for name, hits in self.hits.items())
        self.hits.clear()
        return line
