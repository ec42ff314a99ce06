"""Export beside a plain copy of the checkpoint's files: seconds, and peak memory of the process.

    python benchmarks/export_speed.py scratch/m600

They take turns, and both are on the disk (synced) before the clock stops.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds until the command is done and the disk is synced, and the command's peak memory in MiB."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    if status:
        raise RuntimeError(f"{command}: exit {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024  # KiB on Linux


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=3, show_default=True)
def main(checkpoint: Path, rounds: int) -> None:
    """Compare exporting CHECKPOINT with copying it."""
    exporter = str(Path(sys.executable).parent / "ernie-export")
    seconds: dict[str, list[float]] = {"cp": [], "ernie-export": []}
    peak: dict[str, float] = {}
    for _ in track(range(rounds), "rounds"):
        for name in seconds:
            with tempfile.TemporaryDirectory(dir=checkpoint.parent) as folder:
                target = str(Path(folder) / "out")
                cp, export = ["cp", "-r", str(checkpoint), target], [exporter, str(checkpoint), "-o", target]
                taken, peak[name] = measure(cp if name == "cp" else export)
                seconds[name].append(taken)
    size = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / 2**30
    table = Table(title=f"{size:.2f} GiB checkpoint, median of {rounds}, synced to disk")
    for column in ("", "seconds", "GiB/s", "peak RSS MiB"):
        table.add_column(column, justify="right" if column else "left")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        table.add_row(name, f"{middle:.1f}", f"{size / middle:.2f}", f"{peak[name]:.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
