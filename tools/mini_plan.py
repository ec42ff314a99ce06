"""The training plan of the mini checkpoint: which conversations are drawn when, and how fast it learns."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from conversations import Sample, Source
from curriculum import clip_lesson, clock_lesson, converse, first_lesson, lesson, pair_lesson, tool_conversation

Maker = Callable[[Random, Source], list[Sample]]


@dataclass(frozen=True)
class Stage:
    """A part of the run.

    Attributes:
        until: The share of the run at which it ends.
        live: Whether the encoder learns; else features come from a stock.
        faults: Whether faults are trained against.
        rows: How many conversations of each maker one worker draws for one step.
    """

    until: float
    live: bool
    faults: bool
    rows: dict[Maker, int]


STAGES = (
    Stage(0.15, True, False, {first_lesson: 10, clock_lesson: 12}),
    Stage(0.60, True, False, {lesson: 6, pair_lesson: 4, clip_lesson: 4, clock_lesson: 3}),
    Stage(0.85, True, True, {converse: 7, lesson: 2, pair_lesson: 2, clip_lesson: 2, tool_conversation: 2}),
    Stage(1.01, False, True, {converse: 10, pair_lesson: 2, clip_lesson: 2, tool_conversation: 2}),
)


@dataclass(frozen=True)
class Plan:
    """How long, how fast, and from which seed."""

    steps: int
    rate: float
    seed: int
    begin: int
    muon_rate: float = 0.02  # a step's spectral norm
    warmup: int = 100
    decay: float = 0.6  # share of the run at whose end the rate is nearly nothing

    def stage(self, step: int) -> Stage:
        return next(stage for stage in STAGES if step < stage.until * self.steps)

    def schedule(self, step: int) -> float:
        """Return the share of the highest rate: it warms up from the first step that is taken, and fades at the end."""
        warm = min(1.0, (step - self.begin + 1) / self.warmup)
        return min(warm, 0.02 + (1 - step / self.steps) / self.decay)
