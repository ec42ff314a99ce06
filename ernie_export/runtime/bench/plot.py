"""Plot a benchmark: inter-token latencies of each batch size, and throughput over batch size."""

import io
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.text import format_number
from ernie_export.runtime.bench.measure import BatchTimes

SIZE = (1600, 800)  # pixels
DPI = 100  # pixels per inch
LINE = 220  # characters of a caption on one line
MARKS = (50, 95, 99)
TICKS = (0, 50, 90, 95, 99, 99.9, 99.99)
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # a colour-blind reader can tell them apart


def draw(path: Path, answers: tuple[BatchTimes, ...], captions: list[str]) -> None:
    """Write the plot as a PNG of `SIZE` to `path`, atomically.

    Args:
        path: The file.
        answers: The measurements.
        captions: A title, and lines that say what was measured on what.

    Raises:
        CannotWrite: The file cannot be written.
    """
    from matplotlib.figure import Figure  # an extra; it takes as long to import as a small bundle to load

    figure = Figure(figsize=(SIZE[0] / DPI, SIZE[1] / DPI), dpi=DPI)
    figure.text(0.02, 0.955, captions[0], fontsize=15, weight="bold", va="center", parse_math=False)
    lines = [part for caption in captions[1:] for part in textwrap.wrap(caption, LINE)]
    figure.text(0.02, 0.015, "\n".join(lines), fontsize=9, color="0.35", va="bottom", linespacing=1.4, parse_math=False)
    latency, throughput = figure.subplots(
        1, 2, gridspec_kw={"left": 0.055, "right": 0.975, "top": 0.87, "bottom": 0.2, "wspace": 0.15}
    )
    latencies(latency, answers)
    throughputs(throughput, answers)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_atomically(path, png.getvalue(), "the plot")


def latencies(axes: Any, answers: tuple[BatchTimes, ...]) -> None:
    """Draw inter-token latency over percentile. The tail is stretched: 90 to 99 is as wide as 0 to 90."""
    most = 0
    low = math.inf
    high = 0.0
    for index, times in enumerate(answers):
        values = np.sort([itl for request in times.requests for itl in request.itls]) * 1000
        colour = COLOURS[index % len(COLOURS)]
        marks = [float(np.percentile(values, mark)) for mark in MARKS]
        summary = ", ".join(f"p{mark} {format_number(value)}" for mark, value in zip(MARKS, marks, strict=True))
        last = max(len(values) - 1, 1)
        fraction = np.minimum(np.arange(len(values)) / last, 1 - 0.5 / last)  # p100 lies at infinity
        axes.plot(stretched(100 * fraction), values, color=colour, label=f"batch {times.batch}: {summary} ms")
        axes.plot([stretched(mark) for mark in MARKS], marks, "o", color=colour, markersize=5)
        most = max(most, len(values))
        low = min(low, values[0] / 1.2)
        high = max(high, values[-1] * 1.2)
    ticks = [tick for tick in TICKS if stretched(tick) <= stretched(100 * (1 - 0.5 / most)) + 0.05]
    axes.set_xticks([stretched(tick) for tick in ticks], [f"p{tick:g}" for tick in ticks])
    axes.set_ylim(low, high * (high / low) ** (0.06 * (len(answers) + 1)))  # space for the legend
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}" if value <= high else "")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" and value <= high else "")
    finish(axes, "inter-token latency", "percentile of intervals between tokens", "ms")


def throughputs(axes: Any, answers: tuple[BatchTimes, ...]) -> None:
    """Draw output tokens a second over batch size, with and without prefill, beside proportional growth."""
    ordered = sorted(answers, key=lambda times: times.batch)
    metrics = [times.metrics() for times in ordered]
    batches = [times.batch for times in ordered]
    for line, (key, label) in enumerate(
        (("decode_throughput", "decode alone"), ("output_throughput", "whole answers, prefill included"))
    ):
        known = [(values["max_concurrency"], values[key]) for values in metrics if values[key] is not None]
        axes.plot([batch for batch, _ in known], [value for _, value in known], "o-", color=COLOURS[line], label=label)
        for batch, value in known:
            axes.annotate(
                format_number(value),
                (batch, value),
                xytext=(0, 10 - 26 * line),
                textcoords="offset points",
                ha="center",
                bbox={"color": "white", "pad": 0.5, "alpha": 0.8},
            )
    top = axes.get_ylim()[1]
    if metrics[0]["decode_throughput"] is not None:
        across = np.geomspace(1, batches[-1] / batches[0])
        proportional = metrics[0]["decode_throughput"] * across
        axes.plot(batches[0] * across, proportional, ":", color="0.6", zorder=1, label="decode, were it proportional")
    axes.set_ylim(0, top * 1.3)  # space for the legend
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    finish(axes, "throughput", "batch: requests answered together", "output tokens a second")


def finish(axes: Any, title: str, across: str, up: str) -> None:
    """Add titles, grid and legend. `across` and `up` label the axes."""
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")


def stretched(percentile: "float | np.ndarray") -> "float | np.ndarray":
    """Return the position of a percentile below 100 on the axis: 0, 1, 2 for 0, 90, 99."""
    return -np.log10(1 - np.asarray(percentile) / 100)
