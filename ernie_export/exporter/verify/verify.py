"""Does a bundle compute what PyTorch computes? Probe by probe, layer by layer, token by token.

Both sides get the same arrays (the bundle's own preprocessing) for a few conversations. Then both
read the reference's own greedy answer, token by token: where their next-token distributions part is what a lower
precision costs.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.exporter.targets import find_target
from ernie_export.exporter.verify.bundle_side import TracedEngine
from ernie_export.exporter.verify.diagnosis import Evidence, TokenErrors, first_difference
from ernie_export.exporter.verify.files import compare_files
from ernie_export.exporter.verify.questions import Question, ask_questions
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.exporter.verify.weights import WeightReport, compare_weights, show_percent
from ernie_export.graphs.precision import Tolerance
from ernie_export.runtime.messages_file import Messages
from ernie_export.runtime.pipeline import load

# Routing scores closer than this may swap in float32.
ROUNDING = 1e-5
TOKENS = 16


@dataclass
class Probe:
    """One compared value: its worst relative error over all conversations, and routing agreement where it routes."""

    error: float = 0.0
    routed: int = 0  # tokens
    agreed: int = 0
    ties: int = 0  # disagreements where the reference's own choice hangs on rounding
    tokens: TokenErrors = field(default_factory=TokenErrors)


@dataclass
class Conversation:
    """Next tokens of one conversation, both sides reading the reference's greedy answer."""

    name: str
    tokens: int
    diverged: int | None  # place of the first token that the bundle would have chosen otherwise
    gap: float | None  # there, the reference's lead of its own token over the bundle's, relative to its logits' norm
    agreed: int  # tokens that both sides put first
    kl: float  # mean over the tokens, in nats


@dataclass
class Coverage:
    """Experts of one group that the conversations were routed to.

    Attributes:
        group: "text" or "vision".
        experts: How many there are, over all layers.
        reached: How many a token of a conversation was routed to.
    """

    group: str
    experts: int
    reached: int


@dataclass
class Report:
    """Everything compared, in the order of computation."""

    precision: str
    tolerance: Tolerance
    probes: dict[str, Probe] = field(default_factory=dict)
    conversations: list[Conversation] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    weights: WeightReport = field(default_factory=WeightReport)
    coverage: list[Coverage] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    media: dict[str, float] = field(default_factory=dict)  # worst error of the resampler by "image" and "video"

    @property
    def diagnosis(self) -> str:
        """Return one sentence that says where the bundle parts from the checkpoint; empty where it does not.

        Values of a bundle without a limit for them are no evidence: its sentence is about files and weights alone.
        """
        if self.files:
            return self.files[0]
        if self.weights.faults:
            return f"the weights are not the checkpoint's, first {self.weights.faults[0].where}"
        if self.tolerance.error is None:
            return ""
        sparse = frozenset(name.split()[1] for name, probe in self.probes.items() if probe.routed)
        errors = {name: probe.error for name, probe in self.probes.items()}
        tokens = {name: probe.tokens for name, probe in self.probes.items()}
        return first_difference(Evidence(errors, tokens, self.media, sparse, self.tolerance.error))

    @property
    def kl(self) -> float:
        """Return the mean divergence over all tokens of all conversations, in nats."""
        divergences = [conversation.kl for conversation in self.conversations]
        tokens = [conversation.tokens for conversation in self.conversations]
        return float(np.average(divergences, weights=tokens))

    @property
    def failures(self) -> list[str]:
        """Return one line for each value beyond the tolerance."""
        lines = self.files + self.weights.failures
        lines += [] if self.tolerance.error is None else self.beyond_rounding(self.tolerance.error)
        if not self.kl <= self.tolerance.kl:  # a NaN fails too
            lines.append(f"next tokens: mean divergence {self.kl:.1e} nats, expected at most {self.tolerance.kl:.0e}")
        return lines

    def beyond_rounding(self, limit: float) -> list[str]:
        """Stages past the tolerance, and choices that differ by more than rounding explains."""
        lines = [
            f"{name}: relative error {probe.error:.1e}, expected at most {limit:.0e}"
            for name, probe in self.probes.items()
            if not probe.error <= limit  # a NaN fails too
        ]
        lines += [
            f"{name}: {probe.routed - probe.agreed - probe.ties} of {probe.routed} tokens routed elsewhere"
            for name, probe in self.probes.items()
            if probe.agreed + probe.ties < probe.routed
        ]
        return lines + [
            f"{tokens.name}: token {tokens.diverged} differs (the reference preferred its own by {tokens.gap:.1e})"
            for tokens in self.conversations
            if tokens.diverged is not None and not (tokens.gap is not None and tokens.gap <= limit)
        ]


