"""This runtime beside PyTorch and other exporters, in one run: prefill and decode rates, peak memory.

    python benchmarks/make_checkpoint.py scratch/m600
    ernie-export scratch/m600 -o scratch/m600-onnx
    python benchmarks/compare.py scratch/m600 scratch/m600-onnx

Every contestant is a process of its own that stays loaded; they take turns, round after round, so that a slow minute of
the machine meets all of them. The median over rounds is shown. Further bundles add rows: other precisions, and one of
the target onnx-portable has OpenVINO run it. All contestants of a 650 M checkpoint take 24 GiB and more: `--only`
chooses. Peers' own packages may lie apart (`pip install --target scratch/peers openvino onnxscript`, `--packages`).
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
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


class Refused(Exception):
    """A contestant can't do what it was asked; the text says why."""


class Worker:
    """A contestant's process; Refused if it can't begin."""

    def __init__(self, spec: dict[str, Any], packages: Sequence[str]) -> None:
        command = [sys.executable, str(Path(__file__).parent / "contestants.py"), json.dumps(spec), *packages]
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
        """The worker's next line; Refused if it is an error."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker ended with code {self.process.wait()}: {self.process.args}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Run one task there."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        return self.read()


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, metavar="TEXT", help="Contestants whose name has this in it. May be repeated.")
@click.option("--packages", multiple=True, type=click.Path(exists=True), help="A folder that peers' packages lie in.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(
    checkpoint: Path,
    bundles: tuple[Path, ...],
    rounds: int,
    only: tuple[str, ...],
    packages: tuple[str, ...],
    output: Path | None,
) -> None:
    """Compare exported BUNDLES with PyTorch, and with what others export, on the CHECKPOINT."""
    specs = contestants(checkpoint, bundles)
    specs = {name: spec for name, spec in specs.items() if not only or any(text in name for text in only)}
    workers = {}
    errors = {}
    for name, spec in track(specs.items(), "loading"):
        try:
            workers[name] = Worker(spec, packages)
        except Refused as e:
            errors[name] = {"": str(e)}
    seconds: dict[str, dict[str, list[float]]] = {name: {task: [] for task in TASKS} for name in workers}
    peak = dict.fromkeys(workers, 0.0)
    for number in track(range(rounds + 1), "rounds"):
        for task, request in TASKS.items():
            for name, worker in workers.items():
                time.sleep(PAUSE)
                try:
                    answer = worker.ask(request)
                except Refused as e:
                    errors.setdefault(name, {})[task] = str(e)
                    continue
                peak[name] = max(peak[name], answer["rss_mib"])
                if number:  # the first round warms up
                    seconds[name][task].append(answer["seconds"])
    rates = {n: {t: TOKENS[t] / statistics.median(s) for t, s in by.items() if s} for n, by in seconds.items()}
    table = Table(title=f"tokens a second, {platform.processor() or platform.machine()}, 2 threads, {date.today()}")
    for column in ("", *TASKS, "peak RSS MiB"):
        table.add_column(column, justify="right" if column else "left")
    for name in workers:
        found = (f"{rates[name][task]:.1f}" if task in rates[name] else "–" for task in TASKS)
        table.add_row(name, *found, f"{peak[name]:.0f}")
    Console().print(table)
    for name, by in errors.items():
        for task, error in by.items():
            print(f"{name}: {task or 'loading'}: {error}")
    if output is not None:
        document = {"date": str(date.today()), "rounds": rounds, "seconds": seconds, "tokens": TOKENS, "rss_mib": peak}
        output.write_text(json.dumps(document | {"errors": errors}, indent=1) + "\n")


def contestants(checkpoint: Path, bundles: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """What `contestants.make` takes, by the name that the table shows."""
    specs: dict[str, dict[str, Any]] = {}
    for bundle in bundles:
        manifest = json.loads((bundle / "manifest.json").read_text())
        if manifest["target"] == "onnx-portable":
            specs[f"OpenVINO {manifest['precision']}, our graphs"] = {"kind": "OpenVino", "bundle": str(bundle)}
        else:
            specs[f"ernie-export {manifest['precision']}"] = {"kind": "Ours", "bundle": str(bundle)}
    for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16")):
        for experts in ("eager", "grouped_mm"):
            spec = {"kind": "PyTorch", "checkpoint": str(checkpoint), "experts": experts, "dtype": dtype}
            specs[f"PyTorch {experts} {name}"] = spec
        specs[f"torch.compile grouped_mm {name}"] = spec | {"compiled": True}
    for exporter in ("onnx", "openvino"):
        spec = {"kind": "Exported", "checkpoint": str(checkpoint), "exporter": exporter}
        specs[f"transformers' {exporter} exporter fp32"] = spec
    return specs


if __name__ == "__main__":
    main()
