"""The KV cache: one buffer of fixed capacity a layer, rows of which prefill and decode use in place."""

import numpy as np


class KVCache:
    """Keys and values of every layer, (rows, kv heads, capacity, head size) each, and each row's length in tokens.

    A row is contiguous in memory, so a prefill of one request binds its row alone, and a decode step the first n rows.
    """

    def __init__(self, layers: int, rows: int, kv_heads: int, capacity: int, head_dim: int, dtype: np.dtype) -> None:
        shape = (rows, kv_heads, capacity, head_dim)
        # Zeros come from fresh pages: memory is used as tokens arrive, not at once.
        self.keys = [np.zeros(shape, dtype) for _ in range(layers)]
        self.values = [np.zeros(shape, dtype) for _ in range(layers)]
        self.lengths = np.zeros(rows, np.int64)
        self.capacity = capacity

    def move_row(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`, tokens in use only."""
        length = self.lengths[source]
        for buffer in (*self.keys, *self.values):
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length
