"""Teach a model to need its expert groups: with an expert group lost, or tokens sent to the wrong one, answers must be
wrong.

Left to itself a model this small routes most of its work around the routed experts (with the vision expert group zeroed
it kept 86 % of its answers on pictures), and then hides the very faults that it is there to show. So each training step
also runs a batch with one fault, and lowers the probability of the right answer there (unlikelihood, arXiv 1908.04319).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

FAULTS = ("experts swapped", "types left out", "vision experts lost", "text experts lost")


class Tripwire:
    """Switches faults on and off in one model; `fault` is the one that is on, or None."""

    def __init__(self, model: nn.Module) -> None:
        self.fault: str | None = None
        for name, module in model.named_modules():
            for expert_group in ("text", "vision"):
                if name.endswith(f"{expert_group}_moe.experts"):
                    module.register_forward_hook(
                        lambda _m, _i, out, expert_group=expert_group: self._lose(expert_group, out)
                    )

    def _lose(self, expert_group: str, out: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(out) if self.fault == f"{expert_group} experts lost" else out

    @contextmanager
    def on(self, fault: str, types: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the token types under a fault of `FAULTS`, which lasts as long as the context."""
        changed = {"experts swapped": 1 - types.clamp(max=1), "types left out": torch.zeros_like(types)}.get(
            fault, types
        )
        self.fault = fault
        try:
            yield changed
        finally:
            self.fault = None


def unlikelihood(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Mean of -log(1 - p) over float logits (n, vocabulary), p being the probability of the wanted token (n,)."""
    chance = logits.float().softmax(-1).gather(1, wanted[:, None]).squeeze(1)
    return -torch.log1p(-chance.clamp(max=0.999)).mean()
