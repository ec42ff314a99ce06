"""Prompts to tokens: each prompt is prefilled into a row of the KV cache, then all rows decode together.

Rows have their own lengths, so requests of unequal length need no padding: a prefill works on one row, a decode step
appends one token to every row in use. The row of a finished sequence is kept until its place is needed: a prompt that
begins with the same tokens, as the next turn of a conversation does, takes them over and prefills only what is new.
"""

from dataclasses import dataclass

import numpy as np

from ernie_export.runtime.engines import Engine, PromptChunk
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.logits import Logits
from ernie_export.runtime.sampling import Logprobs, Sampler, logprobs
from ernie_export.runtime.text_stream import TextStream

# Prompt tokens in one prefill call. Attention forms scores of these by all tokens so far: fewer save work and memory.
CHUNK = 512
# The same while other sequences decode, which wait for it.
CHUNK_BETWEEN_STEPS = 128
# A cache that grows has a capacity that is a multiple of this.
CAPACITY_STEP = 64


@dataclass(frozen=True)
class Prompt:
    """One request as the decoder takes it.

    input_ids, token_types: (S,) int64. feature_index: (S,) int64, rows of `features` counted from 1, 0 for text.
    position_ids: (3, S) int64. features: (n, hidden). content: (S, 3) int64, of a picture's or clip's token the two
    halves of its `digest` and the token's place within it; zeros for text.
    """

    input_ids: np.ndarray
    token_types: np.ndarray
    feature_index: np.ndarray
    position_ids: np.ndarray
    features: np.ndarray
    content: np.ndarray

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
        self.logprobs: list[Logprobs] = []  # of each token, if its sampling asks for them
        self.reused = 0  # tokens of the prompt that were in the KV cache already
        self.finish_reason = ""
        self.error: BaseException | None = None

    def take(self, logits: Logits) -> str:
        """Choose the next token; returns the text that it completes. Sets `finish_reason` when it is the last.

        Where nothing can be chosen from the logits, `finish_reason` is "error" and `error` says why.
        """
        try:
            token = self.sampler.next(logits)
        except Exception as e:
            self.finish_reason, self.error = "error", e
            return ""
        self.tokens.append(token)
        if self.sampler.params.logprobs is not None:
            self.logprobs.append(logprobs(logits, token, self.sampler.params.logprobs))
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
        """Position (3,) of the token that was chosen last: each axis counts on from the prompt's last token.

        Source: `_update_model_kwargs_for_generation` (generation/utils.py). `rope_deltas`, which start one past the
        highest position, differ: a long video has t indices past those of a short text after it.
        """
        return self.prompt.position_ids[:, -1] + len(self.tokens)

    def identity(self) -> np.ndarray:
        """All that keys and values depend on: of each token, prompt and answer, id, type, position, content; (n, 8).

        Rows of the KV cache that begin with equal identities hold equal keys and values up to there, since attention
        is causal. A token of the answer went through the text experts, as it does in a prompt.
        """
        prompt = self.prompt
        asked = [prompt.input_ids[:, None], prompt.token_types[:, None], prompt.position_ids.T, prompt.content]
        answered = np.zeros((len(self.tokens), 8), np.int64)
        answered[:, 0] = self.tokens
        answered[:, 2:5] = prompt.position_ids[:, -1] + 1 + np.arange(len(self.tokens))[:, None]
        return np.concatenate([np.concatenate(asked, axis=1), answered])


