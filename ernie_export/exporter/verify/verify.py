"""Does a bundle compute what PyTorch computes? Weight by weight, layer by layer, token by token.

The bundle answers a few conversations; then the reference reads them with the bundle's answers, both from the same
arrays (the bundle's own preprocessing). Two questions are asked apart. Are the graphs right? Inner values are compared
with a reference that computes with the bundle's own weights, and products of quantized weights do not round
activations, so that what a lower precision rounds does not hide a fault. What does the precision cost? The next tokens
of the bundle as it is are compared with a reference that computes with the checkpoint's weights. Bundle and reference
are never in memory together.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.exporter.targets import find_target
from ernie_export.exporter.verify.bundle_side import Answered, BundleSide
from ernie_export.exporter.verify.bundle_tensors import BundleTensors
from ernie_export.exporter.verify.comparison import compare_probes, compare_tokens, reached_experts
from ernie_export.exporter.verify.constants import compare_constants
from ernie_export.exporter.verify.conversations import TEXT
from ernie_export.exporter.verify.expert_coverage import reach_experts
from ernie_export.exporter.verify.files import compare_files
from ernie_export.exporter.verify.questions import Question, ask_bundle, ask_reference
from ernie_export.exporter.verify.reference_weights import CheckpointTensors
from ernie_export.exporter.verify.results import Coverage, Report
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.exporter.verify.weights import compare_weights, show_percent
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.runtime.messages_file import Messages
from ernie_export.runtime.preprocess import Prepared


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Attributes:
        tokens: Of each answer.
        reach_experts: Whether random inputs are added that reach further experts.
    """

    tokens: int = 16
    reach_experts: bool = True


FULL = Effort()
QUICK = Effort(tokens=4, reach_experts=False)


def verify(
    bundle: Path,
    checkpoint: Path,
    max_error: float | None,
    conversations: dict[str, Messages],
    questions: list[dict[str, Any]],
    progress: Callable[[str], None],
    device: str = "cpu",
    max_image_pixels: int = MAX_IMAGE_PIXELS,
    effort: Effort = FULL,
) -> Report:
    """Compare `bundle` with `checkpoint`: all weights, and what both compute, the reference in PyTorch.

    Args:
        bundle: The exported bundle.
        checkpoint: The checkpoint that it was exported from.
        max_error: Replaces the relative error that the bundle's precision is allowed; None keeps it.
        conversations: What to compute, by name; see `example_conversations`.
        questions: Questions for both sides; see `read_questions`.
        progress: Called with what begins.
        device: Where the bundle runs; inner values are compared on "cpu" alone.
        max_image_pixels: Most pixels of an image, or of a video's frame.
        effort: How much is computed.

    Returns:
        The report, probes in the order of computation.
    """
    with BundleSide.open(bundle, device, max_image_pixels) as side:
        manifest = side.model.manifest
        preprocessor = side.model.preprocessor
        precision = find_target(manifest.target).precision(manifest.precision)
        traced = device == "cpu" and manifest.engines is None
        tolerance = precision.tolerance if traced else precision.tolerance.on_device()
        report = Report(precision.name, tolerance.limited(max_error))
        report.files = compare_files(bundle, manifest, checkpoint)
        report.constants = compare_constants(bundle, manifest, checkpoint)
        report.weights = compare_weights(bundle, manifest, checkpoint, show_percent(progress))
        prepared = {}
        found = {}
        for name, messages in conversations.items():
            progress(name)
            prepared[name] = preprocessor.prepare(messages)
            found[name] = side.answer(prepared[name], effort.tokens)
        answers = ask_bundle(side.model, questions, progress)
    inner = found
    if traced:
        progress("inner values")
        with BundleSide.open_traced(bundle) as side:
            inner = {name: side.read(prepared[name], found[name].tokens, effort.tokens) for name in prepared}
            if effort.reach_experts:
                added = add_inputs(side, checkpoint, inner, progress)
                report.random_inputs = len(added)
                prepared |= added
    prompts = {name: conversation.arrays for name, conversation in prepared.items()}
    tokens = {name: answered.tokens for name, answered in inner.items()}
    progress("PyTorch")
    reference = Reference(checkpoint, CheckpointTensors(Checkpoint.open(checkpoint)))
    runs = reference.run(prompts, tokens)
    report.coverage = [Coverage(group, reference.experts, len(them)) for group, them in reached_experts(runs).items()]
    for name, answered in found.items():
        length = answer_length(answered.tokens, manifest.model.eos_token_ids)
        logits = runs[name].logits[:length], answered.logits[:length]
        report.conversations.append(compare_tokens(name, *logits, preprocessor.chat.decode))
    expected = ask_reference(reference, preprocessor, questions, progress)
    report.questions = [
        Question(question["answer"], *texts) for question, *texts in zip(questions, expected, answers, strict=True)
    ]
    del reference
    if precision.rounds_weights:
        losses = compare_probes(runs, inner, prompts, every_token=False)
        report.losses = {name: probe.error for name, probe in losses.items()}
        progress("PyTorch with the bundle's weights")
        runs = Reference(checkpoint, BundleTensors(bundle, manifest, checkpoint)).run(prompts, tokens)
    report.probes = compare_probes(runs, inner, prompts, report.tolerance.every_token)
    return report


def answer_length(tokens: Sequence[int], ends: Collection[int]) -> int:
    """Return how many tokens an answer has, the one that ends it included: what would come after is never served."""
    return next((number for number, token in enumerate(tokens, 1) if token in ends), len(tokens))


def add_inputs(
    side: BundleSide, checkpoint: Path, computed: dict[str, Answered], progress: Callable[[str], None]
) -> dict[str, Prepared]:
    """Return further inputs that reach experts which the conversations so far do not, by name.

    Args:
        side: The bundle with its inner values.
        checkpoint: The checkpoint's folder.
        computed: What the bundle computes of the conversations; receives that of the inputs.
        progress: Called with the name of each input.
    """
    added = {}
    base = side.model.preprocessor.prepare(TEXT)
    experts = ErnieConfig.from_hf(checkpoint).text.num_experts
    for name, prepared, answered in reach_experts(side, base, experts, list(computed.values())):
        progress(name)
        added[name] = prepared
        computed[name] = answered
    return added
