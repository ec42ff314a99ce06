"""Choose the next token from logits, greedily or at random: `processors`, then temperature, min_p, top_k, top_p."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.constraints.grammar import GrammarState
from ernie_export.runtime.logits import Logits, TopK
from ernie_export.runtime.processors import Candidates, Mask, make_processors
from ernie_export.runtime.sampling_params import SamplingParams


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities under the model itself, before temperature, top-k and penalties.

    Attributes:
        chosen: Log-probability of the chosen token.
        top: (id, log-probability) of the most likely tokens, the most likely first.
        rank: One more than the number of tokens that are more likely than the chosen one.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]
    rank: int


def logprobs(logits: Logits, token: int, count: int) -> Logprobs:
    """Return the log-probabilities of `token` and of the `count` most likely tokens, from finite `logits`."""
    scores = np.asarray(logits.full(), np.float32)
    total = scores.max() + np.log(np.exp(scores - scores.max()).sum())
    count = min(count, len(scores))
    best = np.argpartition(scores, len(scores) - count)[len(scores) - count :] if count else np.zeros(0, np.int64)
    best = best[np.argsort(-scores[best], kind="stable")]
    top = tuple((int(id), float(scores[id] - total)) for id in best)
    return Logprobs(float(scores[token] - total), top, 1 + int(np.count_nonzero(scores > scores[token])))


class Sampler:
    """The sampler of one request.

    Each request owns its sampler and its random stream (PCG64), so an answer depends on the request and its seed alone
    and not on the batch that it runs in: equal requests with equal seeds get equal answers.
    """

    def __init__(
        self,
        params: SamplingParams,
        ends: Iterable[int],
        prompt_ids: Sequence[int] | np.ndarray,
        bad_words: Sequence[Sequence[int]] = (),
        constraint: GrammarState | None = None,
    ) -> None:
        """Start the random stream.

        Args:
            params: How to choose.
            ends: Ids that end an answer.
            prompt_ids: The request's own ids without padding; only the repetition penalty reads them.
            bad_words: Token ids of each of `params.bad_words`.
            constraint: The form of the answer; None for free text.
        """
        self.params = params
        self.constraint = constraint
        self._processors = make_processors(
            params=params,
            ends=np.array(sorted(set(ends)), np.int64),
            prompt_ids=np.asarray(prompt_ids, np.int64),
            bad_words=bad_words,
            constraint=constraint,
        )
        self._masks = [processor for processor in self._processors if isinstance(processor, Mask)]
        # Whether the most likely tokens may decide as all would; which ones do is seen once the processors have run.
        self._few_may_decide = len(self._masks) == len(self._processors) and (
            params.greedy or params.min_p > 0 or params.top_k > 0
        )
        self._generated = 0
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    @property
    def finished(self) -> bool:
        """Whether the form of the answer leaves nothing to add to it."""
        return self.constraint is not None and self.constraint.finished

    def next(self, logits: Logits) -> int:
        """Choose a token from `logits`, which stay as they are, and record it as generated.

        The top-k logits serve wherever all logits would give the same token; where they might not, all are fetched.
        Raises InvalidValue if the logits hold a NaN or an infinity, or if no token is left to choose.
        """
        first = self._first_allowed(logits) if self.params.greedy and self._few_may_decide else None
        if first is not None:
            return self.force(first)
        candidates = self._candidates(logits)
        if self.params.greedy:
            best = candidates.scores.argmax()  # the first of equal logits, as torch.argmax
            token = int(best if candidates.ids is None else candidates.ids[best])
        else:
            ids, probabilities = self._probabilities(candidates)
            token = int(ids[self._draw(probabilities)])
        return self.force(token)

    def force(self, token: int) -> int:
        """Record a token that was chosen otherwise as generated, and return it."""
        self._generated += 1
        for processor in self._processors:
            processor.accept(token)
        return token

    def distribution(self, logits: Logits) -> tuple[np.ndarray, np.ndarray]:
        """Return what a sampled token is drawn from: ids int64 (n,), ascending, and probabilities float64 (n,)."""
        return self._probabilities(self._candidates(logits))

    def _probabilities(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Apply temperature, min_p, top_k and top_p; returns as `distribution` does."""
        params = self.params
        if not params.greedy:
            candidates = Candidates(candidates.ids, _scale_by_temperature(candidates.scores, params.temperature))
        if params.min_p > 0:
            candidates = candidates.keep(_min_p(candidates.scores, params.min_p))
        candidates = candidates.keep(_top_k(candidates.scores, params.top_k))
        scores = candidates.scores
        probabilities = np.exp(scores - scores.max()).astype(np.float64)
        probabilities /= probabilities.sum()
        ids = candidates.all_ids()
        if params.top_p < 1:
            kept = _top_p(scores, probabilities, params.top_p)
            ids = ids[kept]
            probabilities = probabilities[kept]
            probabilities /= probabilities.sum()
        return ids, probabilities

    def _candidates(self, logits: Logits) -> Candidates:
        """Return the tokens that may be chosen with their logits, as the processors leave them."""
        best = self._most_likely(logits) if self._few_may_decide else None
        if best is not None and np.isfinite(best.total):
            order = np.argsort(best.ids)
            candidates = self._process(Candidates(best.ids[order], best.values[order], partial=True))
            if self._decide(candidates.scores, best.values[-1]):
                return candidates
        return self._process(Candidates(None, self._checked(logits.full())))

    def _first_allowed(self, logits: Logits) -> int | None:
        """Return the most likely token of those allowed, the greedy choice; None if it is not among the few at hand."""
        best = self._most_likely(logits)
        if best is None or not math.isfinite(best.total):
            return None
        for token in best.ids[:8].tolist():
            if all(mask.allows(token) for mask in self._masks):
                return int(token)
        return None

    def _most_likely(self, logits: Logits) -> TopK | None:
        """Return the highest logits if they are at hand; the highest alone decides most greedy tokens."""
        best = logits.topk()
        if best is None and self.params.greedy:
            scores = np.asarray(logits.full(), np.float32)
            if scores.ndim != 1 or not len(scores):
                return None
            first = scores.argmax()  # of equal logits the first, as torch.argmax; a NaN, if there is one
            best = TopK(np.array([first]), scores[first, None], float(scores[first]))
        return best

    def _process(self, candidates: Candidates) -> Candidates:
        for processor in self._processors:
            if not len(candidates.scores):  # none of the most likely tokens is left
                break
            candidates = processor(candidates)
        return candidates

    def _decide(self, scores: np.ndarray, last: np.float32) -> bool:
        """Return whether what the processors left of the most likely tokens decides as all tokens would.

        Every other token's logit is at most that of the last of them.

        Args:
            scores: The logits left (n,), masked ones at minus infinity.
            last: The lowest logit of the most likely tokens.
        """
        if not len(scores) or scores.max() == -np.inf:
            return False
        if self.params.greedy:  # equal logits are in the order of their ids
            return True
        left = np.sort(scores[scores > -np.inf])[::-1]
        scaled = _scale_by_temperature(np.append(left, last), self.params.temperature)
        if self.params.min_p > 0 and scaled[-1] - scaled[0] < np.log(self.params.min_p):
            return True
        k = self.params.top_k
        return 0 < k <= len(left) and bool(scaled[k - 1] > scaled[-1])

    def _checked(self, logits: np.ndarray) -> np.ndarray:
        """Return logits as float32 (vocabulary,). Raises InvalidValue for a NaN, or an infinity."""
        scores = np.asarray(logits, np.float32)
        if scores.ndim != 1 or not len(scores):
            raise InvalidValue("logits", "the shape (vocab,)", np.shape(logits))
        if not np.isfinite(scores.max()):  # the maximum of an array with a NaN is NaN; -inf marks a masked token
            bad = np.flatnonzero(~np.isfinite(scores))
            raise InvalidValue(
                f"logits of generated token {self._generated}",
                "finite numbers",
                f"{len(bad)} of {len(scores)} that are not, {scores[bad[0]]} at id {bad[0]} first",
                hint="a damaged bundle, or an overflow in half precision?",
            )
        return scores

    def _draw(self, probabilities: np.ndarray) -> int:
        """Draw an index by inverse-transform sampling: one uniform number, one search in the running sum."""
        cumulative = np.cumsum(probabilities)
        index = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(min(index, np.searchsorted(cumulative, cumulative[-1])))  # rounding must not pick a trailing zero