def verify(
    bundle: Path,
    checkpoint: Path,
    max_error: float | None,
    conversations: dict[str, Messages],
    questions: list[dict[str, Any]],
    progress: Callable[[str], None],
) -> Report:
    """Compare `bundle` with `checkpoint`: all weights, and what both compute, the reference in PyTorch.

    Args:
        bundle: The exported bundle.
        checkpoint: The checkpoint that it was exported from.
        max_error: Replaces the relative error that the bundle's precision is allowed; None keeps it.
        conversations: What to compute, by name; see `example_conversations`.
        questions: Questions for both sides; see `ask_questions`.
        progress: Called with each conversation's name as it begins.

    Returns:
        The report, probes in the order of computation.
    """
    with load(bundle, check=True) as model:
        precision = find_target(model.manifest.target).precision(model.manifest.precision)
        tolerance = precision.tolerance if max_error is None else replace(precision.tolerance, error=max_error)
        report = Report(precision.name, tolerance)
        report.files = compare_files(bundle, model.manifest, checkpoint)
        report.weights = compare_weights(bundle, model.manifest, checkpoint, show_percent(progress))
        reached: dict[str, set[tuple[str, int]]] = {"text": set(), "vision": set()}
        progress("loading PyTorch")
        reference = Reference(checkpoint)
        with TracedEngine(bundle, model) as traced:
            for name, messages in conversations.items():
                progress(name)
                prepared = model.preprocessor.prepare(messages)
                expected = reference.probe(prepared.arrays)
                tokens, logits = reference.generate(prepared.arrays, TOKENS)
                found = traced.stages(prepared, tokens)
                compare(report, expected | {"decode logits": logits[1:2]}, found, prepared.arrays)
                report.conversations.append(compare_tokens(name, logits, found["all logits"]))
                add_reached(reached, expected)
        report.coverage = [Coverage(group, reference.experts, len(found)) for group, found in reached.items()]
        report.questions = ask_questions(reference, model, questions, progress)
    report.probes = dict(sorted(report.probes.items(), key=lambda item: order(item[0])))
    return report


def add_reached(reached: dict[str, set[tuple[str, int]]], probes: dict[str, np.ndarray]) -> None:
    """Add the layer and number of each expert that a conversation was routed to, by its group."""
    for name, chosen in probes.items():
        group, _, layer = name.partition(" routing ")
        if layer.isdigit():
            reached[group] |= {(layer, int(expert)) for expert in np.unique(chosen)}


def order(probe: str) -> tuple[int, int]:
    """Return a sort key that puts probes in the order of computation, blocks and layers by number."""
    kind, number, attention = re.fullmatch(r"(\D+?)(?: (\d+)( attention)?)?", probe).groups()  # type: ignore[union-attr] # matches any probe
    kinds = ["vision block", "vision encoder", "resampler", "layer", "logits", "decode logits"]
    return kinds.index(kind), 2 * int(number or 0) + (attention is None)


def nan_last(error: float) -> tuple[bool, float]:
    """Return a sort key that puts NaN above every number."""
    return math.isnan(error), error


def compare(
    report: Report, expected: dict[str, np.ndarray], found: dict[str, np.ndarray], arrays: dict[str, np.ndarray]
) -> None:
    """Add one conversation's probes, `expected` by the reference and `found` in the bundle, to the report."""
    for name in expected:
        if "routing" in name:
            continue
        probe = report.probes.setdefault(name, Probe())
        probe.error = max(probe.error, relative_error(found[name], expected[name]), key=nan_last)
        if name.startswith("layer") and found[name].shape == expected[name].shape:
            probe.tokens.add(found[name], expected[name], arrays["moe_mm_token_type_ids"][0] != 0)
        if name == "resampler":
            kind = "video" if "pixel_values_videos" in arrays else "image"
            error = relative_error(found[name], expected[name])
            report.media[kind] = max(report.media.get(kind, 0.0), error, key=nan_last)
        number = name.removeprefix("layer ")
        if f"routing {number}" in found:
            compare_routing(probe, number, expected, found[f"routing {number}"], arrays)


def compare_routing(
    probe: Probe, number: str, expected: dict[str, np.ndarray], found: np.ndarray, arrays: dict[str, np.ndarray]
) -> None:
    """Count the tokens that are routed to the same experts on both sides, in whatever order."""
    is_vision = arrays["moe_mm_token_type_ids"][0] != 0
    # The reference's routers see the rows of their own modality.
    for modality, selected in (("text", ~is_vision), ("vision", is_vision)):
        if not selected.any():
            continue
        chosen, gap = expected[f"{modality} routing {number}"], expected[f"{modality} routing {number} gap"]
        same = (np.sort(found[selected], -1) == np.sort(chosen, -1)).all(-1)
        probe.routed += len(same)
        probe.agreed += int(same.sum())
        ties = int((~same & (gap < ROUNDING)).sum())
        probe.ties += ties
        elsewhere = probe.tokens.rerouted
        elsewhere[modality] = elsewhere.get(modality, 0) + int((~same).sum()) - ties


def compare_tokens(name: str, expected: np.ndarray, found: np.ndarray) -> Conversation:
    """Compare the next tokens of both sides by their logits (tokens, V), given the same tokens to read."""
    best, chosen = expected.argmax(-1), found.argmax(-1)
    different = np.flatnonzero(chosen != best)
    kl = float(divergence(expected, found).mean())
    if not different.size:
        return Conversation(name, len(best), None, None, len(best), kl)
    place = int(different[0])
    lead = expected[place, best[place]] - expected[place, chosen[place]]
    gap = float(lead / np.linalg.norm(expected[place]))
    return Conversation(name, len(best), place, gap, len(best) - different.size, kl)


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return KL(expected ‖ found) of the softmax of logits (n, V), row by row in nats, summed in float64."""
    p, q = (log_softmax(logits.astype(np.float64)) for logits in (expected, found))
    kl: np.ndarray = (np.exp(p) * (p - q)).sum(-1)
    return kl


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return ‖found − expected‖ / ‖expected‖, or infinity where the shapes differ."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(found - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
