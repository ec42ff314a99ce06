"""What drawn pictures and clips are drawn on: plain grounds, and gradients of two light tints."""

import math
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]
GROUNDS: tuple[Colour, ...] = ((255, 255, 255), (242, 240, 232), (228, 234, 242))
LIGHT = (208, 255)  # channels of a gradient's tints, so that every colour of a shape stands out
NOISE = 4  # grey levels either way


@dataclass(frozen=True)
class Gradient:
    """A smooth change from one light tint to another, with a little noise; the same seed draws the same noise.

    Attributes:
        tints: The colours at its two ends.
        angle: Radians by which the change is turned from left to right.
        seed: Draws the noise.
    """

    tints: tuple[Colour, Colour]
    angle: float
    seed: int

    def draw(self, width: int, height: int) -> Image.Image:
        """Return the ground of a picture of this size."""
        return _drawn(self, width, height).copy()


Ground = Colour | Gradient


@lru_cache(maxsize=64)
def _drawn(gradient: Gradient, width: int, height: int) -> Image.Image:
    across = np.linspace(-0.5, 0.5, width) * math.cos(gradient.angle)
    down = np.linspace(-0.5, 0.5, height) * math.sin(gradient.angle)
    share = (across[None] + down[:, None]) / math.sqrt(2) + 0.5
    first, second = np.array(gradient.tints, float)
    pixels = first + share[..., None] * (second - first)
    pixels += np.random.default_rng(gradient.seed).uniform(-NOISE, NOISE, (height, width, 1))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def _tint(rng: Random) -> Colour:
    red, green, blue = (rng.randint(*LIGHT) for _ in range(3))
    return red, green, blue


def draw_ground(rng: Random) -> Ground:
    """Return a plain ground half of the time, else a gradient."""
    if rng.random() < 0.5:
        return rng.choice(GROUNDS)
    return Gradient((_tint(rng), _tint(rng)), rng.uniform(0, 2 * math.pi), rng.randrange(2**31))


def blank(ground: Ground, width: int, height: int) -> Image.Image:
    """Return an image of this size that shows nothing but the ground."""
    return ground.draw(width, height) if isinstance(ground, Gradient) else Image.new("RGB", (width, height), ground)
