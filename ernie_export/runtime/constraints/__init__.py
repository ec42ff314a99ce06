"""Constrained decoding: at each step, the tokens with which an answer can still have the form asked for.

- `compiler`: from a form (`StructuredOutputs`) to a grammar over the tokenizer's vocabulary, by llguidance.
- `grammar`: the state of one answer within it.
- `faults`: where in a JSON schema that was refused the fault lies.
- `prefetch`: the masks of a batch, computed while the model computes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenMask:
    """The tokens that may follow, a bit for each.

    Attributes:
        words: Bits int32 (ceil(vocabulary / 32),): token i is bit i % 32 of word i // 32. Those past the vocabulary
            are not read.
    """

    words: NDArray[np.int32]

    def allows(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of the token ids (n,) may follow."""
        flags: NDArray[np.bool_] = (self.words[ids >> 5] >> (ids & 31) & 1).astype(np.bool_)
        return flags

    def allows_one(self, id: int) -> bool:
        """Return whether a token may follow: much faster than `allows` of one."""
        return bool(self.words.item(id >> 5) >> (id & 31) & 1)

    def count(self) -> int:
        """Return how many bits are set."""
        return int.from_bytes(self.words.tobytes(), "little").bit_count()  # NumPy 1, in Triton, has no bitwise_count

    def ids(self, vocab_size: int) -> NDArray[np.int64]:
        """Return the ids (n,) that may follow, ascending. It takes long where they are many."""
        used = np.flatnonzero(self.words)
        bits = np.unpackbits(self.words[used].view(np.uint8), bitorder="little").reshape(-1, 32)
        word, bit = np.nonzero(bits)
        ids = 32 * used[word] + bit
        return ids[: np.searchsorted(ids, vocab_size)]

    def flags(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return for each token of the vocabulary (V,) whether it may follow."""
        return np.unpackbits(self.words.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)

    def without(self, ids: NDArray[np.int64]) -> "TokenMask":
        """Return the mask without the token ids (n,); as it is if nothing else is allowed."""
        words = self.words.copy()
        np.bitwise_and.at(words, ids >> 5, ~(np.int32(1) << (ids & 31).astype(np.int32)))
        return TokenMask(words) if words.any() else self
