"""Sequences that decode together: each prompt is prefilled into a slot of the KV cache, then all slots decode.

Slots have their own lengths, so requests of unequal length need no padding: a prefill works on one slot, a decode step
appends one token to every slot in use. The slot of a finished sequence is kept until it is needed: a prompt that begins
with the same tokens, as the next turn of a conversation does, reuses them and prefills only what is new.
"""

import time
from typing import Generic

import numpy as np

from ernie_export.runtime.answer_text import Piece
from ernie_export.runtime.constraints.prefetch import MaskPrefetcher
from ernie_export.runtime.engines import CacheT, ChoosesChunks, Engine, PrefillChunks
from ernie_export.runtime.sequence import Sequence

# A cache that grows has a length that is a multiple of this.
LENGTH_STEP = 64


class Batch(Generic[CacheT]):
    """A batch over one KV cache, used from one thread at a time.

    Slot order: first the sequences that decode, then the one in prefill (if any), then those of finished sequences,
    kept for prefix reuse.

    Attributes:
        max_cached_tokens: Most tokens that the cache may hold, all slots together.
        running: The sequences that decode, by slot.
        entering: The sequence in prefill.
        prefill_chunk: Most prompt tokens in one prefill call.
        prefill_chunk_while_decoding: The same while other sequences decode.
    """

    def __init__(
        self,
        engine: Engine[CacheT],
        *,
        num_slots: int,
        max_seq_len: int,
        cache_bytes: int = 0,
        enable_prefix_caching: bool = True,
        prefill_chunk: int | None = None,
        prefill_chunk_while_decoding: int | None = None,
    ) -> None:
        """Allocate the cache.

        Args:
            engine: Runs the graphs.
            num_slots: Most sequences that decode together.
            max_seq_len: Tokens of the longest at first, prompt and answer.
            cache_bytes: Bytes that the cache may grow to as longer sequences come, with fewer slots if need be; 0 keeps
                it as it is made.
            enable_prefix_caching: Whether to keep what finished sequences left in the cache.
            prefill_chunk: Most prompt tokens in one prefill call; None leaves it to the engine, whose limit holds too.
            prefill_chunk_while_decoding: The same while other sequences decode, which wait for it.
        """
        self._engine = engine
        self._cache = engine.new_cache(num_slots, max_seq_len)
        self._num_slots = num_slots
        self._enable_prefix_caching = enable_prefix_caching
        chunks = engine.prefill_chunks if isinstance(engine, ChoosesChunks) else PrefillChunks()
        self.prefill_chunk = min(prefill_chunk or chunks.alone, engine.max_prefill_chunk)
        self.prefill_chunk_while_decoding = min(
            prefill_chunk_while_decoding or chunks.while_decoding, engine.max_prefill_chunk
        )
        self.max_cached_tokens = cache_bytes // self._cache.token_bytes or num_slots * max_seq_len
        self._kept: dict[int, np.ndarray] = {}  # identities of finished sequences by slot, least recently used first
        self._masks = MaskPrefetcher()
        self.running: list[Sequence] = []
        self.entering: Sequence | None = None

    @property
    def full(self) -> bool:
        """Whether every slot is in use."""
        return len(self.running) == self._cache.num_slots

    def add(self, sequence: Sequence) -> Piece:
        """Prefill a sequence into the next slot and choose its first token; returns what it completes.

        Raises ValueError if the cache cannot hold it.
        """
        if not self.enter(sequence):
            tokens = sequence.num_tokens_reserved()
            cache = f"{self._cache.num_slots} slots of {self._cache.max_seq_len}"
            raise ValueError(f"a sequence of {tokens} tokens for a cache of {cache}")
        while (piece := self.advance()) is None:
            pass
        return piece

    def enter(self, sequence: Sequence) -> bool:
        """Give a sequence the next slot, with what the cache holds of its prompt.

        Returns False if it has to wait for others to end.
        """
        if self.entering is not None or not self._free_slots(sequence.num_tokens_reserved()):
            return False
        reuses = self._enable_prefix_caching and not sequence.scores_prompt
        source, shared = self._longest_prefix(sequence) if reuses else (0, 0)
        slot = len(self.running)
        all_shared = source in self._kept and shared == len(self._kept[source])
        evicted = source if all_shared else self._least_recently_used()
        if evicted == source:
            self._swap(source, slot)
        else:
            self._move(slot, evicted)  # which leaves the values where they are, too: they may be the ones to share
            if source != slot:
                self._cache.copy_slot(source, slot, shared)
        self._kept.pop(slot, None)
        self._cache.lengths[slot] = sequence.reused = shared
        sequence.entered = time.monotonic()
        self.entering = sequence
        return True

    def advance(self) -> Piece | None:
        """Prefill one chunk of the entering sequence.

        Returns what its first token completes after the last chunk, None after the others. Raises RuntimeError if no
        sequence is in prefill.
        """
        sequence = self.entering
        if sequence is None:
            raise RuntimeError("no sequence is in prefill")
        slot = len(self.running)
        start = int(self._cache.lengths[slot])
        length = len(sequence.prompt.input_ids)
        chunk = self.prefill_chunk_while_decoding if self.running else self.prefill_chunk
        stop = min(start + (1 if sequence.scores_prompt else chunk), length)
        logits = self._engine.prefill(self._cache, slot, sequence.prompt.chunk(start, stop))
        if stop < length:
            if sequence.scores_prompt:
                sequence.score(logits)
            return None
        self.entering = None
        self.running.append(sequence)
        piece = sequence.take(logits)
        self._drop_finished()
        return piece

    def step(self) -> list[tuple[Sequence, Piece]]:
        """Append one token to every running sequence; returns each with what its token completes."""
        sequences = list(self.running)
        tokens = np.array([sequence.tokens[-1] for sequence in sequences])
        positions = np.stack([sequence.position for sequence in sequences], axis=1)
        with self._masks.ahead([s.sampler.constraint for s in sequences if s.sampler.constraint is not None]):
            logits = self._engine.decode(self._cache, tokens, positions)
        pieces = [sequence.take(values) for sequence, values in zip(sequences, logits, strict=True)]
        self._drop_finished()
        return list(zip(sequences, pieces, strict=True))

    def remove(self, sequence: Sequence) -> None:
        """End a sequence before its time; its slot is free at once."""
        if sequence is self.entering:
            self.entering = None
            self._keep(len(self.running), sequence)
        elif sequence in self.running:
            self._leave(self.running.index(sequence))

    def forget(self) -> None:
        """Reuse nothing of what finished sequences left."""
        self._kept.clear()

    def _drop_finished(self) -> None:
        for slot in reversed(range(len(self.running))):
            if self.running[slot].finish_reason:
                self._leave(slot)

    def _leave(self, slot: int) -> None:
        """Close the gap: the last running sequence takes the slot, and the one in prefill stays next to the running."""
        sequence = self.running[slot]
        last = len(self.running) - 1
        self._swap(slot, last)
        self.running[slot] = self.running[last]
        self.running.pop()
        if self.entering is not None:
            self._swap(last, last + 1)
            last += 1
        self._keep(last, sequence)

    def _keep(self, slot: int, sequence: Sequence) -> None:
        """Record what the slot holds: all but the answer's last token, which has not been through the model."""
        if self._enable_prefix_caching and sequence.error is None and self._cache.lengths[slot]:
            self._kept[slot] = sequence.identity()[: self._cache.lengths[slot]]

    def _longest_prefix(self, sequence: Sequence) -> tuple[int, int]:
        """Return the slot that begins with most of the prompt, and how many tokens.

        It is never the whole prompt, whose last token gives the logits.
        """
        wanted = sequence.identity()[:-1]
        running = {slot: other.identity()[: self._cache.lengths[slot]] for slot, other in enumerate(self.running)}
        shared = {slot: _common_length(identity, wanted) for slot, identity in (running | self._kept).items()}
        return max(shared.items(), key=lambda item: item[1], default=(0, 0))

    def _least_recently_used(self) -> int:
        """Return a slot to overwrite: an empty one, or the one kept for longest."""
        free = set(range(len(self.running), self._cache.num_slots)) - self._kept.keys()
        return min(free) if free else next(iter(self._kept))

    def _swap(self, first: int, second: int) -> None:
        if first != second:
            self._cache.swap_slots(first, second)
            self._relabel({first: second, second: first})

    def _move(self, slot: int, target: int) -> None:
        """Let `target` keep what `slot` keeps, if anything, in place of what it kept."""
        if slot != target:
            self._kept.pop(target, None)
            if slot in self._kept:
                self._cache.copy_slot(slot, target, len(self._kept[slot]))
                self._relabel({slot: target})

    def _relabel(self, slots: dict[int, int]) -> None:
        self._kept = {slots.get(slot, slot): identity for slot, identity in self._kept.items()}

    def _free_slots(self, tokens: int) -> bool:
        """Return whether one more sequence of so many tokens fits, if need be after a change of the cache's shape.

        Its slots are as long as the longest running sequence needs, and then as many as the bytes allow.
        """
        cache = self._cache
        busy = len(self.running)
        if busy < cache.num_slots and tokens <= cache.max_seq_len:
            return True
        longest = max([tokens, *(sequence.num_tokens_reserved() for sequence in self.running)])
        if longest > cache.max_seq_len:  # by a factor, so that a conversation that grows is seldom copied
            longest = max(longest, min(2 * cache.max_seq_len, self.max_cached_tokens // self._num_slots))
        max_seq_len = min(-(-longest // LENGTH_STEP) * LENGTH_STEP, self.max_cached_tokens)
        num_slots = min(self._num_slots, self.max_cached_tokens // max_seq_len)
        if max_seq_len < longest or num_slots <= busy:
            return False
        used = list(self._kept)[busy - num_slots :]  # the most recently used for which there is a slot
        self._cache = cache.resized([*range(busy), *used], num_slots, max_seq_len)
        self._kept = {busy + index: self._kept[slot][:max_seq_len] for index, slot in enumerate(used)}
        return True


def _common_length(first: np.ndarray, second: np.ndarray) -> int:
    """Return how many rows two arrays (n, 8) and (m, 8) have in common from the first on."""
    length = min(len(first), len(second))
    differs = (first[:length] != second[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length
