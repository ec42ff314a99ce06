"""The KV cache in device memory, by addresses, and the memory that caches hand on to each other."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from ernie_export.runtime.engines.device.memory import Memory


class KVCacheStore:
    """The device memory of one cache at a time.

    It has a buffer for the keys of every layer, then one for the values of every layer. Each has a slot more than the
    cache, to swap slots with.

    Attributes:
        shape: (num_slots, kv heads, max_seq_len, head size) of each buffer.
        address: Where the first buffer begins.
        token_bytes: Bytes per token across all layers.
    """

    def __init__(self, memory: Memory, shape: tuple[int, int, int, int], item_bytes: int, num_buffers: int) -> None:
        """Allocate a store.

        Args:
            memory: The device's memory.
            shape: As the attribute.
            item_bytes: Bytes of one element.
            num_buffers: Twice the number of layers.

        Raises:
            UserError: If there is too little memory.
        """
        self.shape = shape
        self._memory = memory
        self._item_bytes = item_bytes
        self._num_buffers = num_buffers
        self._slot_bytes = math.prod(shape[1:]) * item_bytes
        self.token_bytes = num_buffers * self._slot_bytes // shape[2]
        self.address = memory.allocate(num_buffers * (shape[0] + 1) * self._slot_bytes)

    def slot_address(self, buffer: int, slot: int) -> int:
        """Return where a slot of a buffer begins."""
        return self.address + (buffer * (self.shape[0] + 1) + slot) * self._slot_bytes

    def copy_slots(self, moves: list[tuple[int, int]]) -> None:
        """Copy slots in every buffer, in order: (target, source) of each."""
        self._memory.copy(
            (self.slot_address(buffer, target), self.slot_address(buffer, source), self._slot_bytes)
            for buffer in range(self._num_buffers)
            for target, source in moves
        )

    def copy_tokens(self, other: "KVCacheStore", slots: list[tuple[int, int]]) -> None:
        """Copy the first tokens of slots of this store to the first slots of another: (slot, tokens) of each."""
        _, num_heads, max_seq_len, head_dim = self.shape
        head_token_bytes = head_dim * self._item_bytes
        pieces = []
        for buffer in range(self._num_buffers):
            for target, (source, length) in enumerate(slots):
                for head in range(num_heads):
                    to = other.slot_address(buffer, target) + head * other.shape[2] * head_token_bytes
                    from_ = self.slot_address(buffer, source) + head * max_seq_len * head_token_bytes
                    pieces.append((to, from_, length * head_token_bytes))
        self._memory.copy(pieces)

    def free(self) -> None:
        """Give the memory back."""
        self._memory.free(self.address)


class DeviceKVCache:
    """A `KVCache` in device memory.

    Attributes:
        store: Its memory, which outlives it and serves another cache.
    """

    def __init__(self, store: KVCacheStore, new_cache: Callable[[int, int], Self]) -> None:
        """Make an empty cache of a store. `new_cache`: the engine's, of so many slots and tokens."""
        self.store = store
        self.num_slots = store.shape[0]
        self.max_seq_len = store.shape[2]
        self.token_bytes = store.token_bytes
        self.lengths = np.zeros(self.num_slots, np.int64)
        self._new_cache = new_cache

    def copy_slot(self, source: int, target: int, length: int) -> None:
        """Copy a slot whole: it lies in one piece, which is as quick on a device as its first tokens."""
        self.store.copy_slots([(target, source)])
        self.lengths[target] = length

    def swap_slots(self, first: int, second: int) -> None:
        """Exchange two slots by way of the store's spare one."""
        spare = self.num_slots
        self.store.copy_slots([(spare, first), (first, second), (second, spare)])
        self.lengths[[first, second]] = self.lengths[[second, first]]

    def resized(self, kept: list[int], num_slots: int, max_seq_len: int) -> Self:
        """Return a cache of another shape. Both are in memory for a moment."""
        resized = self._new_cache(num_slots, max_seq_len)
        lengths = np.minimum(self.lengths[kept], max_seq_len)
        self.store.copy_tokens(resized.store, list(zip(kept, lengths.tolist(), strict=True)))
        resized.lengths[: len(kept)] = lengths
        self.lengths[:] = 0
        return resized


@dataclass(frozen=True)
class KVCacheLayout:
    """The sizes of a cache that are the model's and the engine's.

    Attributes:
        num_layers: Layers, each with keys and values.
        num_kv_heads: Key-value heads.
        head_dim: Elements of one head.
        item_bytes: Bytes of one element.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    item_bytes: int


class KVCachePool:
    """The stores of one engine. A dropped cache leaves its store to the next cache of the same shape."""

    def __init__(self, memory: Memory, layout: KVCacheLayout, on_free: Callable[[KVCacheStore], None]) -> None:
        """Start with no stores.

        Args:
            memory: The device's memory.
            layout: Sizes that all caches share.
            on_free: Called before a store is freed, to free what is bound to its addresses.
        """
        self._memory = memory
        self._layout = layout
        self._on_free = on_free
        self._spare: list[KVCacheStore] = []

    def new_cache(
        self, num_slots: int, max_seq_len: int, new_cache: Callable[[int, int], DeviceKVCache]
    ) -> DeviceKVCache:
        """Return an empty cache.

        Args:
            num_slots: Its slots.
            max_seq_len: Tokens of a slot.
            new_cache: What the cache makes a cache of another shape with.

        Returns:
            The cache, in a spare store that fits exactly or else in a new one, for which the spare ones are freed.

        Raises:
            UserError: If there is too little memory.
        """
        shape = (num_slots, self._layout.num_kv_heads, max_seq_len, self._layout.head_dim)
        store = next((spare for spare in self._spare if spare.shape == shape), None)
        if store is not None:
            self._spare.remove(store)
        else:
            while self._spare:
                spare = self._spare.pop()
                self._on_free(spare)
                spare.free()
            store = KVCacheStore(self._memory, shape, self._layout.item_bytes, 2 * self._layout.num_layers)
        cache = DeviceKVCache(store, new_cache)
        weakref.finalize(cache, self._spare.append, store)
        return cache

    def clear(self) -> None:
        """Forget the spare stores; closing the memory frees them."""
        self._spare.clear()
