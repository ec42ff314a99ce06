"""An engine that computes nothing, and one that answers some calls in place of another."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from ernie_export.runtime.kv_cache import HostKVCache
from ernie_export.runtime.logits import DenseLogits

PREFILL = 0.1
DECODE = 0.01
ENCODE = 0.03  # seconds of a call


@dataclass
class FakeEngine:
    """An engine whose calls take known times of its own clock, and which finds the end token the most likely.

    Attributes:
        vocabulary: Tokens of the vocabulary.
        hidden: Width of a vision feature.
        end: The end token.
        now: Seconds that the calls have taken.
        calls: Calls so far.
        slow_calls: How many of the first calls take a second longer, as they do while memory is first touched.
    """

    vocabulary: int
    hidden: int
    end: int
    now: float = 0.0
    calls: int = 0
    slow_calls: int = 0
    max_prefill_chunk: int = 512

    def clock(self) -> float:
        return self.now

    def spend(self, seconds: float) -> None:
        self.calls += 1
        self.now += seconds + (self.calls <= self.slow_calls)

    def logits(self) -> DenseLogits:
        values = np.zeros(self.vocabulary, np.float32)
        values[self.end] = 1
        return DenseLogits(values)

    def encode(self, pixel_values, coordinates, pairs):
        self.spend(ENCODE)
        return np.zeros((pairs.shape[1], pixel_values.shape[1] // 4, self.hidden), np.float32)

    def new_cache(self, num_slots, max_seq_len):
        dtype = np.dtype(np.float32)
        return HostKVCache(
            num_layers=1, num_slots=num_slots, num_kv_heads=1, max_seq_len=max_seq_len, head_dim=1, dtype=dtype
        )

    def prefill(self, cache, slot, chunk):
        self.spend(PREFILL)
        cache.lengths[slot] += len(chunk.input_ids)
        return self.logits()

    def decode(self, cache, tokens, positions):
        self.spend(DECODE)
        cache.lengths[: len(tokens)] += 1
        return [self.logits() for _ in tokens]

    def close(self):
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Delegate:
    """An engine like another one, but for some of its methods."""

    def __init__(self, engine: Any, **methods: Callable[..., Any]) -> None:
        self._engine = engine
        for name, method in methods.items():
            getattr(engine, name)  # a method of this name is called
            setattr(self, name, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
