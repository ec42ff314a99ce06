"""The scenes and plain questions that the weights in examples/mini-ernie were trained on (see ACCURACY.md there).

The mini checkpoint is trained and judged on these. Every question needs something that an export can break: the order
of pictures (pairs), the order of frames and the drawn timestamps (clips), rows and columns (where), sums over many
tokens (count). `stream` draws training samples, `heldout` draws questions from seeds that training never uses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CELL = 28  # one merged vision token: two patches of 14 pixels a side
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (38, 150, 62),
    "blue": (36, 84, 214),
    "yellow": (244, 204, 28),
    "purple": (140, 50, 170),
}
GROUNDS = ((255, 255, 255), (242, 240, 232), (228, 234, 242))
FRAME = (90, 90, 96)  # around pictures, so that their outer rows and columns can be distinguished
NUMBERS = ("none", "one", "two", "three", "four", "five")
SIDES = {"circle": "none", "square": "four", "triangle": "three", "cross": "twelve"}
SINGLE_SIZES = ((3, 3), (3, 3), (4, 3), (3, 4), (4, 4))
PAIR_SIZES = ((2, 2), (3, 2), (2, 3), (3, 3), (4, 2))
CLIP_CELLS = (4, 4)


@dataclass(frozen=True)
class Thing:
    """A shape of one colour; centre and radius in pixels of the unscaled picture."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Clip:
    """Frames uint8 (n, height, width, 3), RGB, and how many of them are shown a second."""

    frames: np.ndarray
    fps: float


@dataclass(frozen=True)
class Sample:
    """A conversation in chat-message form that ends in a user's question, and the exact answer to it."""

    kind: str
    messages: list[dict[str, Any]]
    answer: str


@dataclass(frozen=True)
class Scene:
    """Media and all that can be asked about them: (kind, question, answer), after the turns of `history`."""

    history: list[dict[str, Any]]
    media: list[dict[str, Any]]
    asked: list[tuple[str, str, str]]

    def samples(self) -> list[Sample]:
        """One conversation for each question; they share the media objects."""
        return [
            Sample(
                kind,
                [*self.history, {"role": "user", "content": [*self.media, {"type": "text", "text": question}]}],
                answer,
            )
            for kind, question, answer in self.asked
        ]


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
    things: list[Thing], cells: tuple[int, int], ground: tuple[int, int, int], scale: int = 1, framed: bool = False
) -> Image.Image:
    """Draw a scene of `cells` (columns, rows), in a thin frame or not; `scale` enlarges it for people to look at."""
    image = Image.new("RGB", (cells[0] * CELL * scale, cells[1] * CELL * scale), ground)
    if framed:
        edge = (0, 0, image.width - 1, image.height - 1)
        ImageDraw.Draw(image).rectangle(edge, outline=FRAME, width=2 * scale)
    for thing in things:
        radius = round(thing.radius * scale)
        corner = (round(thing.x * scale) - radius, round(thing.y * scale) - radius)
        image.paste(COLOURS[thing.colour], corner, _mask(thing.shape, radius))
    return image


def _worn(rng: Random, image: Image.Image) -> Image.Image:
    """Half of the time, the losses of a JPEG: lossy files and clips must read like clean ones."""
    if rng.random() < 0.5:
        return image
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(60, 95))
    return Image.open(buffer).convert("RGB")


def _thing(rng: Random, shape: str, colour: str, cell: tuple[int, int]) -> Thing:
    x, y = (CELL * c + CELL / 2 + rng.randint(-1, 1) for c in cell)
    return Thing(shape, colour, x, y, rng.choice((10, 11, 12)))


def _cells(rng: Random, cells: tuple[int, int], count: int) -> list[tuple[int, int]]:
    return rng.sample([(c, r) for r in range(cells[1]) for c in range(cells[0])], count)


def _distinct(rng: Random, cells: tuple[int, int], count: int) -> list[Thing]:
    """Things that share neither shape nor colour."""
    looks = zip(rng.sample(SHAPES, count), rng.sample(list(COLOURS), count), strict=True)
    return [_thing(rng, *look, cell) for look, cell in zip(looks, _cells(rng, cells, count), strict=True)]


def _any(rng: Random, cells: tuple[int, int], count: int) -> list[Thing]:
    places = _cells(rng, cells, count)
    return [_thing(rng, rng.choice(SHAPES), rng.choice(list(COLOURS)), cell) for cell in places]


