"""Ways to break a loaded checkpoint on purpose: its experts, its dispatch, its positions, the times on its clips.

    with DAMAGE["routers swapped"](reference):
        judge(reference, "where", 40, 0)

Each acts inside the class, so on every judge in the same way, and is gone when its context ends.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import mini_batches
import numpy as np
import torch
from mini_tripwire import delay_text, exchange_axes
from scenes import Clip

if TYPE_CHECKING:
    from mini_eval import Reference

Inputs = dict[str, Any]  # keyword arguments of one call of the language model


@contextmanager
def _lost(group: str, reference: "Reference") -> Iterator[None]:
    """Make the output of all experts of one group ("text" or "vision") zero, as zeroed weights do."""
    experts = [module for name, module in reference.model.named_modules() if name.endswith(f"{group}_moe.experts")]
    handles = [module.register_forward_hook(lambda _m, _i, out: torch.zeros_like(out)) for module in experts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _fed(make: Callable[[], Callable[[Inputs], Inputs]], reference: "Reference") -> Iterator[None]:
    """Change what every call of the language model is given."""
    change = make()
    handle = reference.model.model.language_model.register_forward_pre_hook(
        lambda _m, positional, inputs: (positional, inputs | change(inputs)), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


def _types(inputs: Inputs) -> torch.Tensor:
    """Return the token types (B, N) of a call; a generated token comes without, and is text."""
    types = inputs["moe_mm_token_type_ids"]
    if types is None:
        return torch.zeros(inputs["inputs_embeds"].shape[:2], dtype=torch.long)
    return types


def _swapped(inputs: Inputs) -> Inputs:
    return {"moe_mm_token_type_ids": 1 - _types(inputs).clamp(max=1)}


def _untyped(inputs: Inputs) -> Inputs:
    return {"moe_mm_token_type_ids": None}


def _moved(inputs: Inputs, positions: torch.Tensor) -> Inputs:
    """Replace the positions (3, B, N); generation has a row of text positions before them, which stays."""
    return {"position_ids": torch.cat([inputs["position_ids"][:-3], positions])}


def _exchanged(inputs: Inputs) -> Inputs:
    return _moved(inputs, exchange_axes(inputs["position_ids"][-3:]))


class _Late:
    """Counts text after media one too high; a generated token follows all of its prompt."""

    def __init__(self) -> None:
        self.prompt = torch.zeros(0, 0)

    def __call__(self, inputs: Inputs) -> Inputs:
        types = _types(inputs)
        count = types.shape[1]
        if count > 1:
            self.prompt = types
        mask = inputs["attention_mask"]
        packed = mask is not None and mask.dim() == 4
        seen = mask[:, 0] == 0 if packed else torch.ones(1, count, count, dtype=torch.bool).tril()
        positions = inputs["position_ids"][-3:]
        if count == 1:
            return _moved(inputs, positions + (self.prompt != 0).any(1, keepdim=True))
        return _moved(inputs, delay_text(positions, types, seen))


def _evened(clip: Clip, font_file: object) -> np.ndarray:
    """Even out an odd count of frames as `mini_batches.stamp` does, and draw nothing."""
    return np.concatenate([clip.frames, clip.frames[-1:]]) if len(clip.frames) % 2 else clip.frames.copy()


@contextmanager
def _unstamped(reference: "Reference") -> Iterator[None]:
    """Draw no time on the frames of clips, neither in the processor nor in its double."""
    drawer = reference.processor.video_processor
    with patch.object(drawer, "draw_on_frames", False), patch.object(mini_batches, "stamp", _evened):
        yield


@contextmanager
def _rerouted(reference: "Reference") -> Iterator[None]:
    """Exchange the routers of the two groups in every layer."""
    pairs = [
        (layer.mlp.text_moe.gate.weight, layer.mlp.vision_moe.gate.weight)
        for layer in reference.model.model.language_model.layers
        if hasattr(layer.mlp, "text_moe")
    ]

    def exchange() -> None:
        for text, vision in pairs:
            text.data, vision.data = vision.data, text.data

    exchange()
    try:
        yield
    finally:
        exchange()


# By the name that tables give it.
DAMAGE: dict[str, Callable[["Reference"], AbstractContextManager[None]]] = {
    "vision experts zeroed": partial(_lost, "vision"),
    "text experts zeroed": partial(_lost, "text"),
    "groups swapped (dispatch inverted)": partial(_fed, lambda: _swapped),
    "all tokens to the text experts": partial(_fed, lambda: _untyped),
    "routers swapped": _rerouted,
    "height and width exchanged": partial(_fed, lambda: _exchanged),
    "text after media one position late": partial(_fed, _Late),
    "no time drawn on frames": _unstamped,
}
