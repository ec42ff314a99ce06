"""This runtime beside PyTorch, llama.cpp and other exporters, in one run: rates, memory, seconds to the first token.

    python benchmarks/make_checkpoint.py scratch/m600
    ernie-export scratch/m600 -o scratch/m600-onnx
    python benchmarks/compare.py scratch/m600 scratch/m600-onnx

Every contestant is a process of its own; they take turns, round after round, so that a slow minute of the machine
meets all of them. The median over rounds is shown. Each starts several times first, in turns too: from the process's
start to the first token of a prompt of 16 tokens. They stay loaded, or, with `--apart`, start anew for each round, one
at a time, where memory does not hold them all (those of a 650 M checkpoint take 24 GiB and more; `--only` chooses).

Further bundles add rows: other precisions, and one of the target onnx-portable has OpenVINO run it. A GGUF of
make_gguf.py adds llama.cpp, with weights repacked at load, its default, and as they are in the mapped file. Peers' own
packages may lie apart (`pip install --target scratch/peers openvino onnxscript`, `--packages`).
"""

import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import llama_build
from contestant_process import Refused, Worker
from contestants import THREADS
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ernie_export.doctor.machine import describe_machine

MEASURED = ("onnxruntime", "torch", "transformers")  # packages whose versions a result names
DECODED = 32  # steps of a decode
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # malloc's memory is advised MADV_HUGEPAGE
TOGETHER = (1, 4, 16)  # sequences that are decoded together


@dataclass(frozen=True)
class Task:
    """Requests to a contestant, of which the last is timed, and the tokens that this one computes."""

    requests: tuple[dict[str, Any], ...]
    tokens: int


def prefill(text: int, image: tuple[int, int] = (0, 0), sequences: int = 1) -> dict[str, Any]:
    """A request, as contestants.py reads it."""
    return {"do": "prefill", "text": text, "image": image, "sequences": sequences}


DECODE = {"do": "decode", "tokens": DECODED}
ALONE = {
    "prefill 512 text": Task((prefill(512),), 512),
    "decode": Task((DECODE,), DECODED),  # after the 512 tokens
    "prefill 256 text + 1024 image": Task((prefill(256, (64, 64)),), 1282),
}
FIRST = prefill(16)
MANY = {f"decode, {n} together": Task((prefill(64, sequences=n), DECODE), n * DECODED) for n in TOGETHER}
TASKS = ALONE | MANY


@dataclass
class Report:
    """What was measured, by contestant; seconds by task, too, and so are errors (a start's under no name).

    Attributes:
        pause: Seconds before each request, in which the threads of the contestant before stop spinning.
        tasks: Names of the tasks that are done.
    """

    pause: float
    tasks: frozenset[str] = frozenset(TASKS)
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    seconds_to_first_token: dict[str, list[float]] = field(default_factory=dict)
    rss_mib: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)

    def start(self, name: str, spec: dict[str, Any], packages: Sequence[str], counts: bool) -> Worker | None:
        """Start a contestant; None if it can't begin. With `counts`, note the seconds."""
        time.sleep(self.pause)
        try:
            worker = Worker(spec, packages, FIRST)
        except Refused as e:
            self.errors.setdefault(name, {})[""] = str(e)
            return None
        self.seconds.setdefault(name, {task: [] for task in TASKS})
        starts = self.seconds_to_first_token.setdefault(name, [])
        if counts:
            starts.append(worker.seconds_to_first_token)
        return worker

    def run(self, name: str, worker: Worker, task: str, counts: bool) -> None:
        """Have a contestant do a task of those to do. With `counts`, note seconds; memory is that of one sequence."""
        if task not in self.tasks:
            return
        try:
            for request in TASKS[task].requests:
                time.sleep(self.pause)
                answer = worker.ask(request)
        except Refused as e:
            self.errors.setdefault(name, {})[task] = str(e)
            return
        if task in ALONE:
            self.rss_mib[name] = max(self.rss_mib.get(name, 0.0), answer["rss_mib"])
        if counts:
            self.seconds[name][task].append(answer["seconds"])


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path, exists=True))
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--starts", default=3, show_default=True, help="Of each contestant; the first of several is left out.")
@click.option("--apart", is_flag=True, help="Start each contestant anew for each round, one at a time.")
@click.option("--pause", default=0.5, show_default=True, help="Seconds between two contestants' work.")
@click.option("--task", multiple=True, metavar="TEXT", help="Tasks whose name has this in it. May be repeated.")
@click.option("--only", multiple=True, metavar="TEXT", help="Contestants whose name has this in it. May be repeated.")
@click.option("--packages", multiple=True, type=click.Path(exists=True), help="A folder that peers' packages lie in.")
@click.option("--huge-pages", is_flag=True, help="Each contestant once more, what it allocates in huge pages (Linux).")
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(
    checkpoint: Path,
    bundles: tuple[Path, ...],
    rounds: int,
    starts: int,
    apart: bool,
    pause: float,
    task: tuple[str, ...],
    only: tuple[str, ...],
    packages: tuple[str, ...],
    huge_pages: bool,
    output: Path | None,
) -> None:
    """Compare exported BUNDLES, and GGUF files, with PyTorch, and with what others export, on the CHECKPOINT."""
    specs = contestants(checkpoint, bundles)
    if huge_pages:
        specs = {title: one for name, spec in specs.items() for title, one in both_pages(name, spec)}
    specs = {name: spec for name, spec in specs.items() if not only or any(text in name for text in only)}
    machine = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    versions = {name: version(name) for name in MEASURED if find_spec(name)}
    if any(name.startswith("llama.cpp") for name in specs):
        versions["llama-cpp-python"] = llama_build.VERSION
    report = Report(pause, chosen_tasks(task))
    if apart:
        run_apart(report, specs, packages, rounds)
    else:
        run_loaded(report, specs, packages, rounds, starts)
    title = f"tokens a second, {machine['cpu']} ({', '.join(machine['features'])}), {THREADS} threads, {date.today()}"
    Console().print(table(report, ALONE, title), table(report, MANY, "several sequences, of 64 tokens and more"))
    for name, by in report.errors.items():
        for task, error in by.items():
            print(f"{name}: {task or 'loading'}: {error}")
    if output is not None:
        tokens = {name: task.tokens for name, task in TASKS.items()}
        document = {"date": str(date.today()), "machine": machine, "versions": versions, "rounds": rounds}
        document["tokens"] = tokens
        figures = asdict(report)
        del figures["tasks"]
        output.write_text(json.dumps(document | figures, indent=1) + "\n")


