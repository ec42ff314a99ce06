"""Export beside a plain copy of the checkpoint's weights: seconds to the disk, and memory over time.

    python benchmarks/export_speed.py scratch/m600
    python benchmarks/export_speed.py scratch/full --precision int4 --rounds 1 --output out.json --plot out.png

They take turns. Both begin with the checkpoint out of the page cache, and are on the disk (synced) before the clock
stops. `cp` copies the weight files one after another to one place, so that the disk need not hold a second checkpoint.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import click
from process_memory import MIB, Sample, peak, watch
from rich.console import Console
from rich.table import Table

POINTS = 400  # of a trace that is written down


@dataclass
class Runs:
    """What was measured of one contestant; the trace is the last round's."""

    seconds: list[float] = field(default_factory=list)
    written: int = 0
    trace: list[Sample] = field(default_factory=list)


def copy(checkpoint: Path, folder: Path, runs: Runs) -> None:
    """`cp` file by file; what holes read as is written, as an export writes it."""
    total = 0.0
    trace = []
    runs.written = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        started = time.perf_counter()
        process = subprocess.Popen(["cp", "--sparse=never", str(path), str(folder / "copy")])
        trace += [Sample(total + s.seconds, s.anon, s.file, s.page_cache) for s in watch(process)]
        os.sync()
        total += time.perf_counter() - started
        runs.written += (folder / "copy").stat().st_size
        (folder / "copy").unlink()
    runs.seconds.append(total)
    runs.trace = trace


def export(checkpoint: Path, folder: Path, runs: Runs, precision: str) -> None:
    """The command, as a user runs it."""
    command = [str(Path(sys.executable).parent / "ernie-export"), str(checkpoint), "-o", str(folder / "bundle")]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--precision", precision], stderr=subprocess.DEVNULL)
    runs.trace = watch(process)
    os.sync()
    runs.seconds.append(time.perf_counter() - started)
    runs.written = sum(path.stat().st_size for path in (folder / "bundle").iterdir())


def forget(checkpoint: Path) -> None:
    """Put the checkpoint out of the page cache."""
    for path in checkpoint.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--precision", default="fp32", show_default=True, help="As of ernie-export.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write figures and traces as JSON, too.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the memory over time.")
def main(checkpoint: Path, precision: str, rounds: int, output: Path | None, plot: Path | None) -> None:
    """Compare exporting CHECKPOINT with copying it."""
    runs = {"cp": Runs(), f"ernie-export {precision}": Runs()}
    os.sync()
    for _ in range(rounds):
        for name, found in runs.items():
            forget(checkpoint)
            with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
                if name == "cp":
                    copy(checkpoint, Path(folder), found)
                else:
                    export(checkpoint, Path(folder), found, precision)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    table = Table(title=f"{size / 2**30:.2f} GiB checkpoint, median of {rounds}, from disk to disk")
    for column in ("", "seconds", "GiB/s read", "GiB written", "MiB held", "MiB mapped"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in runs.items():
        middle = statistics.median(found.seconds)
        rate = size / 2**30 / middle
        written = found.written / 2**30
        anon, file = peak(found.trace)
        table.add_row(name, f"{middle:.1f}", f"{rate:.2f}", f"{written:.2f}", f"{anon / MIB:.0f}", f"{file / MIB:.0f}")
    Console().print(table)
    if output is not None:
        document = {"date": str(date.today()), "checkpoint_bytes": size, "precision": precision, "runs": {}}
        for name, found in runs.items():
            anon, file = peak(found.trace)
            document["runs"][name] = {
                "seconds": found.seconds,
                "written_bytes": found.written,
                "peak_anonymous_bytes": anon,
                "peak_file_bytes": file,
                "trace": [vars(sample) for sample in found.trace[:: len(found.trace) // POINTS + 1]],
            }
        output.write_text(json.dumps(document, indent=1) + "\n")
    if plot is not None:
        draw(runs, size, plot)


def draw(runs: dict[str, Runs], size: int, path: Path) -> None:
    """Memory over time: what each process holds, and what the machine's page cache gained."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (held, cache) = pyplot.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for name, found in runs.items():
        seconds = [sample.seconds for sample in found.trace]
        held.plot(seconds, [(sample.anon + sample.file) / MIB for sample in found.trace], label=name)
        start = found.trace[0].page_cache
        cache.plot(seconds, [(sample.page_cache - start) / 2**30 for sample in found.trace], label=name)
    held.set(title=f"memory of the process, {size / 2**30:.1f} GiB checkpoint", xlabel="seconds", ylabel="MiB resident")
    cache.set(title="page cache of the machine", xlabel="seconds", ylabel="GiB gained")
    held.axhline(1024, color="grey", linestyle=":", label="1 GiB")
    held.set_ylim(bottom=0)
    held.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
