"""The errors of compared values, by kind of token."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Of fewer tokens the median may be one that routing sent elsewhere.
MIN_TOKENS = 8
ALL = "all"


@dataclass
class Probe:
    """One compared value over all conversations.

    Attributes:
        error: The relative error that is held to the tolerance: the largest of any kind of token.
        kinds: Relative error by kind of token, of the worst or the median one. Values of the decoder have "first" (the
            first token of a conversation), "alone" (others of conversations without media), "before", "media" and
            "after" (the first image or video); those of the resampler "image" and "video"; all others `ALL`.
        routed: Tokens whose experts were compared.
        agreed: Tokens that both sides route alike.
        ties: Tokens routed elsewhere where the reference's own choice hangs on rounding.
        tokens: Tokens whose experts were compared, by "text" and "vision".
        rerouted: Those of them that are routed elsewhere without a tie.
    """

    error: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)
    routed: int = 0
    agreed: int = 0
    ties: int = 0
    tokens: dict[str, int] = field(default_factory=dict)
    rerouted: dict[str, int] = field(default_factory=dict)

    @property
    def mostly_rerouted(self) -> list[str]:
        """Return the groups, "text" and "vision", most of whose tokens are routed elsewhere, which no rounding does."""
        return [group for group, count in self.tokens.items() if 2 * self.rerouted.get(group, 0) > count]


class TokenErrors:
    """Collects the relative errors of one compared value, row by row."""

    def __init__(self) -> None:
        self._parts: dict[str, list[NDArray[np.float64]]] = defaultdict(list)

    def add(self, found: np.ndarray, expected: np.ndarray, kinds: dict[str, NDArray[np.bool_]]) -> None:
        """Take in the rows of one conversation.

        Args:
            found: Values (rows, width) of the bundle.
            expected: Those of the reference; other shapes count as an infinite error.
            kinds: Which rows are of each kind.
        """
        if found.shape != expected.shape:
            errors = np.full(len(expected), np.inf)
        else:
            norms = np.maximum(np.linalg.norm(expected.astype(np.float64), axis=-1), 1e-30)
            errors = np.linalg.norm(found.astype(np.float64) - expected, axis=-1) / norms
        errors = np.nan_to_num(errors, nan=np.inf)
        for kind, selected in kinds.items():
            if selected.any():
                self._parts[kind].append(errors[selected])

    def probe(self, every_token: bool) -> Probe:
        """Return the probe: errors of the worst tokens, or without `every_token` of the median ones.

        Medians are those of all conversations together and of each that has enough tokens: a fault may concern one.
        """
        kinds = {}
        judged = [0.0]
        for kind, parts in self._parts.items():
            pooled = np.concatenate(parts)
            if every_token:
                kinds[kind] = float(np.max(pooled))
                judged.append(kinds[kind])
                continue
            medians = [float(np.median(errors)) for errors in [pooled, *parts] if len(errors) >= MIN_TOKENS]
            kinds[kind] = max(medians, default=float(np.median(pooled)))
            judged += [kinds[kind]] if medians or kind == ALL else []
        return Probe(max(judged), kinds)


def kinds_of_tokens(is_vision: NDArray[np.bool_]) -> dict[str, NDArray[np.bool_]]:
    """Return which tokens of a prompt are of each kind of the decoder's, given which are of images or videos."""
    place = np.arange(len(is_vision))
    begins = int(is_vision.argmax()) if is_vision.any() else len(is_vision)
    kinds = {"alone" if begins == len(is_vision) else "before": place < begins}
    kinds |= {"media": is_vision, "after": (place > begins) & ~is_vision}
    return {"first": place == 0} | {kind: selected & (place > 0) for kind, selected in kinds.items()}