class Batch:
    """Sequences over one KV cache: the running ones in its first rows, then one in prefill, then finished ones.

    Used from one thread at a time.
    """

    def __init__(self, engine: Engine, rows: int, capacity: int, budget: int = 0, reuse: bool = True) -> None:
        """`rows`: sequences that decode together; `capacity`: tokens of the longest, prompt and answer.

        `budget`: bytes that the cache may grow to as longer sequences come, with fewer rows where it must be; 0 keeps
        it as it is made. `reuse`: keep what finished sequences left in the cache.
        """
        self._engine = engine
        self._cache: KVCache = engine.new_cache(rows, capacity)
        self._rows, self._reuse = rows, reuse
        self.tokens = budget // self._cache.token_bytes or rows * capacity  # the most that all rows have room for
        self._kept: dict[int, np.ndarray] = {}  # identities of finished sequences by row, least recently used first
        self.running: list[Sequence] = []  # by row
        self.entering: Sequence | None = None

    @property
    def full(self) -> bool:
        """Whether every row is in use."""
        return len(self.running) == self._cache.rows

    def add(self, sequence: Sequence) -> str:
        """Prefill a sequence into the next row and choose its first token; returns the text that it completes."""
        if not self.enter(sequence):
            found, rows, capacity = sequence.capacity(), self._cache.rows, self._cache.capacity
            raise ValueError(f"a sequence of {found} tokens for a cache of {rows} rows of {capacity}")
        while (piece := self.advance()) is None:
            pass
        return piece

    def enter(self, sequence: Sequence) -> bool:
        """Give a sequence the next row, with what is known of its prompt; False if it has to wait for others to end."""
        if self.entering is not None or not self._make_room(sequence.capacity()):
            return False
        source, shared = self._longest_prefix(sequence) if self._reuse else (0, 0)
        row = len(self.running)
        whole = source in self._kept and shared == len(self._kept[source])
        freed = source if whole else self._least_recently_used()
        if freed == source:
            self._swap(source, row)
        else:
            self._move(row, freed)  # which leaves the values where they are, too: they may be the ones to share
            if source != row:
                self._cache.copy_row(source, row, shared)
        self._kept.pop(row, None)
        self._cache.lengths[row] = sequence.reused = shared
        self.entering = sequence
        return True

    def advance(self) -> str | None:
        """Prefill one chunk of the entering sequence; the last one returns its first token's text, the others None."""
        sequence, row = self.entering, len(self.running)
        assert sequence is not None, "nothing has entered"
        start, length = int(self._cache.lengths[row]), len(sequence.prompt.input_ids)
        stop = min(start + (CHUNK_BETWEEN_STEPS if self.running else CHUNK), length)
        logits = self._engine.prefill(self._cache, row, sequence.prompt.chunk(start, stop))
        if stop < length:
            return None
        self.entering = None
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

    def remove(self, sequence: Sequence) -> None:
        """End a sequence before its time; its row is free at once."""
        if sequence is self.entering:
            self.entering = None
            self._keep(len(self.running), sequence)
        elif sequence in self.running:
            self._leave(self.running.index(sequence))

    def forget(self) -> None:
        """Take over nothing from what finished sequences left."""
        self._kept.clear()

    def _drop_finished(self) -> None:
        for row in reversed(range(len(self.running))):
            if self.running[row].finish_reason:
                self._leave(row)

    def _leave(self, row: int) -> None:
        """Close the gap: the last running sequence takes the row, and the one in prefill stays next to the running."""
        sequence, last = self.running[row], len(self.running) - 1
        self._swap(row, last)
        self.running[row] = self.running[last]
        self.running.pop()
        if self.entering is not None:
            self._swap(last, last + 1)
            last += 1
        self._keep(last, sequence)

    def _keep(self, row: int, sequence: Sequence) -> None:
        """Note what the row holds: everything but the answer's last token, which has not been through the model."""
        if self._reuse and sequence.error is None and self._cache.lengths[row]:
            self._kept[row] = sequence.identity()[: self._cache.lengths[row]]

    def _longest_prefix(self, sequence: Sequence) -> tuple[int, int]:
        """The row that begins with most of the prompt, and how many tokens: never all, the last gives the logits."""
        wanted = sequence.identity()[:-1]
        running = {row: other.identity()[: self._cache.lengths[row]] for row, other in enumerate(self.running)}
        shared = {row: _common(identity, wanted) for row, identity in (running | self._kept).items()}
        return max(shared.items(), key=lambda item: item[1], default=(0, 0))

    def _least_recently_used(self) -> int:
        """A row to overwrite: an empty one, or the one kept for longest."""
        free = set(range(len(self.running), self._cache.rows)) - self._kept.keys()
        return min(free) if free else next(iter(self._kept))

    def _swap(self, one: int, other: int) -> None:
        if one != other:
            self._cache.swap_rows(one, other)
            self._relabel({one: other, other: one})

    def _move(self, row: int, target: int) -> None:
        """Let `target` keep what `row` keeps, if anything, in place of what it kept."""
        if row != target:
            self._kept.pop(target, None)
            if row in self._kept:
                self._cache.copy_row(row, target, len(self._kept[row]))
                self._relabel({row: target})

    def _relabel(self, rows: dict[int, int]) -> None:
        self._kept = {rows.get(row, row): identity for row, identity in self._kept.items()}

    def _make_room(self, tokens: int) -> bool:
        """Whether one more sequence of so many tokens fits, if need be after a change of the cache's shape.

        Its rows are as long as the longest running sequence needs, and then as many as the budget allows.
        """
        cache, busy = self._cache, len(self.running)
        if busy < cache.rows and tokens <= cache.capacity:
            return True
        longest = max([tokens, *(sequence.capacity() for sequence in self.running)])
        if longest > cache.capacity:  # by a factor, so that a conversation that grows is seldom copied
            longest = max(longest, min(2 * cache.capacity, self.tokens // self._rows))
        capacity = min(-(-longest // CAPACITY_STEP) * CAPACITY_STEP, self.tokens)
        rows = min(self._rows, self.tokens // capacity)
        if capacity < longest or rows <= busy:
            return False
        used = list(self._kept)[busy - rows :]  # the most recently used that have a place
        self._cache = cache.resized([*range(busy), *used], rows, capacity)
        self._kept = {busy + place: self._kept[row][:capacity] for place, row in enumerate(used)}
        return True


def _common(one: np.ndarray, other: np.ndarray) -> int:
    """How many rows two arrays (n, 8) and (m, 8) have in common from the first on."""
    length = min(len(one), len(other))
    differs = (one[:length] != other[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length
