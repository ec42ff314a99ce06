"""The KV cache: keys and values of several sequences, in slots that prefill and decode update in place."""

from typing import Protocol, Self

import numpy as np


class KVCache(Protocol):
    """The keys and values of every layer for `num_slots` sequences of up to `max_seq_len` tokens.

    A slot is contiguous in memory, so prefill binds one slot alone, and a decode step the first n slots.

    Attributes:
        lengths: Tokens in each slot (num_slots,) int64. Entries beyond a length are undefined; decreasing a length
            drops tokens.
        num_slots: Number of sequences.
        max_seq_len: Most tokens of one sequence.
        token_bytes: Bytes per token across all layers.
    """

    lengths: np.ndarray
    num_slots: int
    max_seq_len: int
    token_bytes: int

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` over slot `target`, which then holds just them."""
        ...

    def swap_slots(self, first: int, second: int) -> None:
        """Exchange the contents of two slots."""
        ...

    def resized(self, kept: list[int], num_slots: int, max_seq_len: int) -> Self:
        """Return a cache of another shape and empty this one.

        Args:
            kept: Slots that become the first ones of the new cache, each cut to its `max_seq_len`.
            num_slots: Number of slots of the new cache.
            max_seq_len: Tokens of one slot of the new cache.

        Returns:
            The new cache.
        """
        ...


class HostKVCache:
    """A `KVCache` in the host's memory.

    Attributes:
        keys: Keys of each layer (num_slots, kv heads, max_seq_len, head size).
        values: Values of each layer, likewise.
    """

    def __init__(
        self, *, num_layers: int, num_slots: int, num_kv_heads: int, max_seq_len: int, head_dim: int, dtype: np.dtype
    ) -> None:
        """Allocate an empty cache. Zeros come from fresh pages: memory is used as tokens arrive, not at once."""
        shape = (num_slots, num_kv_heads, max_seq_len, head_dim)
        self.keys = [np.zeros(shape, dtype) for _ in range(num_layers)]
        self.values = [np.zeros(shape, dtype) for _ in range(num_layers)]
        self.lengths = np.zeros(num_slots, np.int64)
        self.num_slots = num_slots
        self.max_seq_len = max_seq_len
        self.token_bytes = 2 * num_layers * num_kv_heads * head_dim * dtype.itemsize

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of slot `source` over slot `target`."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length

    def swap_slots(self, first: int, second: int) -> None:
        """Exchange two slots, copying only the tokens that are in use."""
        first_length = int(self.lengths[first])
        second_length = int(self.lengths[second])
        for buffer in (*self.keys, *self.values):
            spare = buffer[first, :, :first_length].copy()
            buffer[first, :, :second_length] = buffer[second, :, :second_length]
            buffer[second, :, :first_length] = spare
        self.lengths[first] = second_length
        self.lengths[second] = first_length

    def resized(self, kept: list[int], num_slots: int, max_seq_len: int) -> Self:
        """Return a cache of another shape, layer by layer, so that no moment holds more than one layer twice."""
        _, num_kv_heads, _, head_dim = self.keys[0].shape
        resized = type(self)(
            num_layers=len(self.keys),
            num_slots=num_slots,
            num_kv_heads=num_kv_heads,
            max_seq_len=max_seq_len,
            head_dim=head_dim,
            dtype=self.keys[0].dtype,
        )
        lengths = np.minimum(self.lengths[kept], max_seq_len)
        for old, new in ((self.keys, resized.keys), (self.values, resized.values)):
            for layer, buffer in enumerate(old):
                for slot, (source, length) in enumerate(zip(kept, lengths, strict=True)):
                    new[layer][slot, :, :length] = buffer[source, :, :length]
                old[layer] = buffer[:0, :, :0].copy()
        resized.lengths[: len(kept)] = lengths
        self.lengths[:] = 0
        return resized
