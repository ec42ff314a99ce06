"""Prompts to tokens: each prompt is prefilled into a row of the KV cache, then all rows decode together.

Rows have their own lengths, so requests of unequal length need no padding: a prefill works on one row, a decode step
appends one token to every row in use.
"""

from dataclasses import dataclass

import numpy as np
from ernie_export.runtime.engines import Engine, PromptChunk
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.sampling import Sampler
from ernie_export.runtime.text_stream import TextStream

# Prompt tokens in one prefill call. Attention forms scores of these by all tokens so far: fewer save work and memory.
CHUNK = 512


@dataclass(frozen=True)
class Prompt:
    """One request as the decoder takes it.

    input_ids, token_types: (S,) int64. feature_index: (S,) int64, rows of `features` counted from 1, 0 for text.
    position_ids: (3, S) int64. features: (n, hidden).
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    feature_index: np.ndarray
    position_ids: np.ndarray
    features: np.ndarray

    def chunk(self, start: int, stop: int) -> PromptChunk:
        """Tokens start to stop with just the features they use."""
        index = self.feature_index[start:stop]
        used = index[index > 0]
        low, high = (used.min() - 1, used.max()) if used.size else (0, 0)
        return PromptChunk(
            input_ids=self.input_ids[start:stop],
            token_types=self.token_types[start:stop],
            feature_index=np.where(index > 0, index - low, 0),
            position_ids=self.position_ids[:, start:stop],
            features=self.features[low:high],
        )


class Sequence:
    """A request being answered: its prompt, its sampler, its text so far."""

    def __init__(self, prompt: Prompt, sampler: Sampler, text: TextStream, eos: frozenset[int], max_new: int) -> None:
        self.prompt = prompt
        self.sampler = sampler
        self.text = text
        self.eos = eos
        self.max_new = max_new
        self.tokens: list[int] = []
        self.finish_reason = ""

    def take(self, logits: np.ndarray) -> str:
        """Choose the next token; returns the text that it completes. Sets `finish_reason` when it is the last."""
        token = self.sampler.next(logits)
        self.tokens.append(token)
        piece = "" if token in self.eos else self.text.push(token)
        if token in self.eos or self.text.stopped or len(self.tokens) == self.max_new:
            piece += self.text.finish()  # which may meet a stop string in what was held back
            self.finish_reason = "stop" if token in self.eos or self.text.stopped else "length"
        return piece

    def capacity(self) -> int:
        """Tokens that prompt and answer may come to."""
        return len(self.prompt.input_ids) + self.max_new

    @property
    def position(self) -> np.ndarray:
        """Position (3,) of the token that was chosen last: each axis counts on from the prompt's last token."""
        return self.prompt.position_ids[:, -1] + len(self.tokens)


class Batch:
    """Up to `rows` sequences over one KV cache. Finished ones make room for others."""

    def __init__(self, engine: Engine, rows: int, capacity: int) -> None:
        """`capacity`: tokens of the longest sequence, prompt and answer."""
        self._engine = engine
        self._rows = rows
        self._cache: KVCache = engine.new_cache(rows, capacity)
        self.running: list[Sequence] = []  # by row

    @property
    def full(self) -> bool:
        """Whether every row is in use."""
        return len(self.running) == self._rows

    def add(self, sequence: Sequence) -> str:
        """Prefill a sequence into the next row and choose its first token; returns the text that it completes."""
        row, prompt = len(self.running), sequence.prompt
        length = len(prompt.input_ids)
        if sequence.capacity() > self._cache.capacity:
            raise ValueError(f"a sequence of {sequence.capacity()} tokens for a cache of {self._cache.capacity}")
        self._cache.lengths[row] = 0
        for start in range(0, length, CHUNK):
            logits = self._engine.prefill(self._cache, row, prompt.chunk(start, min(start + CHUNK, length)))
        self.running.append(sequence)
        piece = sequence.take(logits)
        self._drop_finished()
        return piece

    def step(self) -> list[tuple[Sequence, str]]:
        """Append one token to every running sequence; returns each with the text that its token completes."""
        sequences = list(self.running)
        tokens = np.array([sequence.tokens[-1] for sequence in sequences])
        positions = np.stack([sequence.position for sequence in sequences], axis=1)
        logits = self._engine.decode(self._cache, tokens, positions)
        pieces = [sequence.take(row) for sequence, row in zip(sequences, logits, strict=True)]
        self._drop_finished()
        return list(zip(sequences, pieces, strict=True))

    def _drop_finished(self) -> None:
        """Close gaps: the last row takes the place of a finished one."""
        for row in reversed(range(len(self.running))):
            if self.running[row].finish_reason:
                last = len(self.running) - 1
                if row != last:
                    self._cache.move_row(last, row)
                    self.running[row] = self.running[last]
                self.running.pop()
