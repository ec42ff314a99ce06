"""The full released shape on this machine: make it, export it, ask it about a picture.

    python benchmarks/full_size.py scratch/full --output benchmarks/results/full-size-cpu.json
    python benchmarks/full_size.py scratch/two --layers 2

Random weights (make_checkpoint.py, the vision experts as holes): the answer means nothing, all else is as with
the released ones. Measured on `ernie-run` as a user runs it: seconds from the command to the first text, once with the
bundle out of the page cache and once in it; memory by kind; decode's rate, against the memory's bandwidth (a streaming
read's) over the bytes of weights and cache that a token reads (by ernie-plan).
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from process_memory import Sample, peak, proportional, watch
from rich.console import Console
from rich.table import Table

from ernie_export.doctor.machine import describe_machine
from ernie_export.exporter.plan.measure import sustained_bandwidth

HERE = Path(__file__).parent
COMMANDS = Path(sys.executable).parent
GIB = 2**30
PIXELS = 512
QUESTION = "What is in the picture?"


@dataclass(frozen=True)
class Answer:
    """One run of ernie-run, in seconds from the command and bytes."""

    first_text: float
    last_text: float
    tokens_per_second: float
    trace: list[Sample]
    held: int  # peak of anonymous memory
    share: int  # anonymous memory and mapped files at the end, a page that is mapped twice counted once


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--layers", type=int, help="Decoder layers; the released model has 28.")
@click.option("--precision", default="int4", show_default=True)
@click.option("--tokens", default=48, show_default=True, help="Of each answer.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
@click.option("--keep-free", default=10 * 10**9, show_default=True, help="Bytes of disk left free by the export.")
@click.option("--stream-bytes", default=GIB, show_default=True, help="Bytes read to measure the memory's bandwidth.")
def main(
    folder: Path,
    layers: int | None,
    precision: str,
    tokens: int,
    output: Path | None,
    keep_free: int,
    stream_bytes: int,
) -> None:
    """Make FOLDER/checkpoint and FOLDER/bundle where they are missing, and measure answers."""
    checkpoint = folder / "checkpoint"
    bundle = folder / "bundle"
    folder.mkdir(parents=True, exist_ok=True)
    if not (checkpoint / "model.safetensors.index.json").exists():
        make(checkpoint, layers)
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    figures: dict[str, Any] = {"date": str(date.today()), "precision": precision, "layers": text["num_hidden_layers"]}
    figures["machine"] = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    plan = plan_of(checkpoint, precision, tokens)
    if not bundle.exists():
        figures["export"] = export(checkpoint, bundle, precision, plan["bundle"], keep_free)
    picture = folder / "picture.png"
    noise = np.random.default_rng(0).integers(0, 256, (PIXELS, PIXELS, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    bandwidth = sustained_bandwidth(stream_bytes)
    forget(bundle)
    answers = {"cold": ask(bundle, picture, tokens), "warm": ask(bundle, picture, tokens)}
    bandwidth = max(bandwidth, sustained_bandwidth(stream_bytes))
    best = bandwidth / plan["decode"]["bytes"]
    figures |= {
        "bundle_bytes": sum(path.stat().st_size for path in bundle.iterdir()),
        "planned_bundle_bytes": plan["bundle"],
        "bandwidth_bytes_per_second": bandwidth,
        "bytes_per_token": plan["decode"]["bytes"],
        "tokens_per_second_by_bandwidth": best,
        "answers": {
            name: {
                "seconds_to_first_text": answer.first_text,
                "tokens_per_second": answer.tokens_per_second,
                "share_of_bandwidth": answer.tokens_per_second / best,
                "peak_anonymous_bytes": answer.held,
                "peak_file_bytes": peak(answer.trace)[1],
                "proportional_bytes": answer.share,
            }
            for name, answer in answers.items()
        },
    }
    show(figures)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n")


def make(checkpoint: Path, layers: int | None) -> None:
    """Write the checkpoint."""
    command = [sys.executable, str(HERE / "make_checkpoint.py"), str(checkpoint), "--shape", "full", "--holes"]
    subprocess.run([*command, *(["--layers", str(layers)] if layers else [])], check=True)


def plan_of(checkpoint: Path, precision: str, tokens: int) -> dict[str, Any]:
    """ernie-plan's figures for this precision, at the context of the answer's middle."""
    context = 18 * 18 + 40 + tokens // 2  # a picture of 512 pixels is 18 by 18 tokens
    command = [COMMANDS / "ernie-plan", checkpoint, "--precision", precision, "--context", str(context), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["precisions"][precision]


def export(checkpoint: Path, bundle: Path, precision: str, planned: int, keep_free: int) -> dict[str, Any]:
    """Run ernie-export; seconds to the disk, and memory."""
    free = shutil.disk_usage(bundle.parent).free
    if free - planned < keep_free:
        raise click.ClickException(
            f"{bundle}: {planned / 1e9:.1f} GB of {free / 1e9:.1f} GB free, {keep_free / 1e9:g} kept"
        )
    forget(checkpoint)
    started = time.perf_counter()
    command = [COMMANDS / "ernie-export", checkpoint, "-o", bundle, "--precision", precision]
    trace = watch(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    os.sync()
    seconds = time.perf_counter() - started
    anon, file = peak(trace)
    return {
        "seconds": seconds,
        "checkpoint_bytes": sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")),
        "peak_anonymous_bytes": anon,
        "peak_file_bytes": file,
    }


def forget(folder: Path) -> None:
    """Put a folder's files out of the page cache."""
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ask(bundle: Path, picture: Path, tokens: int) -> Answer:
    """Run ernie-run and note when its text comes."""
    command = [COMMANDS / "ernie-run", bundle, QUESTION, "--image", picture]
    command += ["--max-new-tokens", str(tokens), "--min-new-tokens", str(tokens)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    times: list[float] = []
    shares = [0]

    def read() -> None:
        assert process.stdout is not None
        while text := os.read(process.stdout.fileno(), 65536):
            if not times and not text.strip():
                continue
            times.append(time.perf_counter() - started)
            if len(times) in (2, tokens // 2):  # of about as many pieces as tokens; seldom, for it takes a while
                shares.append(proportional(process.pid))

    reader = threading.Thread(target=read)
    reader.start()
    trace = watch(process, interval=0.1)
    reader.join()
    if len(times) < 3:
        raise click.ClickException(f"{bundle}: expected an answer of several pieces, found {len(times)}")
    rate = (tokens - 1) / (times[-1] - times[0])  # the last piece is the line's end, after the last token
    return Answer(times[0], times[-1], rate, trace, peak(trace)[0], max(shares))


def show(figures: dict[str, Any]) -> None:
    """The figures as a table."""
    title = f"{figures['layers']} layers, {figures['precision']}, a {PIXELS}-pixel picture, {os.cpu_count()} cores"
    table = Table("", *figures["answers"], title=title)
    rows = {
        "seconds to the first text": lambda a: f"{a['seconds_to_first_text']:.1f}",
        "decode tokens/s": lambda a: f"{a['tokens_per_second']:.2f}",
        "of what bandwidth allows": lambda a: f"{a['share_of_bandwidth']:.0%}",
        "peak GiB held": lambda a: f"{a['peak_anonymous_bytes'] / GIB:.2f}",
        "GiB resident, mapped files included": lambda a: f"{a['proportional_bytes'] / GIB:.2f}",
    }
    for name, text in rows.items():
        table.add_row(name, *(text(answer) for answer in figures["answers"].values()))
    table.add_section()
    gigabytes = figures["bandwidth_bytes_per_second"] / 1e9, figures["bytes_per_token"] / 1e9
    table.add_row(f"{gigabytes[0]:.1f} GB/s over {gigabytes[1]:.2f} GB a token", f"{gigabytes[0] / gigabytes[1]:.2f}/s")
    table.add_row("bundle", f"{figures['bundle_bytes'] / GIB:.2f} GiB")
    if export := figures.get("export"):
        rate = export["checkpoint_bytes"] / GIB / export["seconds"]
        size = f"{export['checkpoint_bytes'] / GIB:.1f} GiB"
        table.add_row(f"export of {size}", f"{export['seconds']:.0f} s, {rate:.2f} GiB/s")
        table.add_row("export, peak MiB held", f"{export['peak_anonymous_bytes'] / 2**20:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
