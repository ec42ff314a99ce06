"""Does a bundle compute what PyTorch computes? Stage by stage, layer by layer, token by token.

Both sides get the same arrays (the bundle's own preprocessing) for a few conversations: text alone, one picture, two of
unequal size, a clip, and pictures with a clip. Pictures are drawn from a seed, so a report can be repeated. Then both
read the reference's own greedy answer, token by token: where their next-token distributions part is what a lower
precision costs.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ernie_export.exporter.targets import find_target
from ernie_export.exporter.verify.bundle_side import TracedEngine
from ernie_export.exporter.verify.questions import Question, ask_questions
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.graphs.precision import Tolerance
from ernie_export.runtime.pipeline import load

# Routing scores closer than this may swap in float32.
ROUNDING = 1e-5
TOKENS = 16


@dataclass
class Stage:
    """The worst relative error of one stage over the cases that have it; routing agreement where it routes."""

    error: float = 0.0
    routed: int = 0  # tokens
    agreed: int = 0
    ties: int = 0  # disagreements where the reference's own choice hangs on rounding


@dataclass
class Case:
    """One conversation: both sides read the reference's greedy tokens."""

    name: str
    tokens: int
    diverged: int | None  # place of the first token that the bundle would have chosen otherwise
    gap: float | None  # there, the reference's lead of its own token over the bundle's, relative to its logits' norm
    agreed: int  # tokens that both sides put first
    kl: float  # mean over the tokens, in nats


@dataclass
class Report:
    """Everything compared, in the order of computation."""

    precision: str
    tolerance: Tolerance
    stages: dict[str, Stage] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)

    @property
    def kl(self) -> float:
        """Mean divergence over all tokens of all cases, in nats."""
        return float(np.average([case.kl for case in self.cases], weights=[case.tokens for case in self.cases]))

    @property
    def failures(self) -> list[str]:
        """What is past the limits, one line each."""
        lines = [] if self.tolerance.error is None else self.beyond_rounding(self.tolerance.error)
        if not self.kl <= self.tolerance.kl:  # a NaN fails too
            lines.append(f"next tokens: mean divergence {self.kl:.1e} nats, expected at most {self.tolerance.kl:.0e}")
        return lines

    def beyond_rounding(self, tolerance: float) -> list[str]:
        """Stages past the tolerance, and choices that differ by more than rounding explains."""
        lines = [
            f"{name}: relative error {stage.error:.1e}, expected at most {tolerance:.0e}"
            for name, stage in self.stages.items()
            if not stage.error <= tolerance  # a NaN fails too
        ]
        lines += [
            f"{name}: {stage.routed - stage.agreed - stage.ties} of {stage.routed} tokens routed elsewhere"
            for name, stage in self.stages.items()
            if stage.agreed + stage.ties < stage.routed
        ]
        return lines + [
            f"{case.name}: token {case.diverged} differs (the reference preferred its own by {case.gap:.1e})"
            for case in self.cases
            if case.diverged is not None and not (case.gap is not None and case.gap <= tolerance)
        ]


def verify(
    bundle: Path,
    checkpoint: Path,
    tolerance: float | None,
    questions: list[dict[str, Any]],
    progress: Callable[[str], None],
) -> Report:
    """Compare `bundle` with PyTorch on `checkpoint`; `progress` is told each conversation's name as it begins.

    `tolerance` replaces the relative error that the bundle's precision is allowed. `questions`: see `ask_questions`.
    """
    with load(bundle, check=True) as model:
        precision = find_target(model.manifest.target).precision(model.manifest.precision)
        allowed = precision.tolerance if tolerance is None else replace(precision.tolerance, error=tolerance)
        report = Report(precision.name, allowed)
        progress("loading PyTorch")
        reference = Reference(checkpoint)
        with TracedEngine(bundle, model) as traced:
            for name, messages in conversations(np.random.default_rng(0)).items():
                progress(name)
                prepared = model.preprocessor.prepare(messages)
                expected = reference.stages(prepared.arrays)
                tokens, logits = reference.generate(prepared.arrays, TOKENS)
                found = traced.stages(prepared, tokens)
                compare(report, expected | {"decode logits": logits[1:2]}, found, prepared.arrays)
                report.cases.append(compare_tokens(name, logits, found["all logits"]))
        report.questions = ask_questions(reference, model, questions, progress)
    report.stages = dict(sorted(report.stages.items(), key=lambda item: order(item[0])))
    return report


