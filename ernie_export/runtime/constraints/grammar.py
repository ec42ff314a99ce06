"""A compiled form, and the state of one answer within it."""

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.constraints import TokenMask


class Grammar:
    """A compiled form. Any number of answers may start from it."""

    def __init__(self, matcher: LLMatcher, vocab_size: int, name: str, eos_token_ids: Sequence[int]) -> None:
        """Keep a compiled form.

        Args:
            matcher: llguidance's matcher at the start of an answer.
            vocab_size: Logits of a token.
            name: How the request names the form.
            eos_token_ids: Ids that end an answer.
        """
        self.matcher = matcher
        self.vocab_size = vocab_size
        self.name = name
        self.eos = np.array(eos_token_ids, np.int64)

    def start(self, after: int | None = None, ignore_eos: bool = False) -> "GrammarState":
        """Return the state of a new answer.

        Args:
            after: The token up to which the answer is free, such as the one that ends thoughts; None if it is not.
            ignore_eos: Whether the answer goes on as long as it can.
        """
        return GrammarState(self, after, ignore_eos)


class GrammarState:
    """The state of one answer within a grammar."""

    def __init__(self, grammar: Grammar, after: int | None, ignore_eos: bool) -> None:
        self.name = grammar.name
        self._matcher = grammar.matcher.deep_copy()
        self._after = after
        self._vocab_size = grammar.vocab_size
        self._masked = grammar.eos if ignore_eos else grammar.eos[:0]
        self._bits = np.zeros(-(-grammar.vocab_size // 32), np.int32)
        self._before = TokenMask(np.unique(grammar.eos), forbidden=True)
        self._next: TokenMask | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, and nothing can be added to it."""
        return self._after is None and self._matcher.is_stopped() and not self._matcher.is_error()

    def prepare(self) -> None:
        """Compute the next mask ahead. Other threads run meanwhile: llguidance lets go of the interpreter's lock."""
        if self._after is None and self._next is None and not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
            self._next = to_mask(self._bits, self._vocab_size, self._masked)

    def mask(self) -> TokenMask | None:
        """Return the tokens that may follow. Raises InvalidValue for a form that takes too long.

        Before the form begins all may but the end: an answer of thoughts alone would not have the form.
        """
        if self._after is not None:
            return self._before
        self.prepare()
        if self._next is None or self._matcher.is_error():
            raise InvalidValue(self.name, "a form that can be followed step by step", refusal(self._matcher))
        return self._next

    def accept(self, token: int) -> None:
        """Go on to the state after `token`."""
        self._next = None
        if self._after is None:
            self._matcher.consume_token(token)
        elif token == self._after:
            self._after = None


def to_mask(bits: NDArray[np.int32], vocab_size: int, without: NDArray[np.int64]) -> TokenMask:
    """Return the mask of a bit for each token, the first in the lowest bit.

    The ids of `without` (n,) are masked too, unless nothing else is allowed.
    """
    allowed = np.unpackbits(bits.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
    count = int(np.count_nonzero(allowed))
    if len(without) and count > np.count_nonzero(allowed[without]):
        allowed[without] = False
    forbidden = 2 * count > vocab_size
    return TokenMask(np.flatnonzero(~allowed if forbidden else allowed), forbidden)


def refusal(matcher: LLMatcher) -> str:
    """Return what llguidance says is wrong, in one line."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    lines = [line for line in lines if line != "<non-verbose/>"]
    return one_line(" ".join(lines) or "none", 200)
