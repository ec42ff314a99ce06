"""ernie-bench: time to first token, inter-token latency, throughput and memory of a bundle on this machine."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import peak_memory, picture_sizes, run
from ernie_export.common.errors import UserError
from ernie_export.common.text import format_number
from ernie_export.runtime.bench.machine import Machine

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
@click.option("--images", default="", show_default=False, help="Pictures of each prompt besides, as WIDTHxHEIGHT,...")
@click.option("--output-tokens", type=click.IntRange(min=2), default=64, help="Length of every answer.")
@click.option("--batch", default="1,4,8", help="Requests that arrive together, with commas between.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, help="Measured rounds of each batch.")
@click.option("--warmup", type=click.IntRange(min=0), default=1, help="Rounds before them that are not counted.")
@click.option("--threads", type=click.IntRange(min=1), help="Cores for one operator.  [default: all]")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Equal seeds make equal prompts.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures, and every token's time, as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.png", help="Draw latencies and throughputs.")
def command(
    bundle: Path,
    prompt_tokens: int,
    images: str,
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
    sizes, batches = picture_sizes(images), batch_sizes(batch)
    if plot is not None:
        check_plot(plot)
    machine = Machine.here()
    # Only now, so that --help comes at once; and before the clock starts, so that it counts loading alone.
    from ernie_export.runtime.bench.measure import measure, scheduler_config, steps
    from ernie_export.runtime.bench.workload import Workload
    from ernie_export.runtime.pipeline import load

    workload = Workload(prompt_tokens, sizes, output_tokens, batches, rounds, warmup, seed)
    began = time.perf_counter()
    with load(bundle, threads, scheduler_config=scheduler_config(workload)) as model:
        load_seconds = time.perf_counter() - began
        with progress_bar(steps(workload)) as advance:
            answers, pictures = measure(model, workload, advance)
        manifest = model.manifest
    document: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": str(bundle),
        "target": manifest.target,
        "precision": manifest.precision,
        "bundle_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "workload": asdict(workload)
        | {"image_tokens": answers[0].requests[0].prompt_tokens - prompt_tokens, "threads": threads},
        "machine": asdict(machine) | {"busy": machine.busy},
        "load_seconds": load_seconds,
        "peak_rss_bytes": peak_memory(),
        "batches": [times.metrics() for times in answers],
        "images": [times.metrics() for times in pictures],
        "notes": NOTES,
    }
    if as_json:
        print(json.dumps(document))
    else:
        show(document, Console())
    if plot is not None:
        from ernie_export.runtime.bench.plot import draw

        draw(plot, answers, [*captions(document), f"note: {NOTES[0]}"])


def batch_sizes(option: str) -> tuple[int, ...]:
    """Batch sizes of "1,4,8", each once; UserError on anything else."""
    sizes = []
    for text in option.split(","):
        size = int(text) if re.fullmatch(r"\s*[0-9]{1,9}\s*", text) else 0
        if not 1 <= size <= LARGEST_BATCH:
            expected = f"whole numbers from 1 to {LARGEST_BATCH} with commas between"
            raise UserError(f"--batch: expected {expected}, found {text[:80].strip() or 'nothing'}")
        sizes.append(size)
    return tuple(dict.fromkeys(sizes))


def check_plot(path: Path) -> None:
    """Refuse, before anything is measured, a plot that could not be drawn or written after it."""
    if path.suffix != ".png":
        raise UserError(f"--plot: expected a name that ends with .png, found {path.name or path}")
    if path.is_dir() or not path.parent.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise UserError(f"--plot: expected a file in a folder that exists, found {found}")
    if find_spec("matplotlib") is None:
        raise click.UsageError("drawing needs the extra 'bench' (no module matplotlib): pip install .[bench]")


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, if that is a terminal; drawn only between rounds, so that it takes no time from them."""
    console = Console(stderr=True)
    columns = TextColumn("measuring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal, auto_refresh=False) as bar:
        task = bar.add_task("", total=total)

        def advance() -> None:
            bar.advance(task)
            bar.refresh()

        bar.refresh()
        yield advance


def captions(document: dict[str, Any]) -> list[str]:
    """The bundle, the workload and the machine, a line each."""
    work, machine = document["workload"], document["machine"]
    prompt = f"prompts of {work['prompt_tokens']} text tokens"
    if work["images"]:
        pictures = ", ".join(f"{width}x{height}" for width, height in work["images"])
        prompt += f" and {work['image_tokens']} picture tokens ({pictures})"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = " (other work shares the machine)" if machine["busy"] else ""
    return [
        f"{document['bundle']}: {document['target']}, {document['precision']}, {size(document['bundle_bytes'])}",
        f"workload: {prompt}, answers of {work['output_tokens']}, greedy; {work['rounds']} rounds after"
        f" {work['warmup']} to warm up, seed {work['seed']}",
        f"machine: {machine['cpu']}, {machine['cores']} cores, {size(machine['memory'])}; threads: "
        f"{work['threads'] or 'all'}; load average before the run: {machine['load_average']:.2f}{busy}",
        f"versions: {versions}, {machine['system']}",
    ]


def show(document: dict[str, Any], console: Console) -> None:
    """The figures as tables, a column for each batch size, a row for each size of picture."""
    loaded = f"loaded in {document['load_seconds']:.2f} s; peak memory {size(document['peak_rss_bytes'])} (RSS)"
    for line in [*captions(document), loaded]:
        console.print(Text(line), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for figures in document["batches"]:
        table.add_column(f"batch {figures['max_concurrency']}", justify="right")
    for label, key in ROWS:
        table.add_row(label, *(format_number(figures[key]) for figures in document["batches"]))
    console.print(table)
    if document["images"]:
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for column in ("picture", "tokens", "resize ms", "encode ms, p50", "encode ms, p99", "pictures/s"):
            table.add_column(column, justify="right" if column != "picture" else "left")
        keys = ("tokens", "median_image_preprocess_ms", "median_image_latency_ms", "p99_image_latency_ms")
        for figures in document["images"]:
            name = f"{figures['width']}x{figures['height']}"
            table.add_row(name, *(format_number(figures[key]) for key in (*keys, "image_throughput")))
        console.print(table)
    for note in document["notes"]:
        console.print(Text(note), soft_wrap=True)


def size(nbytes: int) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def main() -> None:
    """Entry point of ernie-bench."""
    run(command)


if __name__ == "__main__":
    main()
