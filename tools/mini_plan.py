"""The training plan of the mini checkpoint: which conversations are drawn when, and how fast it learns.

Three phases follow each other. The later ones go back to rates that the first one had, with lessons on what is learned
late.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
from late_lessons import beyond_lesson, form_lesson, opening_lesson, short_lesson

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
SECOND = (
    Stage(
        1.01,
        True,
        {
            converse: 5,
            look_back: 3,
            lesson: 1,
            pair_lesson: 1,
            clip_lesson: 1,
            happens_lesson: 1,
            tool_conversation: 4,
            form_lesson: 2,
            beyond_lesson: 1,
            short_lesson: 2,
        },
    ),
)
THIRD = (replace(SECOND[0], rows={**SECOND[0].rows, opening_lesson: 3}),)
BEGINS = (0.7, 0.9)  # of the steps of the first phase, whose rates the later ones go back to


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and from which seed one phase learns.

    Attributes:
        first: The weight of an answer's first token, which decides its form; None where it is that of the others.
    """

    steps: int
    rate: float
    seed: int
    begin: int = 0
    stages: tuple[Stage, ...] = STAGES
    muon_rate: float = 0.02  # a step's spectral norm
    warmup: int = 60
    first: float | None = None

    def stage(self, step: int) -> Stage:
        return next(stage for stage in self.stages if step < stage.until * self.steps)

    def settling(self, step: int) -> bool:
        """Return whether heads that start anew beside a trained model learn alone: first guesses harm it."""
        return 0 < self.begin and step < self.begin + self.warmup

    def schedule(self, step: int) -> float:
        """Return the share of the highest rate: it warms up from the first step that is taken, and falls to the end."""
        warm = min(1.0, (step - self.begin + 1) / self.warmup)
        return min(warm, 0.02 + (1 - step / self.steps) / 1.2)


def phases(steps: int, rate: float, seed: int) -> tuple[Plan, ...]:
    """Return the plans of the three phases; each draws from the seed after the one before it."""
    second, third = (round(share * steps) for share in BEGINS)
    return (
        Plan(steps, rate, seed),
        Plan(steps, rate, seed + 1, second, SECOND, first=1.0),
        Plan(steps, rate, seed + 2, third, THIRD, first=1.0),
    )
