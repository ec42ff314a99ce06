"""Drawn pictures and clips of coloured shapes, with all that is known about them.

`picture_questions.py` and `clip_questions.py` ask about them, `conversations.py` puts the questions into conversations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from io import BytesIO
from random import Random

import numpy as np
from mini_grounds import GROUNDS, Colour, Ground, blank, draw_ground, draw_texture
from PIL import Image, ImageDraw

__all__ = [
    "CELL", "CLIP_CELLS", "COLOURS", "GROUNDS", "SHAPES", "Clip", "Picture", "Thing", "Video", "draw_appearing",
    "draw_moving", "draw_picture", "draw_video", "place", "render",
]  # fmt: skip
CELL = 28  # one merged vision token: two patches of 14 pixels a side
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (38, 150, 62),
    "blue": (36, 84, 214),
    "yellow": (244, 204, 28),
    "purple": (140, 50, 170),
}
FRAME = (90, 90, 96)  # around pictures, so that their outer rows and columns can be distinguished
PICTURE_SIZES = (
    *((2, 2), (3, 2), (2, 3), (4, 2), (3, 3), (3, 3), (3, 3), (3, 3), (4, 3), (3, 4), (4, 4), (4, 4), (4, 4)),
    *((2, 4), (5, 3), (3, 5), (5, 2), (2, 5), (6, 2), (2, 6)),  # what wide and high files are scaled to
)
CLIP_CELLS = (4, 4)
MAX_THINGS = 5
RADII = (8, 13)  # of things, in pixels
JITTER = 3  # pixels either way from the middle of a cell, as far as the cell holds the thing
TONE = 18  # levels of a channel either way from the colour
EMPTY = 0.06  # of pictures show no shapes
TEXTURED = 0.6  # of these show a texture
MAX_SECONDS = 24  # of a clip


@dataclass(frozen=True)
class Thing:
    """A shape of one colour.

    Attributes:
        x: The centre, in pixels of the unscaled picture; so are `y` and `radius`.
        tone: The colour it is drawn in; None for that of `COLOURS`.
    """

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    tone: Colour | None = None

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


def matching(things: Sequence[Thing], shape: str | None = None, colour: str | None = None) -> list[Thing]:
    """Return the things of this shape and colour; None matches any."""
    return [t for t in things if shape in (None, t.shape) and colour in (None, t.colour)]


@dataclass(frozen=True)
class Clip:
    """Frames uint8 (n, height, width, 3), RGB, and how many of them are shown a second."""

    frames: np.ndarray
    fps: float


@lru_cache(maxsize=512)
def _mask(shape: str, radius: int) -> Image.Image:
    """Coverage (L) of a shape, drawn four times too large and averaged down."""
    side = 2 * radius + 1
    edge = 4 * (2 * radius + 1) - 1
    image = Image.new("L", (4 * side, 4 * side), 0)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((0, 0, edge, edge), fill=255)
    elif shape == "square":
        inset = edge // 12
        draw.rectangle((inset, inset, edge - inset, edge - inset), fill=255)
    elif shape == "triangle":
        draw.polygon([(edge / 2, 0), (edge, edge), (0, edge)], fill=255)
    else:
        third = edge / 3
        draw.rectangle((third, 0, 2 * third, edge), fill=255)
        draw.rectangle((0, third, edge, 2 * third), fill=255)
    return image.reduce(4)


def render(
    things: Sequence[Thing], cells: tuple[int, int], ground: Ground, scale: int = 1, framed: bool = False
) -> Image.Image:
    """Draw a scene of `cells` (columns, rows), in a thin frame or not; `scale` enlarges it for people to look at."""
    image = blank(ground, cells[0] * CELL * scale, cells[1] * CELL * scale)
    if framed:
        edge = (0, 0, image.width - 1, image.height - 1)
        ImageDraw.Draw(image).rectangle(edge, outline=FRAME, width=2 * scale)
    for thing in things:
        radius = round(thing.radius * scale)
        corner = (round(thing.x * scale) - radius, round(thing.y * scale) - radius)
        image.paste(thing.tone or COLOURS[thing.colour], corner, _mask(thing.shape, radius))
    return image


def _jpeg(image: Image.Image, quality: int | None) -> Image.Image:
    """Return the image after the losses of a JPEG: lossy files and clips must read like clean ones."""
    if quality is None:
        return image
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


@dataclass(frozen=True)
class Picture:
    """A picture of things in cells, drawn when it is asked for.

    Attributes:
        things: What it shows, in reading order; nothing at all now and then.
        cells: Its columns and rows.
        quality: JPEG quality to draw it with; None for no loss.
        framed: Whether a thin frame surrounds it.
        scale: How many times larger it is drawn, to be reduced as a processor reduces a large file.
    """

    things: tuple[Thing, ...]
    cells: tuple[int, int]
    ground: Ground
    quality: int | None
    framed: bool = True
    scale: int = 1

    @cached_property
    def image(self) -> Image.Image:
        drawn = _jpeg(render(self.things, self.cells, self.ground, self.scale, self.framed), self.quality)
        size = (self.cells[0] * CELL, self.cells[1] * CELL)
        return drawn if self.scale == 1 else drawn.resize(size, Image.Resampling.BICUBIC)

    def only(self, shape: str | None = None, colour: str | None = None) -> Thing | None:
        """Return the one thing of this shape and colour (None matches any), or None where there is not exactly one."""
        found = self.matching(shape, colour)
        return found[0] if len(found) == 1 else None

    def matching(self, shape: str | None = None, colour: str | None = None) -> list[Thing]:
        """Return the things of this shape and colour; None matches any."""
        return matching(self.things, shape, colour)


@dataclass(frozen=True)
class Video:
    """A clip in which one thing moves, or things appear.

    Attributes:
        frames: The things of every frame.
        fps: Frames a second; the time of a frame is drawn on it by the processor.
        mover: The thing that moves `way`, if one does.
        late: The things that appear, and the index of their first frame.
    """

    frames: tuple[tuple[Thing, ...], ...]
    fps: float
    ground: Ground
    qualities: tuple[int | None, ...]
    mover: Thing | None = None
    way: str = ""
    late: tuple[tuple[Thing, int], ...] = ()

    @cached_property
    def clip(self) -> Clip:
        drawn = [
            np.asarray(_jpeg(render(things, CLIP_CELLS, self.ground), quality))
            for things, quality in zip(self.frames, self.qualities, strict=True)
        ]
        return Clip(np.stack(drawn), self.fps)

    def seconds(self, index: int) -> int:
        """Return the time that is drawn on a frame."""
        return round(index / self.fps)


def _quality(rng: Random) -> int | None:
    return rng.randint(60, 95) if rng.random() < 0.5 else None


def _jitter(rng: Random, radius: int) -> int:
    """Return by how many pixels a thing stands off the middle of its cell."""
    return rng.randint(-min(JITTER, CELL // 2 - radius), min(JITTER, CELL // 2 - 1 - radius))


def _thing(rng: Random, shape: str, colour: str, cell: tuple[int, int]) -> Thing:
    radius = rng.randint(*RADII)
    x, y = (CELL * c + CELL / 2 + _jitter(rng, radius) for c in cell)
    red, green, blue = (min(max(level + rng.randint(-TONE, TONE), 0), 255) for level in COLOURS[colour])
    return Thing(shape, colour, x, y, radius, (red, green, blue))


def _distinct(rng: Random, cells: list[tuple[int, int]]) -> list[Thing]:
    """Return a thing for each cell; no two share a shape or a colour."""
    looks = zip(rng.sample(SHAPES, len(cells)), rng.sample(list(COLOURS), len(cells)), strict=True)
    return [_thing(rng, *look, cell) for look, cell in zip(looks, cells, strict=True)]


PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")


def place(thing: Thing, cells: tuple[int, int]) -> str:
    """Return the part of the picture that holds the thing: the outer rows and columns are its sides."""
    column = int(thing.x // CELL)
    row = int(thing.y // CELL)
    across = "left" if column == 0 else "right" if column == cells[0] - 1 else ""
    down = "top" if row == 0 else "bottom" if row == cells[1] - 1 else ""
    return f"{down} {across}".strip() or "middle"


def draw_picture(rng: Random) -> Picture:
    """Return a picture of up to five things; half of the time no two of them are alike in shape or colour."""
    cells = rng.choice(PICTURE_SIZES)
    free = [(column, row) for row in range(cells[1]) for column in range(cells[0])]
    if rng.random() < EMPTY:
        things = []
    elif rng.random() < 0.5:
        things = _distinct(rng, rng.sample(free, rng.choice((1, 1, 2, 2, 3, 3, 4))))
    else:
        chosen = rng.sample(free, rng.choice((1, 2, 3, 3, 4, 4, 5)[: 5 if len(free) < MAX_THINGS else 7]))
        things = [_thing(rng, rng.choice(SHAPES), rng.choice(list(COLOURS)), cell) for cell in chosen]
    things.sort(key=lambda thing: (thing.y // CELL, thing.x // CELL))
    framed = rng.random() < 0.8
    ground = draw_ground(rng) if things or rng.random() > TEXTURED else draw_texture(rng)
    return Picture(tuple(things), cells, ground, _quality(rng), framed, rng.choice((1, 1, 2, 3)))


def draw_moving(rng: Random, count: int) -> Video:
    """Return a clip in which one thing crosses the lower three rows while another may stand still."""
    way = rng.choice(("left", "right", "up", "down"))
    lane = rng.randrange(4) if way in ("up", "down") else rng.randrange(1, 4)
    first, last = (0.0, 3.0) if way in ("left", "right") else (1.0, 3.0)
    if way in ("left", "up"):
        first, last = last, first
    # The still thing keeps off the mover's lane, and off the top row where the timestamp is drawn.
    free = [(c, r) for c in range(4) for r in range(1, 4) if (c if way in ("up", "down") else r) != lane]
    mover, still = _distinct(rng, [(0, 0), rng.choice(free)])
    others = (still,) if rng.random() < 0.6 else ()
    off = _jitter(rng, int(mover.radius))
    frames = []
    for index in range(count):
        along = (first + (last - first) * index / (count - 1)) * CELL + CELL / 2
        across = lane * CELL + CELL / 2 + off
        x, y = (along, across) if way in ("left", "right") else (across, along)
        frames.append((*others, replace(mover, x=x, y=y)))
    qualities = tuple(_quality(rng) for _ in frames)
    fps = rng.choice((2.0, 1.0, 1 / 2, 1 / 3, 1 / 5))
    return Video(tuple(frames), fps, draw_ground(rng), qualities, mover, way)


def draw_appearing(rng: Random, count: int) -> Video:
    """Return a clip in which one thing stands from the start and one or two appear, whole seconds between frames."""
    cells = rng.sample([(column, row) for row in range(1, 4) for column in range(4)], rng.choice((2, 3, 3, 3)))
    still, *things = _distinct(rng, cells)
    late = tuple((thing, rng.randrange(1, count)) for thing in things)
    frames = tuple((still, *(thing for thing, start in late if index >= start)) for index in range(count))
    fps = 1 / rng.randint(1, MAX_SECONDS // (count - 1))
    return Video(frames, fps, draw_ground(rng), tuple(_quality(rng) for _ in frames), late=late)


def draw_video(rng: Random) -> Video:
    """Return a clip of three to six frames."""
    return rng.choice((draw_moving, draw_appearing))(rng, rng.choice((3, 4, 4, 5, 6)))
