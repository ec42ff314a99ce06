"""ernie-verify: compare what a bundle computes with PyTorch."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import run
from ernie_export.common.errors import InvalidValue, Unavailable, printable
from ernie_export.common.image_sizes import max_image_pixels_option
from ernie_export.common.manifest import Manifest
from ernie_export.runtime.devices import DEVICES

if TYPE_CHECKING:
    from ernie_export.exporter.verify.probes import Probe
    from ernie_export.exporter.verify.results import Report
    from ernie_export.exporter.verify.weights import WeightReport


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "checkpoint", type=click.Path(path_type=Path), required=True, help="The checkpoint folder.")
@click.option("--messages", type=click.Path(path_type=Path), help="JSON file of further conversations.")
@click.option("--quick", is_flag=True, help="Two short conversations, and no random inputs that reach experts.")
@click.option("--weights-only", is_flag=True, help="Compare the weights alone, which needs no PyTorch.")
@click.option("--questions", type=click.Path(path_type=Path), help="JSON list of {messages, answer} to ask both sides.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="Relative error allowed. [default: by precision]")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", help="Where the bundle runs.")
@max_image_pixels_option("Of an image of --messages or --questions, or of a video's frame.")
@click.option("--report", "html", type=click.Path(path_type=Path), help="Write the report to this HTML file, too.")
@click.option("--record", is_flag=True, help="Record in the bundle that it passed, for --require-verified.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    bundle: Path,
    checkpoint: Path,
    messages: Path | None,
    quick: bool,
    weights_only: bool,
    questions: Path | None,
    tolerance: float | None,
    device: str,
    max_image_pixels: int,
    html: Path | None,
    record: bool,
    as_json: bool,
) -> None:
    """Compare BUNDLE with the checkpoint: all weights, and what both compute, the checkpoint in PyTorch (float32).

    Inner values are held to a reference with the bundle's own weights, next tokens to one with the checkpoint's.
    Weights that do not fit into memory are read layer by layer.

    Exit code 0: within tolerance; 1: past it; 2: something could not be read.
    """
    console = Console(stderr=True)
    if weights_only:
        for option, given in (("--report", html is not None), ("--record", record), ("--quick", quick)):
            if given:
                raise InvalidValue(option, "a comparison of what is computed", "--weights-only")
        sys.exit(verify_weights(bundle, checkpoint, as_json, console))
    try:
        from ernie_export.exporter.verify.conversations import example_conversations, read_conversations
        from ernie_export.exporter.verify.questions import read_questions
        from ernie_export.exporter.verify.record import record_verification
        from ernie_export.exporter.verify.report import write_report
        from ernie_export.exporter.verify.verify import FULL, QUICK, verify
    except ModuleNotFoundError as e:
        raise Unavailable(f"ernie-verify needs the extra 'parity' (no module {e.name}): pip install .[parity]") from e
    extra_questions = read_questions(questions) if questions else []
    with console.status("reading the bundle") as status:
        conversations = example_conversations(quick) | (read_conversations(messages) if messages else {})
        report = verify(
            bundle,
            checkpoint,
            tolerance,
            conversations,
            extra_questions,
            status.update,
            device=device,
            max_image_pixels=max_image_pixels,
            effort=QUICK if quick else FULL,
        )
    if html is not None:
        write_report(html, report, bundle, checkpoint)
    computed = {"kl": report.kl, "failures": report.failures, "diagnosis": report.diagnosis}
    document = json.dumps(asdict(report) | computed, indent=1)
    if record:
        record_verification(bundle, document + "\n", passed=not report.failures)
    if as_json:
        print(document)
    else:
        show(report, Console())
    sys.exit(1 if report.failures else 0)


def verify_weights(bundle: Path, checkpoint: Path, as_json: bool, console: Console) -> int:
    """Compare the weights alone and print the report. Returns the exit code."""
    try:
        from ernie_export.exporter.verify.weights import compare_weights, show_percent
    except ModuleNotFoundError as e:
        raise Unavailable(f"--weights-only needs the extra 'export' (no module {e.name}): pip install .[export]") from e
    with console.status("reading the bundle") as status:
        report = compare_weights(bundle, Manifest.read(bundle), checkpoint, show_percent(status.update))
    if as_json:
        print(json.dumps({"weights": asdict(report), "failures": report.failures}, indent=1))
    else:
        show_weights(report, Console())
    return 1 if report.failures else 0


def show(report: "Report", console: Console) -> None:
    """Print the weights, tables of probes, of next tokens and of answers, and the verdict."""
    show_weights(report.weights, console, with_failures=False)
    probes = Table(title="stages, " + shown_errors(report), title_justify="left")
    for column in ("stage", "relative error", *(["with rounding"] if report.losses else []), "routing agreed"):
        probes.add_column(column, justify="left" if column == "stage" else "right")
    error = report.tolerance.error
    for name, probe in report.probes.items():
        loss = [f"{report.losses[name]:.1e}"] if report.losses else []
        fine = probe.error <= report.tolerance.limit(name) and (
            not report.tolerance.every_token or probe.agreed + probe.ties == probe.routed
        )
        probes.add_row(name, f"{probe.error:.1e}", *loss, routing(probe), style="" if fine else "red")
    console.print(probes)
    tokens = Table(title="next tokens, both sides reading the bundle's greedy answer", title_justify="left")
    for column in ("conversation", "first choice agreed", "first that differs", "KL, nats"):
        tokens.add_column(column, justify="left" if column == "conversation" else "right")
    for conversation in report.conversations:
        diverged = "none" if conversation.diverged is None else f"{conversation.diverged} (lead {conversation.gap:.1e})"
        agreed = f"{conversation.agreed}/{conversation.tokens}"
        tokens.add_row(_plain(conversation.name), agreed, diverged, f"{conversation.kl:.1e}")
    console.print(tokens)
    low, high = report.kl_interval
    console.print(f"mean divergence {report.kl:.1e} nats, 95 % interval {low:.1e} to {high:.1e}")
    show_worst(report, console)
    if report.random_inputs:
        console.print(f"random inputs added to reach experts: {report.random_inputs}")
    for coverage in report.coverage:
        missing = coverage.experts - coverage.reached
        note = f"; the weights of the other {missing} were compared, not their use" if missing else ""
        console.print(f"{coverage.group} experts: {coverage.reached} of {coverage.experts} were routed to{note}")
    if report.questions:
        show_answers(report, console)
    for line in report.failures:
        console.print(_plain(line), style="red")
    verdict = f"{len(report.failures)} past the limits" if report.failures else "within the limits"
    if report.failures and report.diagnosis:
        console.print(_plain(report.diagnosis), style="bold red")
    limits = f"relative error {error:.0e}, divergence {report.tolerance.kl:.0e} nats"
    console.print(f"{verdict} ({report.precision}: {limits})")


def show_worst(report: "Report", console: Console) -> None:
    """Print what both sides put first at each place of the conversations that differ most."""
    if not report.worst:
        return
    table = Table("conversation", "reference", "bundle", title="first choices that differ most", title_justify="left")
    for conversation in report.worst:
        table.add_row(_plain(conversation.name), _plain(conversation.reference), _plain(conversation.bundle))
    console.print(table)


def shown_errors(report: "Report") -> str:
    """Return which tokens' errors a report shows."""
    return "worst token of all conversations" if report.tolerance.every_token else "median token of all conversations"


