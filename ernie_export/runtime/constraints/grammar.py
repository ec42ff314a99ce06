"""A compiled form, and the state of one answer within it."""

from collections.abc import Sequence

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.constraints import TokenMask


class Grammar:
    """A compiled form. Any number of answers may start from it.

    Attributes:
        matcher: llguidance's matcher at the start of an answer.
        name: How the request names the form.
        eos: Ids (n,) that end an answer.
        before: The mask until the form begins: all tokens but those that end an answer.
    """

    def __init__(self, matcher: LLMatcher, vocab_size: int, name: str, eos_token_ids: Sequence[int]) -> None:
        """Keep a compiled form.

        Args:
            matcher: llguidance's matcher at the start of an answer.
            vocab_size: Logits of a token.
            name: How the request names the form.
            eos_token_ids: Ids that end an answer.
        """
        self.matcher = matcher
        self.name = name
        self.eos = np.array(eos_token_ids, np.int64)
        self.before = TokenMask(np.full(-(-vocab_size // 32), -1, np.int32)).without(self.eos)

    def start(self, after: int | None = None, ignore_eos: bool = False) -> "GrammarState":
        """Return the state of a new answer.

        Args:
            after: The token up to which the answer is free, such as the one that ends thoughts; None if it is not.
            ignore_eos: Whether the answer goes on as long as it can.
        """
        return GrammarState(self, after, ignore_eos)


class GrammarState:
    """The state of one answer within a grammar.

    Attributes:
        name: How the request names the form, for errors.
    """

    def __init__(self, grammar: Grammar, after: int | None, ignore_eos: bool) -> None:
        self.name = grammar.name
        self._grammar = grammar
        self._matcher = grammar.matcher.deep_copy()
        self._after = after
        self._masked = grammar.eos if ignore_eos else grammar.eos[:0]
        self._next: TokenMask | None = None

    @property
    def finished(self) -> bool:
        """Whether the answer is complete, and nothing can be added to it."""
        return self._after is None and self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self) -> TokenMask:
        """Return the tokens that may follow. Raises InvalidValue for a form that takes too long.

        Before the form begins all may but the end: an answer of thoughts alone would not have the form.
        """
        if self._after is not None:
            return self._grammar.before
        if self._next is None:
            bits = np.zeros((1, len(self._grammar.before.words)), np.int32)
            fill_next_token_bitmask(self._matcher, bits)
            self._take(bits[0])
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

    def _take(self, words: NDArray[np.int32]) -> None:
        mask = TokenMask(words)
        self._next = mask.without(self._masked) if len(self._masked) else mask


def compute_masks(states: Sequence[GrammarState], executor: LLExecutor) -> None:
    """Compute the next masks of several answers in threads of the executor; threads of Python run meanwhile.

    No other method of the states may run until this returns.
    """
    begun = [state for state in states if state._after is None and state._next is None]
    if begun:
        bits = np.zeros((len(begun), len(begun[0]._grammar.before.words)), np.int32)
        matchers = [(state._matcher, row) for row, state in enumerate(begun)]
        fill_next_token_bitmask_par(executor, matchers, bits)
        for state, words in zip(begun, bits, strict=True):
            state._take(words)


def refusal(matcher: LLMatcher) -> str:
    """Return what llguidance says is wrong, in one line."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()]
    lines = [line for line in lines if line != "<non-verbose/>"]
    return one_line(" ".join(lines) or "none", 200)
