"""What ernie-verify found."""

from dataclasses import dataclass, field

import numpy as np

from ernie_export.exporter.verify.diagnosis import first_difference
from ernie_export.exporter.verify.intervals import mean_interval, proportion_interval
from ernie_export.exporter.verify.probes import Probe
from ernie_export.exporter.verify.questions import Question
from ernie_export.exporter.verify.weights import WeightReport
from ernie_export.graphs.precision import Tolerance

WORST = 3  # conversations shown side by side


@dataclass
class Conversation:
    """Next tokens of one conversation, both sides reading the bundle's greedy answer.

    Attributes:
        name: The conversation.
        tokens: How many were compared.
        diverged: Place of the first token that the reference would have chosen otherwise; None if there is none.
        gap: There, the reference's lead of its own token over the bundle's, relative to its logits' norm.
        agreed: Tokens that both sides put first.
        kl: Mean divergence over the tokens, in nats.
        reference: What the reference puts first at each place, as text.
        bundle: What the bundle does.
    """

    name: str
    tokens: int
    diverged: int | None
    gap: float | None
    agreed: int
    kl: float
    reference: str = ""
    bundle: str = ""


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
    """Everything compared.

    Attributes:
        precision: The bundle's precision.
        tolerance: What it is held to.
        probes: Compared values in the order of computation, beside the reference with the bundle's own weights.
        losses: Error of the median token of each probe beside the reference with the checkpoint's weights; empty where
            the weights are the same.
        conversations: Next tokens up to the end of an answer, beside the reference with the checkpoint's weights.
        questions: Answers of both sides.
        weights: The weights.
        coverage: Experts that were routed to.
        random_inputs: How many random inputs were added to reach experts.
        files: A line for each file of preprocessing that is not the checkpoint's.
        constants: A line for each number in a graph that is not the configuration's.
    """

    precision: str
    tolerance: Tolerance
    probes: dict[str, Probe] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    conversations: list[Conversation] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    weights: WeightReport = field(default_factory=WeightReport)
    coverage: list[Coverage] = field(default_factory=list)
    random_inputs: int = 0
    files: list[str] = field(default_factory=list)
    constants: list[str] = field(default_factory=list)

    @property
    def diagnosis(self) -> str:
        """Return one sentence that says where the bundle parts from the checkpoint; empty where it does not."""
        if self.files:
            return self.files[0]
        if self.weights.faults:
            return f"the weights are not the checkpoint's, first {self.weights.faults[0].where}"
        if self.constants:
            return self.constants[0]
        return first_difference(self.probes, self.tolerance)

    @property
    def kl(self) -> float:
        """Return the mean divergence over all tokens of all conversations, in nats."""
        divergences = [conversation.kl for conversation in self.conversations]
        tokens = [conversation.tokens for conversation in self.conversations]
        return float(np.average(divergences, weights=tokens))

    @property
    def kl_interval(self) -> tuple[float, float]:
        """Return what holds the mean divergence of such conversations in 95 of 100 samples, in nats."""
        divergences = [conversation.kl for conversation in self.conversations]
        return mean_interval(divergences, [conversation.tokens for conversation in self.conversations])

    def exact_answers(self, side: str) -> tuple[int, float, float]:
        """Return how many questions a side, "reference" or "bundle", answers exactly, and the proportion's interval."""
        right = sum(getattr(question, side) == question.answer for question in self.questions)
        return right, *proportion_interval(right, len(self.questions))

    @property
    def worst(self) -> list[Conversation]:
        """Return the conversations with other first choices, most divergent first."""
        differ = [conversation for conversation in self.conversations if conversation.diverged is not None]
        return sorted(differ, key=lambda conversation: -conversation.kl)[:WORST]

    @property
    def failures(self) -> list[str]:
        """Return one line for each value beyond the tolerance."""
        lines = self.files + self.weights.failures + self.constants
        lines += [
            f"{name}: {probe.rerouted[group]} of {probe.tokens[group]} {group} tokens routed elsewhere"
            for name, probe in self.probes.items()
            for group in probe.mostly_rerouted
        ]
        lines += [
            f"{name}: relative error {probe.error:.1e}, expected at most {self.tolerance.limit(name):.0e}"
            for name, probe in self.probes.items()
            if not probe.error <= self.tolerance.limit(name)  # a NaN fails too
        ]
        lines += self.differing_choices() if self.tolerance.every_token else []
        if not self.kl <= self.tolerance.kl:
            lines.append(f"next tokens: mean divergence {self.kl:.1e} nats, expected at most {self.tolerance.kl:.0e}")
        return lines

    def differing_choices(self) -> list[str]:
        """Return a line for each probe and answer with choices that differ by more than rounding explains."""
        lines = [
            f"{name}: {probe.routed - probe.agreed - probe.ties} of {probe.routed} tokens routed elsewhere"
            for name, probe in self.probes.items()
            if probe.agreed + probe.ties < probe.routed and not probe.mostly_rerouted
        ]
        if not self.tolerance.same_tokens:
            return lines
        return lines + [
            f"{tokens.name}: token {tokens.diverged} differs (the reference preferred its own by {tokens.gap:.1e})"
            for tokens in self.conversations
            if tokens.diverged is not None and not (tokens.gap is not None and tokens.gap <= self.tolerance.error)
        ]
