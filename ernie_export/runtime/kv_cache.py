"""The KV cache: one buffer of fixed capacity a layer, rows of which prefill and decode use in place."""

from typing import Self

import numpy as np


class KVCache:
    """Keys and values of every layer, (rows, kv heads, capacity, head size) each, and each row's length in tokens.

    A row is contiguous in memory, so a prefill of one request binds its row alone, and a decode step the first n rows.
    What lies past a row's length means nothing: a shorter length forgets tokens. `token_bytes`: what a token takes.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, dtype: np.dtype) -> None:
        shape = (rows, kv_heads, capacity, head_dim)
        # Zeros come from fresh pages: memory is used as tokens arrive, not at once.
        self.keys = [np.zeros(shape, dtype) for _ in range(layers)]
        self.values = [np.zeros(shape, dtype) for _ in range(layers)]
        self.lengths = np.zeros(rows, np.int64)
        self.rows = rows
        self.capacity = capacity
        self.token_bytes = 2 * layers * kv_heads * head_dim * np.dtype(dtype).itemsize

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of row `source` over row `target`, which then holds just them."""
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length

    def swap_rows(self, one: int, other: int) -> None:
        """Exchange two rows, tokens in use only."""
        first, second = (int(length) for length in self.lengths[[one, other]])
        for buffer in (*self.keys, *self.values):
            held = buffer[one, :, :first].copy()
            buffer[one, :, :second] = buffer[other, :, :second]
            buffer[other, :, :first] = held
        self.lengths[[one, other]] = second, first

    def resized(self, kept: list[int], rows: int, capacity: int) -> Self:
        """A cache of another shape whose first rows are the `kept` ones, cut to its capacity. Empties this one.

        Layer by layer, so that no moment holds more than one layer twice.
        """
        layers, (_, kv_heads, _, head_dim) = len(self.keys), self.keys[0].shape
        resized = type(self)(layers, rows, kv_heads, capacity, head_dim, self.keys[0].dtype)
        lengths = np.minimum(self.lengths[kept], capacity)
        for old, new in ((self.keys, resized.keys), (self.values, resized.values)):
            for layer, buffer in enumerate(old):
                for row, (source, length) in enumerate(zip(kept, lengths, strict=True)):
                    new[layer][row, :, :length] = buffer[source, :, :length]
                old[layer] = buffer[:0, :, :0].copy()
        resized.lengths[: len(kept)] = lengths
        self.lengths[:] = 0
        return resized