def chosen_tasks(texts: Sequence[str]) -> frozenset[str]:
    """Return the names of tasks with one of the texts, of all where there is none, and the prefill before a decode."""
    chosen = {name for name in TASKS if not texts or any(text in name for text in texts)}
    return frozenset(chosen | {"prefill 512 text"} if "decode" in chosen else chosen)


def run_loaded(
    report: Report, specs: dict[str, dict[str, Any]], packages: Sequence[str], rounds: int, starts: int
) -> None:
    """Load all contestants, `starts` times each, and have them do each task in turns."""
    workers: dict[str, Worker] = {}
    for number in track(range(starts), "starts"):
        for name, spec in specs.items():
            if name in workers:
                workers.pop(name).close()
            if worker := report.start(name, spec, packages, counts=number > 0 or starts == 1):
                workers[name] = worker
    for tasks in (ALONE, MANY):
        for number in track(range(rounds + 1), "rounds"):
            for task in tasks:
                for name, worker in workers.items():
                    report.run(name, worker, task, counts=number > 0)  # the first round warms up
    for worker in workers.values():
        worker.close()


def run_apart(report: Report, specs: dict[str, dict[str, Any]], packages: Sequence[str], rounds: int) -> None:
    """Start one contestant after the other, round after round; each does its tasks twice, to warm up."""
    for number in track(range(rounds + 1), "rounds"):
        for name, spec in specs.items():
            worker = report.start(name, spec, packages, counts=number > 0)
            if worker is None:
                continue
            for tasks in (ALONE, MANY):
                for warm in (False, True):
                    for task in tasks:
                        report.run(name, worker, task, counts=number > 0 and warm)
            worker.close()


def table(report: Report, tasks: dict[str, Task], title: str) -> Table:
    """The medians; with tasks of one sequence, memory and the start, too."""
    result = Table(title=title)
    result.add_column(no_wrap=True)
    for column in (*tasks, *(("peak RSS MiB", "first token s") if tasks is ALONE else ())):
        result.add_column(column, justify="right")
    for name, seconds in report.seconds.items():
        row = [
            f"{task.tokens / statistics.median(s):.1f}" if (s := seconds[key]) else "–" for key, task in tasks.items()
        ]
        if tasks is ALONE:
            starts = report.seconds_to_first_token[name]
            row += [f"{report.rss_mib.get(name, 0):.0f}", f"{statistics.median(starts):.2f}" if starts else "–"]
        result.add_row(name, *row)
    return result


def contestants(checkpoint: Path, bundles: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    """What `contestants.make` takes, by the name that the table shows."""
    specs: dict[str, dict[str, Any]] = {}
    for bundle in bundles:
        if bundle.suffix == ".gguf":
            spec = {"kind": "LlamaCpp", "gguf": str(bundle), "threads": THREADS}
            specs[f"llama.cpp {bundle.stem}"] = spec | {"repacked": True}
            specs[f"llama.cpp {bundle.stem}, mapped"] = spec | {"repacked": False}
            continue
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


def both_pages(name: str, spec: dict[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Return a contestant as it is, and with huge pages, which Linux gives to those who ask for them, or to all."""
    return (name, spec), (f"{name}, huge pages", spec | {"environment": HUGE_PAGES})


if __name__ == "__main__":
    main()
