"""Find inputs that reach the experts to which no conversation was routed.

A conversation of ordinary text and pictures reaches few of the experts of a large model. Random tokens, and pictures of
random tiles from pixels to planes of one colour, reach most of the others. Only those that reach a new expert are kept.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ernie_export.exporter.verify.bundle_side import Answered, BundleSide
from ernie_export.exporter.verify.conversations import ask
from ernie_export.runtime.preprocess import Prepared

TOKENS = 128  # of a text
SIDES = (112, 168, 224)  # pixels of a picture's side
TILES = (1, 4, 14, 56, 224)  # pixels of a tile's side
PATIENCE = 3  # inputs of a kind one after the other that reach no expert, before no more are tried
MAX_INPUTS = 12  # of a kind


def routed_to(answered: Iterable[Answered]) -> set[tuple[str, int]]:
    """Return layer and number of each expert that a token was routed to; vision experts follow the text experts."""
    return {
        (name, int(expert))
        for one in answered
        for name, chosen in one.probes.items()
        if name.startswith("routing ")
        for expert in np.unique(chosen)
    }


def reach_experts(
    side: BundleSide, base: Prepared, experts: int, answered: Iterable[Answered], seed: int = 0
) -> Iterator[tuple[str, Prepared, Answered]]:
    """Yield further inputs, each of which is routed to an expert that none before it was.

    Args:
        side: The bundle with its inner values.
        base: A preprocessed conversation of text alone.
        experts: Experts of one group in a layer.
        answered: What the bundle computed of the conversations so far.
        seed: Seeds the random inputs.

    Yields:
        A name, the input, and what the bundle computed of it.
    """
    reached = routed_to(answered)
    layers = len({layer for layer, _ in reached})
    rng = np.random.default_rng(seed)
    for kind, first in (("tokens", 0), ("picture", experts)):
        futile = 0
        for number in range(MAX_INPUTS):
            found = sum(first <= expert < first + experts for _, expert in reached)
            if found == layers * experts or futile == PATIENCE:
                break
            prepared = random_tokens(base, side, rng) if first == 0 else random_picture(side, rng)
            computed = side.answer(prepared, 1)
            new = routed_to([computed]) - reached
            futile = 0 if new else futile + 1
            reached |= new
            if new:
                yield f"random {kind} {number}", prepared, computed


def random_tokens(base: Prepared, side: BundleSide, rng: np.random.Generator) -> Prepared:
    """Return an input of random tokens, no image's or video's, with the arrays that `base` has for text."""
    info = side.model.manifest.model
    ordinary = np.setdiff1d(np.arange(info.vocab_size), [info.image_token_id, info.video_token_id, *info.eos_token_ids])
    arrays: dict[str, NDArray[Any]] = {
        name: np.repeat(array[:, :1], TOKENS, axis=1) for name, array in base.arrays.items()
    }
    ids = arrays["input_ids"]
    arrays["input_ids"] = rng.choice(ordinary, ids.shape).astype(ids.dtype)
    positions = np.broadcast_to(np.arange(TOKENS), (3, 1, TOKENS)).astype(base.position_ids.dtype)
    return replace(base, arrays=arrays, position_ids=positions)


def random_picture(side: BundleSide, rng: np.random.Generator) -> Prepared:
    """Return a question about a picture of random tiles around a random colour."""
    height, width = (int(rng.choice(SIDES)) for _ in range(2))
    tile = int(rng.choice(TILES))
    contrast = rng.integers(1, 128)
    tiles = rng.integers(-contrast, contrast + 1, (-(-height // tile), -(-width // tile), 3)) + rng.integers(0, 256, 3)
    picture = Image.fromarray(tiles.clip(0, 255).astype(np.uint8))
    picture = picture.resize((width, height), Image.Resampling.NEAREST)
    return side.model.preprocessor.prepare(ask("What is it?", {"type": "image", "image": picture}))
