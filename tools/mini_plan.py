"""The training plan of the mini checkpoint: which conversations are drawn when, and how fast it learns."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from conversations import Sample, Source
from curriculum import (
    clip_lesson,
    converse,
    first_lesson,
    happens_lesson,
    lesson,
    look_back,
    pair_lesson,
    tool_conversation,
)

Maker = Callable[[Random, Source], list[Sample]]


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Attributes:
        until: The share of the run at which it ends.
        faults: Whether faults are trained against.
        rows: How many conversations of each maker one worker draws for one step.
    """

    until: float
    faults: bool
    rows: dict[Maker, int]


STAGES = (
    Stage(0.05, False, {first_lesson: 12, clip_lesson: 4}),
    Stage(0.30, False, {lesson: 7, pair_lesson: 4, clip_lesson: 6}),
    Stage(0.60, True, {converse: 8, lesson: 3, pair_lesson: 2, clip_lesson: 2, tool_conversation: 2}),
    Stage(
        1.01,
        True,
        {
            converse: 6,
            look_back: 3,
            lesson: 1,
            pair_lesson: 1,
            clip_lesson: 1,
            happens_lesson: 2,
            tool_conversation: 4,
        },
    ),
)


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and from which seed."""

    steps: int
    rate: float
    seed: int
    begin: int
    muon_rate: float = 0.02  # a step's spectral norm
    warmup: int = 60

    def stage(self, step: int) -> Stage:
        return next(stage for stage in STAGES if step < stage.until * self.steps)

    def settling(self, step: int) -> bool:
        """Return whether heads that start anew beside a trained model learn alone: first guesses harm it."""
        return 0 < self.begin and step < self.begin + self.warmup

    def schedule(self, step: int) -> float:
        """Return the share of the highest rate: it warms up from the first step that is taken, and falls to the end."""
        warm = min(1.0, (step - self.begin + 1) / self.warmup)
        return min(warm, 0.02 + (1 - step / self.steps) / 1.2)
