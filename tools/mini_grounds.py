"""What drawn pictures and clips are drawn on: plain grounds, gradients of two light tints, textures without shapes."""

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


@dataclass(frozen=True)
class Texture:
    """Patches of any colour that run into each other, as a photograph reduced to few pixels has them.

    Attributes:
        patches: Columns and rows of patches.
        reach: Levels of a channel either way from the middle of the picture's own range.
        seed: Draws the colours and a little noise.
    """

    patches: tuple[int, int]
    reach: int
    seed: int

    def draw(self, width: int, height: int) -> Image.Image:
        """Return the ground of a picture of this size."""
        rng = np.random.default_rng(self.seed)
        middle = rng.uniform(self.reach, 255 - self.reach, 3)
        colours = middle + rng.uniform(-self.reach, self.reach, (self.patches[1], self.patches[0], 3))
        smooth = Image.fromarray(colours.round().astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(smooth, float) + rng.normal(0, 3 * NOISE, (height, width, 1))
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


Ground = Colour | Gradient | Texture


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


def draw_texture(rng: Random) -> Texture:
    """Return a ground for a picture that shows no shapes."""
    return Texture((rng.randint(2, 9), rng.randint(2, 9)), rng.choice((20, 60, 110, 127)), rng.randrange(2**31))


def blank(ground: Ground, width: int, height: int) -> Image.Image:
    """Return an image of this size that shows nothing but the ground."""
    return (
        ground.draw(width, height)
        if isinstance(ground, Gradient | Texture)
        else Image.new("RGB", (width, height), ground)
    )
