"""Linear heads that read from hidden states what a picture's or a clip's tokens should hold, and the right classes.

They serve training only. `cell_labels` say what the cells below a token show: the encoder and the resampler learn from
them alone. `gathered_labels` say what a media token can know by looking back at the tokens before it.
"""

from collections.abc import Iterator

import torch
from conversations import MAX_PICTURES, MAX_VIDEOS
from mini_batches import IGNORED, drawn_time, media_grid
from scenes import CELL, CLIP_CELLS, COLOURS, SHAPES, Picture, Thing, Video
from torch import nn
from torch.nn import functional as F

WAYS = ("left", "right", "up", "down")
SHAPE_CLASSES = 1 + len(SHAPES)  # 0 is none
COLOUR_CLASSES = 1 + len(COLOURS)
NUMBER_CLASSES = 1 + MAX_PICTURES + MAX_VIDEOS
SIDE_CLASSES = 3  # at the first line, between, at the last line
# A clip's token covers two frames, a and b; a picture has the first only.
CELL_HEADS = {
    **{f"shape {frame}": SHAPE_CLASSES for frame in "ab"},
    **{f"colour {frame}": COLOUR_CLASSES for frame in "ab"},
    **{f"{digit} {frame}": 10 for frame in "ab" for digit in ("tens", "ones")},
    "column": SIDE_CLASSES,
    "row": SIDE_CLASSES,
}
GATHERED_HEADS = {
    "number": NUMBER_CLASSES,
    "count": 6,
    **{f"{digit} {frame}": 10 for frame in "ab" for digit in ("tens", "ones")},
    "way": 1 + len(WAYS),
    "starts": 3,  # in neither frame, in the first, in the second
}
Labels = dict[str, torch.Tensor]


class Heads(nn.Module):
    """One linear layer for each name, on hidden states of unit size.

    Args:
        classes: The number of classes by name.
        hidden: The width of the hidden states.
    """

    def __init__(self, classes: dict[str, int], hidden: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, count) for name, count in classes.items()})

    def forward(self, states: torch.Tensor, labels: Labels, hits: dict[str, list[float]]) -> torch.Tensor:
        """Return the mean cross entropy over the heads of float (n, hidden), labels int64 (n,); `hits` take accuracies.

        A head without any label adds nothing.
        """
        states = F.rms_norm(states, states.shape[-1:])
        losses = [states.sum() * 0]
        for name, head in self.heads.items():
            known = labels[name] != IGNORED
            if known.any():
                logits = head(states[known])
                losses.append(F.cross_entropy(logits, labels[name][known]))
                hits[name].append(float((logits.argmax(-1) == labels[name][known]).float().mean()))
        return torch.stack(losses).sum() / len(self.heads)


def _shown(thing: Thing, column: int, row: int) -> bool | None:
    """Return whether a cell shows the thing, or None where a part of it lies in the cell."""
    away = max(abs(thing.x / CELL - column - 0.5), abs(thing.y / CELL - row - 0.5))
    return True if away <= 0.5 else None if away < 0.85 else False


def _cell(things: tuple[Thing, ...], column: int, row: int) -> tuple[int, int]:
    """Return the classes of shape and colour of a cell."""
    found = [(_shown(thing, column, row), thing) for thing in things]
    for shown, thing in found:
        if shown:
            return 1 + SHAPES.index(thing.shape), 1 + list(COLOURS).index(thing.colour)
    return (IGNORED, IGNORED) if any(shown is None for shown, _ in found) else (0, 0)


def _pairs(medium: Picture | Video) -> Iterator[tuple[int, ...]]:
    """Yield the frames that one token covers, in order of time."""
    if isinstance(medium, Picture):
        yield (0,)
        return
    last = len(medium.frames) - 1
    for first in range(0, last + 1, 2):
        yield first, min(first + 1, last)


def _tokens(medium: Picture | Video) -> Iterator[tuple[tuple[int, ...], int, int]]:
    """Yield the frames, the column and the row of each token, in order."""
    _, height, width = media_grid(medium)
    for frames in _pairs(medium):
        for row in range(height // 2):
            for column in range(width // 2):
                yield frames, column, row


def _things(medium: Picture | Video, frame: int) -> tuple[Thing, ...]:
    return medium.things if isinstance(medium, Picture) else medium.frames[frame]


def _digits(medium: Picture | Video, frames: tuple[int, ...]) -> dict[str, int]:
    """Return the digits of the whole seconds that are drawn on a token's frames."""
    if isinstance(medium, Picture):
        return {}
    found = {}
    for name, frame in zip("ab", frames, strict=True):
        tens, ones, *_ = drawn_time(frame, medium.fps).rpartition(":")[2]
        found |= {f"tens {name}": int(tens), f"ones {name}": int(ones)}
    return found


def _side(index: int, count: int) -> int:
    return 0 if index == 0 else 2 if index == count - 1 else 1


def _stacked(rows: list[dict[str, int]], names: dict[str, int]) -> Labels:
    return {name: torch.tensor([row.get(name, IGNORED) for row in rows]) for name in names}


def cell_labels(medium: Picture | Video) -> Labels:
    """Return the classes (n,) of `CELL_HEADS` for the n tokens of a picture or a clip.

    The drawn time is asked of the top row, whose cells it is drawn in.
    """
    columns, rows = medium.cells if isinstance(medium, Picture) else CLIP_CELLS
    labels = []
    for frames, column, row in _tokens(medium):
        label = {"column": _side(column, columns), "row": _side(row, rows)}
        for name, frame in zip("ab", frames, strict=False):
            label[f"shape {name}"], label[f"colour {name}"] = _cell(_things(medium, frame), column, row)
        labels.append(label | (_digits(medium, frames) if row == 0 else {}))
    return _stacked(labels, CELL_HEADS)


def number_class(medium: Picture | Video, number: int) -> int:
    """Return the class of a picture's or a clip's number, from 1: clips come after the pictures, 0 is none."""
    return number + (MAX_PICTURES if isinstance(medium, Video) else 0)


def gathered_labels(medium: Picture | Video, number: int) -> Labels:
    """Return the classes (n,) of `GATHERED_HEADS` for the n tokens of the picture or the clip of a number, from 1."""
    labels = []
    count = 0
    last = 0 if isinstance(medium, Picture) else len(medium.frames) - 1
    for frames, column, row in _tokens(medium):
        label = {"number": number_class(medium, number)} | _digits(medium, frames)
        if isinstance(medium, Picture):
            count += any(_shown(thing, column, row) for thing in medium.things)
            label["count"] = count
        else:
            label["starts"] = _starts(medium, frames, column, row)
            if frames[-1] == last:
                count += any(_shown(thing, column, row) for thing in medium.frames[last])
                label["count"] = count
                label["way"] = 1 + WAYS.index(medium.way) if medium.way else 0
        labels.append(label)
    return _stacked(labels, GATHERED_HEADS)


def _starts(video: Video, frames: tuple[int, ...], column: int, row: int) -> int:
    """Return 1 or 2 where a thing appears in a cell in the first or the second of a token's frames, else 0."""
    for thing, start in video.late:
        if _shown(thing, column, row) and start in frames:
            return 1 + frames.index(start)
    return 0