def _scale_by_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return `scores / temperature` in float32; where that overflows, the same minus a constant."""
    with np.errstate(all="ignore"):
        scaled = scores / np.float32(temperature)
        if not np.isfinite(scaled.max()):
            scaled = ((scores - scores.max()).astype(np.float64) / temperature).astype(np.float32)
    return scaled


def _min_p(scores: np.ndarray, p: float) -> np.ndarray:
    """Return the positions, ascending, of the tokens at least `p` times as likely as the most likely one."""
    return np.flatnonzero(np.exp(scores - scores.max()) >= np.float32(p))


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the ids, ascending, of the `k` highest scores and of all that equal the last of them; all if `k` is 0."""
    if k == 0 or k >= len(scores):
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= last)


def _top_p(scores: np.ndarray, probabilities: np.ndarray, p: float) -> np.ndarray:
    """Return the indices, ascending, of the fewest most likely tokens whose probability reaches `p`; at least one.

    The reference sorts upwards and drops a token if it and all below it sum to at most 1 - p: that is, if all above it
    sum to at least p. If scores are equal, the later index counts as the higher, as in a stable upward sort.

    Tokens of at most (1 - p) / n sum to at most 1 - p, so they all go before anything is sorted: of 103,424 tokens a
    peaked distribution leaves a few hundred to sort.
    """
    likely = np.flatnonzero(probabilities > (1 - p) / len(probabilities))
    if not len(likely):  # rounding, where p is 0 and all are equal
        likely = np.flatnonzero(scores == scores.max())
    order = likely[np.argsort(scores[likely], kind="stable")[::-1]]
    above = np.cumsum(probabilities[order]) - probabilities[order]
    return np.sort(order[: max(1, np.count_nonzero(above < p))])