def order(stage: str) -> tuple[int, int]:
    """Sort key: stages as they are computed, blocks and layers by number."""
    *kind, number = stage.split() if stage[-1].isdigit() else (stage, "0")
    kinds = ["vision block", "vision encoder", "resampler", "layer", "logits", "decode logits"]
    return kinds.index(" ".join(kind)), int(number)


def compare(
    report: Report, expected: dict[str, np.ndarray], found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]
) -> None:
    """Add one conversation's stages to the report."""
    for name in expected:
        if "routing" in name:
            continue
        stage = report.stages.setdefault(name, Stage())
        stage.error = max(stage.error, relative_error(found[name], expected[name]), key=lambda x: (x != x, x))
        number = name.removeprefix("layer ")
        if f"routing {number}" in found:
            compare_routing(stage, number, expected, found[f"routing {number}"], arrays)


def compare_routing(
    stage: Stage, number: str, expected: dict[str, np.ndarray], found: np.ndarray, arrays: dict[str, np.ndarray]
) -> None:
    """Count the tokens that ask the same experts on both sides, whatever their order."""
    is_vision = arrays["moe_mm_token_type_ids"][0] != 0
    # The reference's routers see the rows of their own modality.
    for bank, is_own in (("text", ~is_vision), ("vision", is_vision)):
        if not is_own.any():
            continue
        chosen, gap = expected[f"{bank} routing {number}"], expected[f"{bank} routing {number} gap"]
        same = (np.sort(found[is_own], -1) == np.sort(chosen, -1)).all(-1)
        stage.routed += len(same)
        stage.agreed += int(same.sum())
        stage.ties += int((~same & (gap < ROUNDING)).sum())


def compare_tokens(name: str, expected: np.ndarray, found: np.ndarray) -> Case:
    """Where the choices and distributions part: logits (tokens, V) of both sides, given the same tokens to read."""
    best, chosen = expected.argmax(-1), found.argmax(-1)
    different = np.flatnonzero(chosen != best)
    kl = float(divergence(expected, found).mean())
    if not different.size:
        return Case(name, len(best), None, None, len(best), kl)
    place = int(different[0])
    lead = expected[place, best[place]] - expected[place, chosen[place]]
    gap = float(lead / np.linalg.norm(expected[place]))
    return Case(name, len(best), place, gap, len(best) - different.size, kl)


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(expected ‖ found) of the softmax of logits (n, V), row by row in nats, summed in float64."""
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (expected, found))
    return (np.exp(p) * (p - q)).sum(-1)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """‖found − expected‖ / ‖expected‖; infinite where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def conversations(rng: np.random.Generator) -> dict[str, list[dict[str, Any]]]:
    """One conversation of each kind; pictures are coarse random tiles, as an encoder sees nothing in plain noise."""

    def picture(height: int, width: int) -> Image.Image:
        tiles = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
        return Image.fromarray(tiles).resize((width, height), Image.Resampling.NEAREST)

    def ask(text: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]

    def image(height: int, width: int) -> dict[str, Any]:
        return {"type": "image", "image": picture(height, width)}

    def clip() -> dict[str, Any]:
        return {"type": "video", "video": [picture(96, 128) for _ in range(4)], "fps": 2}

    return {
        "text": ask("What do you see, and where is it?"),
        "one picture": ask("What is in the picture?", image(120, 160)),
        "two unequal pictures": ask("Which one is brighter?", image(84, 140), image(168, 112)),
        "a clip": ask("What happens?", clip()),
        "pictures and a clip": ask("Compare them.", image(60, 60), clip(), image(100, 60)),
    }
