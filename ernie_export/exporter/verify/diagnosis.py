"""One sentence that says where a bundle parts from the checkpoint, and what is computed there.

Values are compared in the order of computation, so the first one past the tolerance is where a fault begins. Which
tokens it concerns narrows it down: the first token attends to itself alone, so it depends on no rotation, mask or scale
of attention; in text the three axes of a position are equal, so only tokens of images and those after them depend on
the axes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass
class TokenErrors:
    """Worst relative errors of a decoder value by kind of token, and how many tokens went to other experts.

    Attributes:
        first: First token of a conversation.
        alone: Other tokens of conversations without images and videos.
        before: Other tokens before the first image or video.
        media: Tokens of images and videos.
        after: Text after the first image or video.
        rerouted: Tokens routed elsewhere than rounding explains, by "text" and "vision".
    """

    first: float = 0.0
    alone: float = 0.0
    before: float = 0.0
    media: float = 0.0
    after: float = 0.0
    rerouted: dict[str, int] = field(default_factory=dict)

    def add(self, found: np.ndarray, expected: np.ndarray, is_vision: np.ndarray) -> None:
        """Take in one conversation: values (tokens, width) of both sides, and which tokens are of images or videos."""
        norms = np.maximum(np.linalg.norm(expected, axis=-1), 1e-30)
        errors = np.nan_to_num(np.linalg.norm(found - expected, axis=-1) / norms, nan=np.inf)
        self.first = max(self.first, float(errors[0]))
        begins = int(is_vision.argmax()) if is_vision.any() else len(errors)
        after = np.arange(len(errors)) > begins
        kinds = {"alone" if begins == len(errors) else "before": np.arange(len(errors)) < begins}
        kinds |= {"media": is_vision, "after": after & ~is_vision}
        for kind, selected in kinds.items():
            selected = selected & (np.arange(len(errors)) > 0)
            if selected.any():
                setattr(self, kind, max(getattr(self, kind), float(errors[selected].max())))


@dataclass(frozen=True)
class Evidence:
    """What the sentence is made from.

    Attributes:
        errors: Worst relative error of each value, in the order of computation.
        tokens: Of the decoder's values, by kind of token.
        media: Relative error of the resampler's output by kind of conversation: "image" and "video".
        sparse: Layers with routed experts.
        limit: The relative error that is allowed.
    """

    errors: Mapping[str, float]
    tokens: Mapping[str, TokenErrors]
    media: Mapping[str, float]
    sparse: frozenset[str]
    limit: float


def first_difference(evidence: Evidence) -> str:
    """Return the sentence, or an empty text if every value is within the limit."""
    name = next((name for name, error in evidence.errors.items() if not error <= evidence.limit), None)
    if name is None:
        return ""
    tokens = evidence.tokens.get(name, TokenErrors())
    return f"{name} is the first that differs: {_cause(name, tokens, evidence)}"


def _cause(name: str, tokens: TokenErrors, evidence: Evidence) -> str:
    """Return what may be wrong where the first difference is."""
    if name == "vision block 0":
        return "order or embedding of patches, or the block's norms, rotation, attention or MLP"
    if name.startswith("vision block"):
        return "the block's norms, rotation, attention or MLP"
    if name == "vision encoder":
        return "the encoder's last norm"
    if name == "resampler":
        if evidence.media.get("image", 0.0) <= evidence.limit:
            return "videos alone: the pairing of frames"
        return "its merging of patches, layers or norm"
    if name.endswith("attention"):
        return _attention(tokens, evidence.limit, first_layer=name == "layer 0 attention")
    if name.startswith("layer"):
        return (
            _experts(tokens, evidence.limit) if name.split()[1] in evidence.sparse else "its MLP or the norm before it"
        )
    if name == "logits":
        return "the last norm, or the head"
    return "prefill agrees: the decode graph, or what it reads from the KV cache"


def _attention(tokens: TokenErrors, limit: float, first_layer: bool) -> str:
    if not tokens.first <= limit:
        return "the norm before attention, its projections" + (", or the embedding" if first_layer else "")
    if not (tokens.alone <= limit and tokens.before <= limit):
        return "text too, but not the first token: scale, mask or rotation of attention"
    if not tokens.media <= limit:
        return "images and what follows, text alone agrees: axes of the rotation, or positions of images"
    return "text after images or videos alone: its positions"


def _experts(tokens: TokenErrors, limit: float) -> str:
    text = max(tokens.first, tokens.alone, tokens.before, tokens.after)
    sides = {"text": text <= limit, "vision": tokens.media <= limit}
    wrong = [side for side, right in sides.items() if not right]
    if len(wrong) == 2:
        experts = "text and vision tokens: the norm before the experts, shared experts, or both expert groups"
    else:
        other = next(side for side, right in sides.items() if right)
        experts = f"{wrong[0]} tokens, {other} tokens agree: {wrong[0]} experts"
    if any(tokens.rerouted.get(side) for side in wrong):
        return f"routing differs for {experts} or their router"
    return f"{experts}; routing agrees"
