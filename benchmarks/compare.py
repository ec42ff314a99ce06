"""This runtime beside PyTorch, in one run: prefill and decode rates, peak memory.

    python benchmarks/make_checkpoint.py scratch/m600
    ernie-export scratch/m600 -o scratch/m600-onnx
    python benchmarks/compare.py scratch/m600 scratch/m600-onnx

Every contestant is a process of its own that stays loaded; they take turns, round after round, so that a slow minute of
the machine meets all of them. The median over rounds is shown.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

PAUSE = 0.5  # seconds between tasks: threads of the contestant before spin on for a while, and would take its cores
TASKS = {
    "prefill 512 text": {"do": "prefill", "text": 512, "image": [0, 0]},
    "decode": {"do": "decode", "tokens": 32},
    "prefill 256 text + 1024 image": {"do": "prefill", "text": 256, "image": [64, 64]},
}
TOKENS = {"prefill 512 text": 512, "decode": 32, "prefill 256 text + 1024 image": 1282}


class Worker:
    """A contestant's process."""

    def __init__(self, spec: dict[str, Any]) -> None:
        command = [sys.executable, str(Path(__file__).parent / "contestants.py"), json.dumps(spec)]
        environment = os.environ | {"OMP_NUM_THREADS": "2"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.read()

    def read(self) -> dict[str, Any]:
        """The worker's next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker ended with code {self.process.wait()}: {self.process.args}")
        return json.loads(line)

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Run one task there."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self.read()


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(checkpoint: Path, bundle: Path, rounds: int, output: Path | None) -> None:
    """Compare the exported BUNDLE with PyTorch on the CHECKPOINT."""
    specs = {"ernie-export fp32": {"bundle": str(bundle)}} | {
        f"PyTorch {experts} {name}": {"checkpoint": str(checkpoint), "experts": experts, "dtype": dtype}
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))
        for experts in ("eager", "grouped_mm")
    }
    workers = {name: Worker(spec) for name, spec in specs.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {task: [] for task in TASKS} for name in workers}
    peak = dict.fromkeys(workers, 0.0)
    for number in track(range(rounds + 1), "rounds"):
        for task, request in TASKS.items():
            for name, worker in workers.items():
                time.sleep(PAUSE)
                answer = worker.ask(request)
                peak[name] = max(peak[name], answer["rss_mib"])
                if number:  # the first round warms up
                    seconds[name][task].append(answer["seconds"])
    rates = {n: {t: TOKENS[t] / statistics.median(s) for t, s in by.items()} for n, by in seconds.items()}
    table = Table(title=f"tokens a second, {platform.processor() or platform.machine()}, 2 threads, {date.today()}")
    for column in ("", *TASKS, "peak RSS MiB"):
        table.add_column(column, justify="right" if column else "left")
    for name in workers:
        table.add_row(name, *(f"{rates[name][task]:.1f}" for task in TASKS), f"{peak[name]:.0f}")
    Console().print(table)
    if output is not None:
        document = {"date": str(date.today()), "rounds": rounds, "seconds": seconds, "tokens": TOKENS, "rss_mib": peak}
        output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
