"""ernie-bench: time to first token, inter-token latency, throughput and memory of a bundle on this machine."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import peak_memory, run
from ernie_export.common.errors import InvalidValue, printable
from ernie_export.common.image_sizes import max_image_pixels_option, parse_image_sizes
from ernie_export.common.manifest import Manifest
from ernie_export.common.text import format_number
from ernie_export.runtime.bench.machine import Machine

if TYPE_CHECKING:
    from ernie_export.runtime.bench.measure import BatchTimes, ImageTimes
    from ernie_export.runtime.bench.workload import Workload

LARGEST_BATCH = 1024
NOTES = (
    "requests of a round arrive together: TTFT counts the preprocessing of all and the prefills before a request's own,"
    " ITL the parts of prefills between two tokens",
    "output, total tokens/s: prefill included; decode tokens/s: while all requests of a round decode",
)
ROWS = (
    ("TTFT ms, mean", "mean_ttft_ms"),
    ("TTFT ms, p50", "median_ttft_ms"),
    ("TTFT ms, p99", "p99_ttft_ms"),
    ("ITL ms, p50", "median_itl_ms"),
    ("ITL ms, p95", "p95_itl_ms"),
    ("ITL ms, p99", "p99_itl_ms"),
    ("TPOT ms, mean", "mean_tpot_ms"),
    ("output tokens/s", "output_throughput"),
    ("decode tokens/s", "decode_throughput"),
    ("total tokens/s", "total_token_throughput"),
    ("requests/s", "request_throughput"),
)


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt-tokens", type=click.IntRange(min=1), default=256, help="Text of a prompt, template included.")
@click.option("--images", default="", show_default=False, help="Images of each prompt besides, as WIDTHxHEIGHT,...")
@max_image_pixels_option("Of one image.")
@click.option("--output-tokens", type=click.IntRange(min=2), default=64, help="Length of every answer.")
@click.option("--batch", default="1,4,8", help="Requests that arrive together, with commas between.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Measured rounds of each batch.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, help="Rounds before them that are not counted.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores for one operator.  [default: all]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Equal seeds make equal prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics, and every token's time, as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw latencies and throughputs.")
def command(
    bundle: Path,
    prompt_tokens: int,
    images: str,
    max_image_pixels: int,
    output_tokens: int,
    batch: str,
    rounds: int,
    warmup: int,
    threads: int | None,
    seed: int,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Measure how fast the model in the folder BUNDLE answers random prompts on this machine."""
    sizes = parse_image_sizes(images)
    batches = parse_batch_sizes(batch)
    if plot is not None:
        check_plot(plot)
    from ernie_export.runtime.bench.workload import Workload  # imported here so that --help comes at once

    machine = Machine.here()
    workload = Workload(
        prompt_tokens=prompt_tokens,
        images=sizes,
        output_tokens=output_tokens,
        batches=batches,
        rounds=rounds,
        warmup=warmup,
        seed=seed,
    )
    times = measure_bundle(bundle, workload, threads, max_image_pixels)
    image_tokens = times.batches[0].requests[0].prompt_tokens - prompt_tokens
    document = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": str(bundle),
        "target": times.manifest.target,
        "precision": times.manifest.precision,
        "bundle_bytes": sum(entry.bytes for entry in times.manifest.files.values()),
        "workload": asdict(workload) | {"image_tokens": image_tokens, "threads": threads},
        "machine": asdict(machine) | {"busy": machine.busy},
        "load_seconds": times.load_seconds,
        "peak_rss_bytes": peak_memory(),
        "batches": [batch_times.metrics() for batch_times in times.batches],
        "images": [image_times.metrics() for image_times in times.images],
        "notes": NOTES,
    }
    if as_json:
        print(json.dumps(document))
    else:
        show(document, Console())
    if plot is not None:
        from ernie_export.runtime.bench.plot import draw

        draw(plot, times.batches, [*describe_run(document), f"note: {NOTES[0]}"])


@dataclass(frozen=True)
class Times:
    """What measuring a bundle found."""

    manifest: Manifest
    load_seconds: float
    batches: tuple["BatchTimes", ...]
    images: tuple["ImageTimes", ...]


