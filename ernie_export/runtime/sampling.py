"""From one row of logits to one token id: greedy or sampled, with the reference's processors in the reference's order.

The order is that of `GenerationMixin._get_logits_processor` in transformers 5.23: repetition penalty, `min_new_tokens`,
temperature, top-k, top-p. The last three apply only when sampling (temperature above 0).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ernie_export.common.errors import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens and when to stop. Every field is checked on construction: UserError names the bad one.

    max_new_tokens, min_new_tokens: counts of generated tokens; end-of-sequence ids are barred below the minimum.
    temperature: divides the logits; 0 is greedy, and then top_k, top_p and seed have no effect.
    top_k: keep the k highest logits and whatever ties with the last of them; 0 keeps all.
    top_p: keep the smallest set of likeliest tokens that reaches this probability; 1 keeps all.
    repetition_penalty: above 1 makes tokens of the prompt and of the answer so far less likely.
    seed: equal seeds give equal answers; None draws a fresh one from the operating system.
    stop: strings that end the answer and are not part of it; one string or several.
    logprobs: None for none; else of each chosen token, and of so many of the likeliest tokens beside it.
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

    def __post_init__(self) -> None:
        whole, real = self._whole, self._real
        checked = {
            "max_new_tokens": whole("max_new_tokens", minimum=1),
            "min_new_tokens": whole("min_new_tokens", minimum=0),
            "temperature": real("temperature", "a finite number of at least 0", lambda x: 0 <= x < math.inf),
            "top_k": whole("top_k", minimum=0),
            "top_p": real("top_p", "a number from 0 to 1", lambda x: 0 <= x <= 1),
            "repetition_penalty": real("repetition_penalty", "a finite number above 0", lambda x: 0 < x < math.inf),
            "seed": None if self.seed is None else whole("seed", minimum=0),
            "stop": self._strings("stop"),
            "logprobs": None if self.logprobs is None else whole("logprobs", minimum=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"min_new_tokens: expected at most max_new_tokens ({self.max_new_tokens}), found {self.min_new_tokens}"
            )

    @classmethod
    def from_options(cls, options: dict[str, object]) -> "SamplingParams":
        """Build from keyword options; UserError names an option that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise UserError(f"{name}: expected one of the options {', '.join(known)}, found an unknown one")
        return cls(**options)  # type: ignore[arg-type]  # __post_init__ checks every type

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    def _whole(self, name: str, minimum: int) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise UserError(f"{name}: expected a whole number of at least {minimum}, found {value!r}")
        return int(value)

    def _real(self, name: str, expected: str, accept: Callable[[float], bool]) -> float:
        value = getattr(self, name)
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not number or not accept(value):  # a NaN fails every comparison
            raise UserError(f"{name}: expected {expected}, found {value!r}")
        return float(value)

    def _strings(self, name: str) -> tuple[str, ...]:
        value = getattr(self, name)
        strings = (value,) if isinstance(value, str) else value
        if not isinstance(strings, list | tuple) or not all(isinstance(text, str) and text for text in strings):
            raise UserError(f"{name}: expected a non-empty string or a list of them, found {value!r}")
        return tuple(strings)


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities under the model itself, before temperature, top-k and penalties.

    chosen: of the chosen token; top: (id, logprob) of the likeliest tokens, the likeliest first.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Candidates:
    """The best tokens of a row of logits that lies on a device, so that the host need not fetch the row.

    ids (n,) int64 and values (n,) float32: highest first, and of equal ones the lower id first. total: the sum of the
    whole row, finite only if every logit is. whole: fetches the row, (vocabulary,) float32.
    """

    ids: np.ndarray
    values: np.ndarray
    total: float
    whole: Callable[[], np.ndarray]


def logprobs(logits: np.ndarray | Candidates, token: int, count: int) -> Logprobs:
    """Of `token` and of the `count` likeliest tokens, from finite `logits` (vocab,)."""
    scores = np.asarray(logits.whole() if isinstance(logits, Candidates) else logits, np.float32)
    total = scores.max() + np.log(np.exp(scores - scores.max()).sum())
    count = min(count, len(scores))
    best = np.argpartition(scores, len(scores) - count)[len(scores) - count :] if count else np.zeros(0, np.int64)
    best = best[np.argsort(-scores[best], kind="stable")]
    return Logprobs(float(scores[token] - total), tuple((int(id), float(scores[id] - total)) for id in best))