def place(thing: Thing, cells: tuple[int, int]) -> str:
    """Name of the part of the picture that holds the thing: the outer rows and columns are its sides."""
    column = int(thing.x // CELL)
    row = int(thing.y // CELL)
    across = "left" if column == 0 else "right" if column == cells[0] - 1 else ""
    down = "top" if row == 0 else "bottom" if row == cells[1] - 1 else ""
    return f"{down} {across}".strip() or "middle"


def _picture(rng: Random, things: list[Thing], cells: tuple[int, int]) -> dict[str, Any]:
    return {"type": "image", "image": _worn(rng, render(things, cells, rng.choice(GROUNDS), framed=True))}


def apart(rng: Random, cells: tuple[int, int], most: int = 4) -> Scene:
    """Up to `most` things, no two alike in shape or colour."""
    things = _distinct(rng, cells, rng.choice((1, *range(1, most + 1))))
    asked = []
    for thing in things:
        asked.append(("shape", f"What shape is the {thing.colour} one?", thing.shape))
        asked.append(("colour", f"What colour is the {thing.shape}?", thing.colour))
        asked.append(("where", f"Where is the {thing.shape}?", place(thing, cells)))
    return Scene([], [_picture(rng, things, cells)], asked)


def first(rng: Random, cells: tuple[int, int]) -> Scene:
    """One thing, or two: where training begins."""
    return apart(rng, cells, most=2)


def mixed(rng: Random, cells: tuple[int, int]) -> Scene:
    """Up to five things, alike or not, to be counted or listed in reading order."""
    things = _any(rng, cells, rng.choice((1, 1, 2, 3, 4, 5)))
    things.sort(key=lambda thing: (thing.y // CELL, thing.x // CELL))
    asked = [("count", "How many shapes are there?", NUMBERS[len(things)])]
    for tone in {things[0].colour, rng.choice(list(COLOURS))}:
        number = sum(thing.colour == tone for thing in things)
        asked.append(("count", f"How many shapes are {tone}?", NUMBERS[number]))
    if len(things) <= 3:
        asked.append(("describe", "What is in the picture?", ", ".join(thing.name for thing in things)))
    return Scene([], [_picture(rng, things, cells)], asked)


def couple(rng: Random, cells: tuple[tuple[int, int], tuple[int, int]]) -> Scene:
    """Two pictures of unequal size: one shape is in both, in two colours; all else is in one of them."""
    shared = rng.choice(SHAPES)
    tones = rng.sample(list(COLOURS), 2)
    looks = [(s, c) for s in SHAPES for c in COLOURS if s != shared]
    rng.shuffle(looks)
    media = []
    asked = []
    counts = rng.sample((1, 2, 3, 4), 2)
    for index, (size, number) in enumerate(zip(cells, counts, strict=True)):
        own = [(shared, tones[index]), *(looks.pop() for _ in range(number - 1))]
        places = _cells(rng, size, number)
        things = [_thing(rng, *look, cell) for look, cell in zip(own, places, strict=True)]
        media.append(_picture(rng, things, size))
        asked.append(("other", f"What colour is the {shared} in picture {index + 1}?", tones[index]))
        asked += [
            ("which", f"Which picture has a {thing.name}?", ("the first", "the second")[index]) for thing in things
        ]
    asked.append(("more", "Which picture has more shapes?", ("the first", "the second")[counts[1] > counts[0]]))
    return Scene([], media, asked)


def _clip(rng: Random, frames: list[list[Thing]], fps: float) -> dict[str, Any]:
    ground = rng.choice(GROUNDS)
    drawn = [np.asarray(_worn(rng, render(things, CLIP_CELLS, ground))) for things in frames]
    return {"type": "video", "video": Clip(np.stack(drawn), fps)}


def _moving(rng: Random, frames: int) -> tuple[list[list[Thing]], Thing, str]:
    """Frames in which the first thing crosses the lower three rows while another may stand still."""
    things = _distinct(rng, CLIP_CELLS, 2)
    way = rng.choice(("left", "right", "up", "down"))
    lane = rng.randrange(4) if way in ("up", "down") else rng.randrange(1, 4)
    first, last = (0.0, 3.0) if way in ("left", "right") else (1.0, 3.0)
    if way in ("left", "up"):
        first, last = last, first
    # The still thing keeps off the mover's lane, and off the top row where the timestamp is drawn.
    free = [(c, r) for c in range(4) for r in range(1, 4) if (c if way in ("up", "down") else r) != lane]
    still = [_thing(rng, things[1].shape, things[1].colour, rng.choice(free))] if rng.random() < 0.6 else []
    mover = things[0]
    drawn = []
    for index in range(frames):
        along = (first + (last - first) * index / (frames - 1)) * CELL + CELL / 2
        across = lane * CELL + CELL / 2
        x, y = (along, across) if way in ("left", "right") else (across, along)
        drawn.append([*still, Thing(mover.shape, mover.colour, x, y, 11)])
    return drawn, mover, way


def moving(rng: Random, frames: int) -> Scene:
    drawn, thing, way = _moving(rng, frames)
    asked = [
        ("direction", f"Which way does the {thing.shape} move?", way),
        ("mover", "Which shape moves?", f"the {thing.name}"),
    ]
    return Scene([], [_clip(rng, drawn, rng.choice((2.0, 1.0, 0.5)))], asked)


def appearing(rng: Random, frames: int) -> Scene:
    """One frame a second; one thing stands from the start, two appear at the second drawn on their first frame."""
    cells = _cells(rng, (4, 3), 3)
    still, *late = (
        _thing(rng, thing.shape, thing.colour, (column, row + 1))
        for thing, (column, row) in zip(_distinct(rng, CLIP_CELLS, 3), cells, strict=True)
    )
    starts = [rng.randrange(1, frames) for _ in late]
    pairs = list(zip(late, starts, strict=True))
    drawn = [[still, *(thing for thing, start in pairs if index >= start)] for index in range(frames)]
    asked = [("when", f"When does the {t.shape} appear?", f"at {start} seconds") for t, start in pairs]
    return Scene([], [_clip(rng, drawn, 1.0)], asked)


def turns(rng: Random, frames: int) -> Scene:
    """A picture in one turn, a clip in the next; the second question may go back to the picture."""
    things = _distinct(rng, (3, 3), 2)
    drawn, thing, way = _moving(rng, frames)
    first = f"What colour is the {things[0].shape}?"
    history = [
        {"role": "user", "content": [_picture(rng, things, (3, 3)), {"type": "text", "text": first}]},
        {"role": "assistant", "content": [{"type": "text", "text": things[0].colour}]},
    ]
    asked = [
        ("turns", f"Which way does the {thing.shape} move?", way),
        ("turns", "Which shape moves?", f"the {thing.name}"),
        ("turns", f"What colour is the {things[1].shape} in picture 1?", things[1].colour),
    ]
    return Scene(history, [_clip(rng, drawn, rng.choice((2.0, 1.0, 0.5)))], asked)


def text(rng: Random, _: None) -> Scene:
    return Scene([], [], [("text", f"How many sides has a {shape}?", sides) for shape, sides in SIDES.items()])


# family: (its scenes, kinds of question that they ask)
FAMILIES: dict[str, tuple[tuple[Callable[..., Scene], ...], tuple[str, ...]]] = {
    "first": ((first,), ()),
    "apart": ((apart,), ()),
    "single": ((apart, mixed), ("shape", "colour", "count", "where", "describe")),
    "pair": ((couple,), ("more", "which", "other")),
    "clip": ((moving, appearing), ("direction", "mover", "when")),
    "turns": ((turns,), ("turns",)),
    "text": ((text,), ("text",)),
}
KINDS = {kind: family for family, (_, kinds) in FAMILIES.items() for kind in kinds}


def layout(rng: Random, family: str) -> Any:
    """Sizes that all scenes of one training batch share: cells of a picture or of two, or a number of frames."""
    if family == "first":
        return rng.choice(((2, 2), (2, 2), (3, 2), (3, 3)))
    if family in ("apart", "single"):
        return rng.choice(SINGLE_SIZES)
    if family == "pair":
        return tuple(rng.sample(PAIR_SIZES, 2))
    return rng.choice((3, 4, 4, 5, 6)) if family in ("clip", "turns") else None


def heldout(kind: str, n: int, seed: int = 0) -> Iterator[Sample]:
    """`n` questions of one kind from seeds outside the training range; the same ones on every call.

    Raises KeyError for an unknown kind.
    """
    family = KINDS[kind]
    for index in range(n):
        rng = Random(f"heldout/{seed}/{kind}/{index}")
        samples: list[Sample] = []
        while not samples:
            scene = rng.choice(FAMILIES[family][0])(rng, layout(rng, family))
            samples = [sample for sample in scene.samples() if sample.kind == kind]
        yield rng.choice(samples)