def measure_bundle(bundle: Path, workload: "Workload", threads: int | None, max_image_pixels: int) -> Times:
    """Load a bundle and measure it, showing progress on a terminal."""
    # Imported before the clock starts, so that it counts loading alone.
    from ernie_export.runtime.bench.measure import measure, scheduler_config, steps
    from ernie_export.runtime.pipeline import load

    began = time.perf_counter()
    config = scheduler_config(workload)
    with load(bundle, threads, scheduler_config=config, max_image_pixels=max_image_pixels) as model:
        load_seconds = time.perf_counter() - began
        with progress_bar(steps(workload)) as advance:
            batches, images = measure(model, workload, advance)
        return Times(model.manifest, load_seconds, batches, images)


def parse_batch_sizes(option: str) -> tuple[int, ...]:
    """Return the batch sizes of "1,4,8", each once. Raises InvalidValue for anything else."""
    sizes = []
    for text in option.split(","):
        size = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else 0
        if not 1 <= size <= LARGEST_BATCH:
            expected = f"whole numbers from 1 to {LARGEST_BATCH} with commas between"
            raise InvalidValue("--batch", expected, text[:80].strip() or "nothing")
        sizes.append(size)
    return tuple(dict.fromkeys(sizes))


def check_plot(path: Path) -> None:
    """Raise InvalidValue or UsageError, before anything is measured, if the plot cannot be drawn or written."""
    if path.suffix != ".png":
        raise InvalidValue("--plot", "a name that ends with .png", path.name or path)
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise InvalidValue("--plot", "a file in a folder that exists", found)
    if find_spec("matplotlib") is None:
        raise click.UsageError("drawing needs the extra 'bench' (no module matplotlib): pip install .[bench]")


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr if that is a terminal, drawn only between rounds: it takes no time from them."""
    console = Console(stderr=True)
    columns = (TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, auto_refresh=False) as bar:
        task = bar.add_task("", total=total)

        def advance() -> None:
            bar.advance(task)
            bar.refresh()

        bar.refresh()
        yield advance


def describe_run(document: dict[str, Any]) -> list[str]:
    """Return lines that describe the bundle, the workload, the machine and its software."""
    work = document["workload"]
    machine = document["machine"]
    prompt = f"prompts of {work['prompt_tokens']} text tokens"
    if work["images"]:
        sizes = ", ".join(f"{width}x{height}" for width, height in work["images"])
        prompt += f" and {work['image_tokens']} image tokens ({sizes})"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = " (other work shares the machine)" if machine["busy"] else ""
    nbytes = format_bytes(document["bundle_bytes"])
    return [
        f"{document['bundle']}: {document['target']}, {document['precision']}, {nbytes}",
        f"workload: {prompt}, answers of {work['output_tokens']}, greedy; {work['rounds']} rounds after"
        f" {work['warmup']} to warm up, seed {work['seed']}",
        f"machine: {machine['cpu']}, {machine['cores']} cores, {format_bytes(machine['memory'])}; threads: "
        f"{work['threads'] or 'all'}; load average before the run: {machine['load_average']:.2f}{busy}",
        f"versions: {versions}, {machine['system']}",
    ]


def show(document: dict[str, Any], console: Console) -> None:
    """Print the metrics as tables: a column for each batch size, and a row for each size of image."""
    loaded = f"loaded in {document['load_seconds']:.2f} s; peak memory {format_bytes(document['peak_rss_bytes'])} (RSS)"
    for line in [*describe_run(document), loaded]:
        console.print(Text(printable(line)), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for metrics in document["batches"]:
        table.add_column(f"batch {metrics['max_concurrency']}", justify="right")
    for label, key in ROWS:
        table.add_row(label, *(format_number(metrics[key]) for metrics in document["batches"]))
    console.print(table)
    if document["images"]:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("image", "tokens", "resize ms", "encode ms, p50", "encode ms, p99", "images/s"):
            table.add_column(column, justify="right" if column != "image" else "left")
        keys = ("tokens", "median_image_preprocess_ms", "median_image_latency_ms", "p99_image_latency_ms")
        for metrics in document["images"]:
            name = f"{metrics['width']}x{metrics['height']}"
            table.add_row(name, *(format_number(metrics[key]) for key in (*keys, "image_throughput")))
        console.print(table)
    for note in document["notes"]:
        console.print(Text(note), soft_wrap=True)


def format_bytes(nbytes: int) -> str:
    """Return a size in GiB, or in MiB below one GiB."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ernie-bench on `arguments`, by default those of this process, and exit."""
    run(command, arguments)


if __name__ == "__main__":
    main()