class Sampler:
    """Chooses the tokens of one request.

    Each request owns its sampler and its random stream (PCG64), so an answer depends on the request and its seed alone
    and not on the batch it runs in: equal requests with equal seeds get equal answers.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: Iterable[int], prompt_ids: Sequence[int] | np.ndarray):
        """`prompt_ids`: the request's own ids without padding; only the repetition penalty reads them."""
        self.params = params
        self._eos = np.array(sorted(set(eos_token_ids)), np.int64)
        self._seen = np.unique(np.asarray(prompt_ids, np.int64)) if params.repetition_penalty != 1 else None
        self._generated = 0
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def next(self, logits: np.ndarray | Candidates) -> int:
        """Choose a token from `logits` (vocab,), which stays as it is, and record it as generated.

        Candidates serve wherever the whole row would give the same token; where it might not, the row is fetched.
        Raises UserError if the logits hold a NaN or an infinity, or if no token is left to choose.
        """
        if isinstance(logits, Candidates) and not self._suffices(logits):
            logits = logits.whole()
        if self.params.greedy:
            ids, scores = self._scores(logits)
            best = scores.argmax()  # the first of equal logits, as torch.argmax
            token = int(best if ids is None else ids[best])
        else:
            ids, probabilities = self.distribution(logits)
            token = int(ids[self._draw(probabilities)])
        self._generated += 1
        if self._seen is not None:
            self._seen = np.append(self._seen, token)  # a repeated id is harmless
        return token

    def distribution(self, logits: np.ndarray | Candidates) -> tuple[np.ndarray, np.ndarray]:
        """What a sampled token is drawn from: ids int64 (n,), ascending, and their probabilities float64 (n,).

        `logits` as `next` takes them; candidates must suffice.
        """
        params = self.params
        ids, scores = self._scores(logits)
        if not params.greedy:
            scores = _divided(scores, params.temperature)
        kept = _top_k(scores, params.top_k)
        ids, scores = kept if ids is None else ids[kept], scores[kept]
        probabilities = np.exp(scores - scores.max()).astype(np.float64)
        probabilities /= probabilities.sum()
        if params.top_p < 1:
            kept = _top_p(scores, probabilities, params.top_p)
            ids, probabilities = ids[kept], probabilities[kept]
            probabilities /= probabilities.sum()
        return ids, probabilities

    def _suffices(self, best: Candidates) -> bool:
        """Whether the best tokens decide as the whole row would.

        They do if what is kept lies above the last of them even when every end-of-sequence id among them is barred:
        whatever is not there is at most equal to that last one. A penalty may lower any token, so it needs the row.
        """
        params, barred = self.params, len(self._eos)
        place = barred + (0 if params.greedy else params.top_k - 1)
        if not np.isfinite(best.total) or self._seen is not None or place >= len(best.values):
            return False
        if params.greedy:  # equal ones stand in the order of their ids
            return True
        divided = _divided(best.values, params.temperature)
        return params.top_k > 0 and bool(divided[place] > divided[-1])

    def _scores(self, logits: np.ndarray | Candidates) -> tuple[np.ndarray | None, np.ndarray]:
        """Processed logits, and the ids that they are of, ascending; None: of all."""
        if not isinstance(logits, Candidates):
            return None, self._processed(logits)
        order = np.argsort(logits.ids)
        ids, scores = logits.ids[order], logits.values[order]
        if self._generated < self.params.min_new_tokens:
            allowed = ~np.isin(ids, self._eos)
            ids, scores = ids[allowed], scores[allowed]
        return ids, scores

    def _processed(self, logits: np.ndarray) -> np.ndarray:
        """Check `logits`, then apply the repetition penalty and `min_new_tokens`; float32 (vocab,)."""
        scores = np.asarray(logits, np.float32)
        if scores.ndim != 1 or not len(scores):
            raise UserError(f"logits: expected the shape (vocab,), found {np.shape(logits)}")
        if not np.isfinite(scores.max()):  # the maximum of an array with a NaN is NaN; -inf marks a barred token
            bad = np.flatnonzero(~np.isfinite(scores))
            raise UserError(
                f"logits of generated token {self._generated}: expected finite numbers, found {len(bad)} of "
                f"{len(scores)} that are not, {scores[bad[0]]} at id {bad[0]} first "
                "(a damaged bundle, or an overflow in half precision?)"
            )
        if self._seen is not None:
            scores = scores.copy()
            seen = self._seen[self._seen < len(scores)]
            values, penalty = scores[seen], np.float32(self.params.repetition_penalty)
            with np.errstate(all="ignore"):
                scores[seen] = np.where(values < 0, values * penalty, values / penalty)
            if not np.isfinite(scores.max()):
                raise UserError(
                    f"repetition_penalty: expected logits within float32's range, found {penalty} too far out"
                )
        if self._generated < self.params.min_new_tokens:
            scores = scores.copy()
            scores[self._eos[self._eos < len(scores)]] = -np.inf
            if scores.max() == -np.inf:
                raise UserError(
                    "min_new_tokens: expected a token besides the end-of-sequence ids, found none to choose"
                )
        return scores

    def _draw(self, probabilities: np.ndarray) -> int:
        """Inverse-transform sampling: one uniform number, one search in the running sum."""
        cumulative = np.cumsum(probabilities)
        index = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(min(index, np.searchsorted(cumulative, cumulative[-1])))  # rounding must not pick a trailing zero


def _divided(scores: np.ndarray, temperature: float) -> np.ndarray:
    """`scores / temperature` in float32; where the quotient leaves its range, the same less a constant."""
    with np.errstate(all="ignore"):
        divided = scores / np.float32(temperature)
        if not np.isfinite(divided.max()):
            divided = ((scores - scores.max()).astype(np.float64) / temperature).astype(np.float32)
    return divided


def _top_k(scores: np.ndarray, k: int) -> np.ndarray:
    """Ids, ascending, of the `k` highest scores and of all that equal the last of them; all ids if `k` is 0."""
    if k == 0 or k >= len(scores):
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= last)


def _top_p(scores: np.ndarray, probabilities: np.ndarray, p: float) -> np.ndarray:
    """Positions, ascending, of the smallest set of likeliest tokens whose probability reaches `p`; at least one.

    The reference sorts upwards and drops a token if it and all below it sum to at most 1 - p: that is, if all above it
    sum to at least p. Of equal scores the later position counts as the higher, as in a stable upward sort.

    Tokens of at most (1 - p) / n sum to at most 1 - p, so they all go before anything is sorted: of 103,424 tokens a
    peaked distribution leaves a few hundred to sort.
    """
    likely = np.flatnonzero(probabilities > (1 - p) / len(probabilities))
    if not len(likely):  # rounding, where p is 0 and all are equal
        likely = np.flatnonzero(scores == scores.max())
    order = likely[np.argsort(scores[likely], kind="stable")[::-1]]
    above = np.cumsum(probabilities[order]) - probabilities[order]
    return np.sort(order[: max(1, np.count_nonzero(above < p))])