def routing(probe: "Probe") -> str:
    """Return how many tokens of a layer both sides route alike; empty for values without routing."""
    ties = f" ({probe.ties} on rounding)" if probe.ties else ""
    return f"{probe.agreed}/{probe.routed}{ties}" if probe.routed else ""


def show_weights(report: "WeightReport", console: Console, with_failures: bool = True) -> None:
    """Print how many tensors agree, and with `with_failures` those that do not."""
    rounded = f", {report.rounded} within the rounding of their bits" if report.rounded else ""
    size = f"{report.nbytes / 2**20:,.1f} MiB"
    console.print(f"weights: {report.exact} tensors bit for bit{rounded}, {len(report.faults)} faults ({size})")
    for line in report.failures if with_failures else ():
        console.print(_plain(line), style="red")


def show_answers(report: "Report", console: Console) -> None:
    """Print how many questions each side answers word for word, and the answers that differ."""
    total = len(report.questions)
    for side in ("reference", "bundle"):
        right, low, high = report.exact_answers(side)
        share = f"{100 * right / total:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}"
        console.print(f"{side}: {right} of {total} questions answered exactly ({share})")
    different = [question for question in report.questions if question.reference != question.bundle]
    if different:
        table = Table("expected", "reference", "bundle", title="answers that differ", title_justify="left")
        for question in different:
            table.add_row(_plain(question.answer), _plain(question.reference), _plain(question.bundle))
        console.print(table)


def _plain(text: str) -> Text:
    """Return what a file or a model says for a table: its brackets are no markup, control characters are escaped."""
    return Text(printable(text, keep="\n\t"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ernie-verify on `arguments`, by default those of this process, and exit."""
    run(command, arguments)


if __name__ == "__main__":
    main()
