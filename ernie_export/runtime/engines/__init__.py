"""What executes a bundle's graphs. One Protocol; one file an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.logits import Logits


@dataclass(frozen=True)
class PromptChunk:
    """Consecutive tokens of one request's prompt, S of them.

    input_ids, token_types, feature_index: (S,) int64; feature_index counts rows of `features` from 1, 0 is text.
    position_ids: (3, S) int64. features: (n, hidden) in the engine's dtype.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    feature_index: np.ndarray
    position_ids: np.ndarray
    features: np.ndarray

    def part(self, start: int, stop: int) -> Self:
        """Tokens start to stop, with all of the features."""
        tokens = self.input_ids[start:stop], self.token_types[start:stop], self.feature_index[start:stop]
        return type(self)(*tokens, self.position_ids[:, start:stop], self.features)


class Encoder(Protocol):
    """The part of an engine that makes features of frames."""

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Vision encoder and resampler over frames of one size.

        pixel_values (frames, patches, pixels) float32, coordinates (patches, 2) int64, pairs (2, G) int64: frame
        numbers. Returns features (G, patches / 4, hidden).
        """
        ...


class Engine(Encoder, Protocol):
    """Runs the graphs of one bundle; owns its sessions and frees them on close."""

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for `rows` requests of up to `capacity` tokens."""
        ...

    def prefill(self, cache: KVCache, row: int, chunk: PromptChunk) -> Logits:
        """Append the chunk to the row; returns the logits after its last token."""
        ...

    def decode(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """Append one text token to each of the first n rows.

        tokens (n,) and positions (3, n) are int64; returns each row's logits, which are valid until the next call.
        """
        ...

    def close(self) -> None:
        """Free everything; the engine can't be used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...
