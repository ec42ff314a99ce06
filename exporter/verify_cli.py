"""ernie-verify: is a bundle what PyTorch computes?"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
from ernie_export.graphs.errors import UserError
from ernie_export.runtime.command import run
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from ernie_export.exporter.verify import Report


@click.command(context_settings={"show_default": True})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--against", "checkpoint", type=click.Path(path_type=Path), required=True, help="The checkpoint folder.")
@click.option("--tolerance", type=click.FloatRange(min=0), help="Relative error allowed. [default: 1e-4 for fp32]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(bundle: Path, checkpoint: Path, tolerance: float | None, as_json: bool) -> None:
    """Run BUNDLE and PyTorch (float32) on the same prompts and report how far they part.

    Exit code 0: within tolerance; 1: past it; 2: something could not be read.
    """
    try:
        from ernie_export.exporter.verify import verify
    except ModuleNotFoundError as e:
        raise UserError(f"ernie-verify needs the extra 'parity' (no module {e.name}): pip install .[parity]") from e
    console = Console(stderr=True)
    with console.status("reading the bundle") as status:
        report = verify(bundle, checkpoint, tolerance, status.update)
    if as_json:
        print(json.dumps(asdict(report) | {"failures": report.failures}, indent=1))
    else:
        show(report, Console())
    sys.exit(1 if report.failures else 0)


def show(report: "Report", console: Console) -> None:
    """Tables of stages and of generated tokens, and the verdict."""
    stages = Table(title="stages, worst over all conversations", title_justify="left")
    for column in ("stage", "relative error", "routing agreed"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for name, stage in report.stages.items():
        ties = f" ({stage.ties} on rounding)" if stage.ties else ""
        agreed = f"{stage.agreed}/{stage.routed}{ties}" if stage.routed else ""
        style = "" if stage.error <= report.tolerance and stage.agreed + stage.ties == stage.routed else "red"
        stages.add_row(name, f"{stage.error:.1e}", agreed, style=style)
    console.print(stages)
    tokens = Table(title="greedy tokens", title_justify="left")
    for column in ("conversation", "first differing token"):
        tokens.add_column(column)
    for case in report.cases:
        place = f"none of {case.tokens}" if case.diverged is None else f"{case.diverged} (lead {case.gap:.1e})"
        tokens.add_row(case.name, place)
    console.print(tokens)
    for line in report.failures:
        console.print(line, style="red")
    verdict = f"{len(report.failures)} past tolerance" if report.failures else "within tolerance"
    console.print(f"{verdict} ({report.tolerance:.0e}, {report.precision})")


def main() -> None:
    """Entry point of ernie-verify."""
    run(command)


if __name__ == "__main__":
    main()
