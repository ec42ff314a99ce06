"""Choose the next token from logits, greedily or at random, with the reference's processors in the reference's order.

The order is that of `GenerationMixin._get_logits_processor` in transformers 5.23: repetition penalty, `min_new_tokens`,
temperature, top-k, top-p. The last three apply only when sampling (temperature above 0).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.logits import Logits, TopK

# A table is built of every stop string, as long as it is.
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 1024


@dataclass(frozen=True)
class SamplingParams:
    """The options that choose tokens and end an answer. Construction raises InvalidValue for a field that is wrong.

    Attributes:
        max_new_tokens: Most generated tokens.
        min_new_tokens: Fewest generated tokens; end-of-sequence ids are masked until then.
        temperature: Divides the logits; 0 is greedy, and then top_k, top_p and seed have no effect.
        top_k: Keep the k highest logits and whatever ties with the last of them; 0 keeps all.
        top_p: Keep the smallest set of most likely tokens that reaches this probability; 1 keeps all.
        repetition_penalty: Above 1, makes tokens of the prompt and of the answer so far less likely.
        seed: Equal seeds give equal answers; None draws a fresh one from the operating system.
        stop: Strings that end the answer and are not part of it; one string or several.
        logprobs: Return the log-probability of each chosen token and of this many most likely ones; None for none.
        thinking_token_budget: Most tokens of thoughts before the answer; None for any number.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    thinking_token_budget: int | None = None

    def __post_init__(self) -> None:
        checked = {
            "max_new_tokens": self._integer("max_new_tokens", minimum=1),
            "min_new_tokens": self._integer("min_new_tokens", minimum=0),
            "temperature": self._number("temperature", "a finite number of at least 0", lambda x: 0 <= x < math.inf),
            "top_k": self._integer("top_k", minimum=0),
            "top_p": self._number("top_p", "a number from 0 to 1", lambda x: 0 <= x <= 1),
            "repetition_penalty": self._number(
                "repetition_penalty", "a finite number above 0", lambda x: 0 < x < math.inf
            ),
            "seed": None if self.seed is None else self._integer("seed", minimum=0),
            "stop": self._strings("stop"),
            "logprobs": None if self.logprobs is None else self._integer("logprobs", minimum=0),
            "thinking_token_budget": None
            if self.thinking_token_budget is None
            else self._integer("thinking_token_budget", minimum=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidValue("min_new_tokens", f"at most max_new_tokens ({self.max_new_tokens})", self.min_new_tokens)

    @classmethod
    def from_options(cls, options: dict[str, object]) -> "SamplingParams":
        """Build from keyword options. Raises InvalidValue for an option that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise InvalidValue(name, f"one of the options {', '.join(known)}", "an unknown one")
        return cls(**options)  # type: ignore[arg-type]  # __post_init__ checks every type

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def _integer(self, name: str, minimum: int) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise InvalidValue(name, f"a whole number of at least {minimum}", repr(value))
        return int(value)

    def _number(self, name: str, expected: str, accept: Callable[[float], bool]) -> float:
        value = getattr(self, name)
        is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not is_number or not accept(value):  # a NaN fails every comparison
            raise InvalidValue(name, expected, repr(value))
        return float(value)

    def _strings(self, name: str) -> tuple[str, ...]:
        value = getattr(self, name)
        strings = (value,) if isinstance(value, str) else value
        if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
            raise InvalidValue(name, "a non-empty string or a list of them", repr(value)[:200])
        if len(strings) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_LENGTH for text in strings):
            expected = f"at most {MAX_STOP_STRINGS} strings of at most {MAX_STOP_LENGTH} characters"
            raise InvalidValue(name, expected, f"{len(strings)} of up to {max(map(len, strings))}")
        return tuple(strings)


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities under the model itself, before temperature, top-k and penalties.

    Attributes:
        chosen: Log-probability of the chosen token.
        top: (id, log-probability) of the most likely tokens, the most likely first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


def logprobs(logits: Logits, token: int, count: int) -> Logprobs:
    """Return the log-probabilities of `token` and of the `count` most likely tokens, from finite `logits`."""
    scores = np.asarray(logits.full(), np.float32)
    total = scores.max() + np.log(np.exp(scores - scores.max()).sum())
    count = min(count, len(scores))
    best = np.argpartition(scores, len(scores) - count)[len(scores) - count :] if count else np.zeros(0, np.int64)
    best = best[np.argsort(-scores[best], kind="stable")]
    return Logprobs(float(scores[token] - total), tuple((int(id), float(scores[id] - total)) for id in best))


class Sampler:
    """The sampler of one request.

    Each request owns its sampler and its random stream (PCG64), so an answer depends on the request and its seed alone
    and not on the batch that it runs in: equal requests with equal seeds get equal answers.
    """

    def __init__(
        self, params: SamplingParams, eos_token_ids: Iterable[int], prompt_ids: Sequence[int] | np.ndarray
    ) -> None:
        """Start the random stream.

        Args:
            params: How to choose.
            eos_token_ids: Ids that end an answer.
            prompt_ids: The request's own ids without padding; only the repetition penalty reads them.
        """
        self.params = params
        self._eos = np.array(sorted(set(eos_token_ids)), np.int64)
        self._seen = np.unique(np.asarray(prompt_ids, np.int64)) if params.repetition_penalty != 1 else None
        self._generated = 0
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def next(self, logits: Logits) -> int:
        """Choose a token from `logits`, which stay as they are, and record it as generated.

        The top-k logits serve wherever all logits would give the same token; where they might not, all are fetched.
        Raises InvalidValue if the logits hold a NaN or an infinity, or if no token is left to choose.
        """
        ids, scores = self._scores(logits)
        if self.params.greedy:
            best = scores.argmax()  # the first of equal logits, as torch.argmax
            token = int(best if ids is None else ids[best])
        else:
            ids, probabilities = self._probabilities(ids, scores)
            token = int(ids[self._draw(probabilities)])
        return self.force(token)

    def force(self, token: int) -> int:
        """Record a token that was chosen otherwise as generated, and return it."""
        self._generated += 1
        if self._seen is not None:
            self._seen = np.append(self._seen, token)  # a repeated id is harmless
        return token

    def distribution(self, logits: Logits) -> tuple[np.ndarray, np.ndarray]:
        """Return what a sampled token is drawn from: ids int64 (n,), ascending, and probabilities float64 (n,)."""
        ids, scores = self._scores(logits)
        return self._probabilities(ids, scores)

    def _probabilities(self, ids: np.ndarray | None, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Apply temperature, top-k and top-p to what `_scores` returned; returns as `distribution` does."""
        params = self.params
        if not params.greedy:
            scores = _scale_by_temperature(scores, params.temperature)
        kept = _top_k(scores, params.top_k)
        ids = kept if ids is None else ids[kept]
        scores = scores[kept]
        probabilities = np.exp(scores - scores.max()).astype(np.float64)
        probabilities /= probabilities.sum()
        if params.top_p < 1:
            kept = _top_p(scores, probabilities, params.top_p)
            ids = ids[kept]
            probabilities = probabilities[kept]
            probabilities /= probabilities.sum()
        return ids, probabilities

    def _suffices(self, best: TopK) -> bool:
        """Return whether the top-k logits decide as all logits would.

        They do if the last token kept still ranks above the last of them after masking all end-of-sequence ids:
        every other logit is at most equal to that last one. A repetition penalty can reorder any token, so it always
        needs all logits.
        """
        params = self.params
        num_masked = len(self._eos)
        last_rank = num_masked + (0 if params.greedy else params.top_k - 1)
        if not np.isfinite(best.total) or self._seen is not None or last_rank >= len(best.values):
            return False
        if params.greedy:  # equal logits are in the order of their ids
            return True
        scaled = _scale_by_temperature(best.values, params.temperature)
        return params.top_k > 0 and bool(scaled[last_rank] > scaled[-1])

    def _scores(self, logits: Logits) -> tuple[np.ndarray | None, np.ndarray]:
        """Return processed logits and their ids, ascending; None instead of the ids of the whole vocabulary."""
        best = logits.topk()
        if best is None or not self._suffices(best):
            return None, self._processed(logits.full())
        order = np.argsort(best.ids)
        ids = best.ids[order]
        scores = best.values[order]
        if self._generated < self.params.min_new_tokens:
            allowed = ~np.isin(ids, self._eos)
            ids = ids[allowed]
            scores = scores[allowed]
        return ids, scores

    def _processed(self, logits: np.ndarray) -> np.ndarray:
        """Check `logits`, then apply the repetition penalty and `min_new_tokens`; returns float32 (vocabulary,)."""
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
        if self._seen is not None:
            scores = scores.copy()
            seen = self._seen[self._seen < len(scores)]
            values = scores[seen]
            penalty = np.float32(self.params.repetition_penalty)
            with np.errstate(all="ignore"):
                scores[seen] = np.where(values < 0, values * penalty, values / penalty)
            if not np.isfinite(scores.max()):
                raise InvalidValue("repetition_penalty", "logits within float32's range", f"{penalty} too far out")
        if self._generated < self.params.min_new_tokens:
            scores = scores.copy()
            scores[self._eos[self._eos < len(scores)]] = -np.inf
            if scores.max() == -np.inf:
                raise InvalidValue("min_new_tokens", "a token besides the end-of-sequence ids", "none to choose")
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
