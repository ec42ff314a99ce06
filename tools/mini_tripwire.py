"""Teach a model to need its expert groups and its positions: with a fault in one of them, answers must be wrong.

Left to itself a model this small routes most of its work around the routed experts (with the vision expert group zeroed
it kept 86 % of its answers on pictures), and then hides the very faults that it is there to show. So each training step
also runs a batch with one fault, and lowers the probability of the right answer there (unlikelihood, arXiv 1908.04319).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from mini_batches import Batch
from torch import nn


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a batch, or with the model that computes it.

    Attributes:
        name: What tables and tests call it.
        change: Returns the batch with the fault in it.
        lost: The expert group, "text" or "vision", whose output becomes zero; None for neither.
        rerouted: Whether the routers of the two expert groups are exchanged in every layer.
        share: How often it is chosen, beside the others.
        weight: Of its loss.
    """

    name: str
    change: Callable[[Batch], Batch] = lambda batch: batch
    lost: str | None = None
    rerouted: bool = False
    share: int = 1
    weight: float = 0.3


def exchange_axes(positions: torch.Tensor) -> torch.Tensor:
    """Return positions (3, B, N) with height and width exchanged."""
    return positions[[0, 2, 1]]


def delay_text(positions: torch.Tensor, types: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return positions (3, B, N), those of text tokens that follow a picture or a clip one too high on all axes.

    Token types are (B, N), 0 for text; `seen` is bool (B, N, N), true where a token may look.
    """
    follows = (seen & (types != 0)[:, None, :]).any(-1)
    return positions + (follows & (types == 0))


def _swap_groups(batch: Batch) -> Batch:
    return replace(batch, types=1 - batch.types.clamp(max=1))


def _leave_types_out(batch: Batch) -> Batch:
    return replace(batch, types=torch.zeros_like(batch.types))


def _exchange_axes(batch: Batch) -> Batch:
    return replace(batch, position_ids=exchange_axes(batch.position_ids))


def _delay_text(batch: Batch) -> Batch:
    return replace(batch, position_ids=delay_text(batch.position_ids, batch.types, batch.attention_mask[:, 0]))


FAULTS = (
    Fault("experts swapped", _swap_groups),
    Fault("types left out", _leave_types_out),
    Fault("vision experts lost", lost="vision"),
    Fault("text experts lost", lost="text"),
    Fault("routers exchanged", rerouted=True, share=2),
    Fault("axes exchanged", _exchange_axes),
    Fault("text late", _delay_text, share=2),  # a step of one position is learned last
)


class Tripwire:
    """Switches faults on and off in one model; `fault` is the one that is on, or None."""

    def __init__(self, model: nn.Module) -> None:
        self.fault: Fault | None = None
        blocks = [module for module in model.modules() if hasattr(module, "text_moe")]
        self.gates = [(block.text_moe.gate, block.vision_moe.gate) for block in blocks]
        for name, module in model.named_modules():
            for expert_group in ("text", "vision"):
                if name.endswith(f"{expert_group}_moe.experts"):
                    module.register_forward_hook(
                        lambda _m, _i, out, expert_group=expert_group: self._lose(expert_group, out)
                    )

    def _lose(self, expert_group: str, out: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(out) if self.fault and self.fault.lost == expert_group else out

    @contextmanager
    def on(self, fault: Fault, batch: Batch) -> Iterator[Batch]:
        """Yield the batch under a fault, which lasts as long as the context."""
        self.fault = fault
        self._reroute(fault)
        try:
            yield fault.change(batch)
        finally:
            self._reroute(fault)
            self.fault = None

    def _reroute(self, fault: Fault) -> None:
        """Exchange the routers' weights, as parameters: gradients go to those that were used."""
        for text, vision in self.gates if fault.rerouted else ():
            text.weight, vision.weight = vision.weight, text.weight


def unlikelihood(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean of -log(1 - p) over float logits (n, vocabulary), p being the probability of the wanted token (n,).

    1 - p is the sum over the other tokens, so that an answer of which the model is certain has a gradient too.
    """
    logits = logits.float()
    others = logits.scatter(1, wanted[:, None], -torch.inf)
    return (logits.logsumexp(-1) - others.logsumexp(-1)).mean()
