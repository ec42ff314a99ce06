"""A report of ernie-verify to keep: one HTML file that loads nothing else."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import jinja2

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.manifest import NAME, Manifest, sha256
from ernie_export.common.version import __version__
from ernie_export.doctor.machine import describe_machine
from ernie_export.doctor.requirements import installed_version
from ernie_export.exporter.verify.results import Report

LIBRARIES = ("onnxruntime", "torch", "transformers", "numpy")
BAR_WIDTH = 540  # pixels of the longest bar
MIN_ERROR = 1e-9  # the error that has no bar


@dataclass(frozen=True)
class Bar:
    """A compared value as the picture and the table show it."""

    name: str
    error: str
    width: int
    routing: str
    wrong: bool


def write_report(path: Path, report: Report, bundle: Path, checkpoint: Path) -> None:
    """Write the report as HTML.

    Args:
        path: The file; replaced in one step if it is there.
        report: What was compared.
        bundle: The bundle.
        checkpoint: The checkpoint that it was compared with.

    Raises:
        CannotWrite: The file cannot be written.
    """
    manifest = Manifest.read(bundle)
    template = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("report.html.jinja").read_text()
    )
    limits = f"relative error {report.tolerance.error:.0e}, divergence {report.tolerance.kl:.0e} nats"
    text = template.render(
        bundle=bundle.resolve().name,
        limits=f"{report.precision}: {limits}",
        failures=report.failures,
        diagnosis=report.diagnosis if report.failures else "",
        weights=report.weights,
        bars=bars(report),
        conversations=report.conversations,
        kl=report.kl,
        interval=report.kl_interval,
        worst=report.worst,
        coverage=report.coverage,
        random_inputs=report.random_inputs,
        questions=report.questions,
        origin=describe(manifest, bundle, checkpoint),
    )
    write_atomically(path, text.encode(), "the report")


def bars(report: Report) -> list[Bar]:
    """Return the compared values in the order of computation; a bar's length is the logarithm of its error."""
    shown = []
    for name, probe in report.probes.items():
        error = probe.error if math.isfinite(probe.error) else 1.0
        width = round(
            BAR_WIDTH * min(max(math.log10(max(error, MIN_ERROR) / MIN_ERROR) / -math.log10(MIN_ERROR), 0.0), 1.0)
        )
        agrees = not report.tolerance.every_token or probe.agreed + probe.ties == probe.routed
        wrong = not (probe.error <= report.tolerance.limit(name) and agrees)
        routing = f"{probe.agreed}/{probe.routed}" if probe.routed else ""
        shown.append(Bar(name, f"{probe.error:.1e}", width, routing, wrong))
    return shown


def describe(manifest: Manifest, bundle: Path, checkpoint: Path) -> dict[str, str]:
    """Return what the report is about and where it was made, by name."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {installed_version(name) or 'none'}" for name in LIBRARIES)
    return {
        "bundle": str(bundle.resolve()),
        "manifest, SHA-256": sha256(bundle / NAME),
        "checkpoint": str(checkpoint.resolve()),
        "target and precision": f"{manifest.target}, {manifest.precision}",
        "written by": f"ernie-export {manifest.version}",
        "verified by": f"ernie-export {__version__}, {versions}",
        "machine": f"{machine.cpu}, {machine.cores} cores, {', '.join(machine.features)}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
