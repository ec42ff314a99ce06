"""The logits of one sequence's next token, wherever they lie."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TopK:
    """The highest logits of one sequence.

    Attributes:
        ids: Token ids (k,) int64; the highest logit first, and of equal ones the lower id first.
        values: Their logits (k,) float32.
        total: The sum of all of the sequence's logits, which is finite only if every one is.
    """

    ids: np.ndarray
    values: np.ndarray
    total: float


class Logits(Protocol):
    """The logits of one sequence's next token. They are valid until the engine's next call."""

    def topk(self) -> TopK | None:
        """Return the highest logits if they are known without the others; None where `full` costs nothing."""
        ...

    def full(self) -> np.ndarray:
        """Return all logits (vocabulary,) float32; fetches them if they lie on a device."""
        ...


@dataclass(frozen=True)
class DenseLogits:
    """Logits that lie on the host.

    Attributes:
        values: All of them (vocabulary,) float32.
    """

    values: np.ndarray

    def topk(self) -> None:
        """Return None: all logits are at hand."""

    def full(self) -> np.ndarray:
        """Return all logits, without a copy."""
        return self.values


@dataclass(frozen=True)
class TopKLogits:
    """Logits that lie on a device, with the highest of them on the host.

    Attributes:
        best: The highest logits.
        fetch_logits: Copies all logits from the device.
    """

    best: TopK
    fetch_logits: Callable[[], np.ndarray]

    def topk(self) -> TopK:
        """Return the highest logits."""
        return self.best

    def full(self) -> np.ndarray:
        """Return all logits, copied from the device."""
        return self.fetch_logits()
