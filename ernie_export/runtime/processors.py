"""What changes logits before a token is chosen, one object for each option, in vLLM's order.

Those that mask or shift logits always apply: the form of the answer, allowed_token_ids, bad_words, min_new_tokens,
logit_bias, the penalties. Those of a distribution only apply when sampling (temperature above 0): temperature, min_p,
top_k, top_p. Source: `Sampler.forward` (vllm/v1/sample/sampler.py). Where transformers has the processor, the formula
is the same; its order is the repetition penalty, the mask of `min_new_tokens`, temperature, top_k, top_p, min_p.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.constraints import TokenMask
from ernie_export.runtime.constraints.grammar import GrammarState
from ernie_export.runtime.sampling_params import SamplingParams

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Candidates:
    """The tokens that may be chosen.

    Attributes:
        ids: Their ids (n,), ascending; None for the whole vocabulary.
        scores: Their logits (n,). They may be the engine's own: a processor changes a copy.
        partial: Whether they are only the most likely tokens: that none is left says nothing of the others.
    """

    ids: Ids | None
    scores: Scores
    partial: bool = False

    def all_ids(self) -> Ids:
        """Return the ids (n,), those of the whole vocabulary too."""
        return np.arange(len(self.scores)) if self.ids is None else self.ids

    def find(self, tokens: Ids) -> tuple[Ids, NDArray[np.bool_]]:
        """Return where those of `tokens` stand that are candidates, and which of `tokens` these are."""
        if self.ids is None:
            present = tokens < len(self.scores)
            return tokens[present], present
        positions = np.searchsorted(self.ids, tokens)
        inside = positions < len(self.ids)
        present = inside & (self.ids[np.where(inside, positions, 0)] == tokens)
        return positions[present], present

    def keep(self, positions: Ids) -> "Candidates":
        """Return the candidates at ascending positions."""
        ids = positions if self.ids is None else self.ids[positions]
        return Candidates(ids, self.scores[positions], self.partial)

    def without(self, tokens: Ids) -> "Candidates":
        """Return the candidates with the logits of `tokens` at minus infinity."""
        positions, _ = self.find(tokens)
        if not len(positions):
            return self
        scores = self.scores.copy()
        scores[positions] = -np.inf
        return Candidates(self.ids, scores, self.partial)

    def masked(self, mask: TokenMask) -> "Candidates":
        """Return the candidates that a mask allows."""
        if self.ids is not None:
            return self.keep(np.flatnonzero(mask.allows(self.ids)))
        vocabulary = len(self.scores)
        if 2 * mask.count() <= vocabulary:
            return self.keep(mask.ids(vocabulary))
        return Candidates(None, np.where(mask.flags(vocabulary), self.scores, np.float32(-np.inf)))

    @property
    def empty(self) -> bool:
        """Whether no token is left to choose, of these or any others."""
        return not self.partial and (not len(self.scores) or bool(self.scores.max() == -np.inf))


class Processor(Protocol):
    """A step between the logits and the choice of a token. It belongs to one answer."""

    def __call__(self, candidates: Candidates) -> Candidates:
        """Return what is left of the candidates, with their new logits. Raises InvalidValue if no token is."""
        ...

    def accept(self, token: int) -> None:
        """Take note of the token that was chosen."""
        ...


@runtime_checkable
class Mask(Processor, Protocol):
    """A processor that masks tokens and leaves all other logits as they are, so that the most likely may decide."""

    def allows(self, token: int) -> bool:
        """Return whether a token may be chosen, as far as it can be said without the others."""
        ...


class Constrained:
    """The mask of an answer's form."""

    def __init__(self, constraint: GrammarState) -> None:
        self._constraint = constraint

    def __call__(self, candidates: Candidates) -> Candidates:
        """Keep the tokens with which the answer can go on as its form says."""
        return _checked(candidates.masked(self._constraint.mask()), self._constraint.name)

    def allows(self, token: int) -> bool:
        """Return whether the answer can go on with the token."""
        return self._constraint.mask().allows_one(token)

    def accept(self, token: int) -> None:
        """Go on to the next state of the form."""
        self._constraint.accept(token)


class AllowedTokens:
    """The mask of all but `allowed_token_ids`."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(sorted(ids), np.int64)
        self._known = frozenset(ids)

    def __call__(self, candidates: Candidates) -> Candidates:
        """Keep the allowed tokens."""
        return _checked(candidates.keep(candidates.find(self._ids)[0]), "allowed_token_ids")

    def allows(self, token: int) -> bool:
        """Return whether the token is listed."""
        return token in self._known

    def accept(self, token: int) -> None:
        """Do nothing."""


class BadWords:
    """The mask of the token that would complete a word, where the answer ends with the tokens before it."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        """`words`: the token ids of each word."""
        self._words = [list(word) for word in words]
        self._answer: list[int] = []

    def __call__(self, candidates: Candidates) -> Candidates:
        """Mask the last tokens of words whose other tokens the answer ends with."""
        return _checked(candidates.without(np.array(sorted(self._masked()), np.int64)), "bad_words")

    def allows(self, token: int) -> bool:
        """Return whether the token completes no word."""
        return token not in self._masked()

    def _masked(self) -> set[int]:
        return {word[-1] for word in self._words if len(word) == 1 or self._answer[1 - len(word) :] == word[:-1]}

    def accept(self, token: int) -> None:
        """Append the token to the answer."""
        self._answer.append(token)


class MinTokens:
    """The mask of the ids that end an answer, as long as it is short."""

    def __init__(self, count: int, ends: Ids, *, constrained: bool) -> None:
        """Mask `ends` (n,) in the first `count` tokens; not where the form of the answer leaves nothing else."""
        self._left = count
        self._ends = ends
        self._constrained = constrained

    def __call__(self, candidates: Candidates) -> Candidates:
        """Mask the ends."""
        if self._left <= 0:
            return candidates
        others = candidates.without(self._ends)
        if others.empty and self._constrained:
            return candidates
        if others.empty:
            raise InvalidValue("min_new_tokens", "a token besides the end-of-sequence ids", "none to choose")
        return others

    def allows(self, token: int) -> bool:
        """Return whether the token does not end an answer that is too short."""
        return self._left <= 0 or token not in self._ends

    def accept(self, token: int) -> None:
        """Count the token."""
        self._left -= 1


class LogitBias:
    """The sum of each listed token's logit and its bias."""

    def __init__(self, bias: dict[int, float]) -> None:
        self._ids = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float32)

    def __call__(self, candidates: Candidates) -> Candidates:
        """Add the bias."""
        positions, present = candidates.find(self._ids)
        scores = candidates.scores.copy()
        scores[positions] += self._bias[present]
        return Candidates(candidates.ids, scores)

    def accept(self, token: int) -> None:
        """Do nothing."""


class RepetitionPenalty:
    """The division of positive logits, and multiplication of others, of tokens in the prompt and the answer so far."""

    def __init__(self, penalty: float, prompt_ids: Ids) -> None:
        self._penalty = np.float32(penalty)
        self._seen = np.unique(prompt_ids)

    def __call__(self, candidates: Candidates) -> Candidates:
        """Penalise the tokens. Raises InvalidValue where a logit leaves float32's range."""
        positions, _ = candidates.find(self._seen)
        scores = candidates.scores.copy()
        values = scores[positions]
        with np.errstate(all="ignore"):
            scores[positions] = np.where(values < 0, values * self._penalty, values / self._penalty)
        if not np.isfinite(scores.max()):
            raise InvalidValue("repetition_penalty", "logits within float32's range", f"{self._penalty} too far out")
        return Candidates(candidates.ids, scores)

    def accept(self, token: int) -> None:
        """Count the token as seen."""
        self._seen = np.append(self._seen, token)  # a repeated id is harmless


class OccurrencePenalties:
    """The subtraction of frequency_penalty · occurrences + presence_penalty, for each token of the answer so far."""

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence = presence
        self._frequency = frequency
        self._counts: dict[int, int] = {}

    def __call__(self, candidates: Candidates) -> Candidates:
        """Penalise the tokens."""
        positions, present = candidates.find(np.array(list(self._counts), np.int64))
        counts = np.array(list(self._counts.values()), np.float32)[present]
        scores = candidates.scores.copy()
        scores[positions] -= np.float32(self._frequency) * counts + np.float32(self._presence)
        return Candidates(candidates.ids, scores)

    def accept(self, token: int) -> None:
        """Count the token."""
        self._counts[token] = self._counts.get(token, 0) + 1


def make_processors(
    params: SamplingParams,
    ends: Ids,
    prompt_ids: Ids,
    bad_words: Sequence[Sequence[int]],
    constraint: GrammarState | None,
) -> list[Processor]:
    """Return the processors that an answer needs, in their order.

    Args:
        params: How its tokens are chosen.
        ends: Ids (n,) that end it.
        prompt_ids: Ids (n,) of its prompt.
        bad_words: Token ids of each word that it must not contain.
        constraint: Its form; None for free text.
    """
    processors: list[Processor] = []
    if constraint is not None:
        processors.append(Constrained(constraint))
    if params.allowed_token_ids is not None:
        processors.append(AllowedTokens(params.allowed_token_ids))
    if bad_words:
        processors.append(BadWords(bad_words))
    if params.min_new_tokens:
        processors.append(MinTokens(params.min_new_tokens, ends, constrained=constraint is not None))
    if params.logit_bias:
        processors.append(LogitBias(dict(params.logit_bias)))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenalty(params.repetition_penalty, prompt_ids))
    if params.presence_penalty or params.frequency_penalty:
        processors.append(OccurrencePenalties(params.presence_penalty, params.frequency_penalty))
    return processors


def _checked(candidates: Candidates, name: str) -> Candidates:
    """Return the candidates. Raises InvalidValue, naming the option, if no token is left to choose."""
    if candidates.empty:
        raise InvalidValue(name, "a token to choose", "none that the options together allow")
    return candidates
