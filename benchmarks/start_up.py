"""Seconds and processor time of ernie-run from the command to its first text, by several versions of the code.

    git worktree add --detach /tmp/before COMMIT
    python benchmarks/start_up.py scratch/m600-int4 --code before=/tmp/before --code now=. --rounds 3

The versions take turns, each in a process of its own, with the bundle in the page cache. On a machine that does other
work too, compare processor time, and seconds as ratios. Memory is the peak of what the process alone holds, and of
mapped files besides, which the system can drop.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import click
from process_memory import peak, watch
from rich.console import Console
from rich.table import Table

from ernie_export.doctor.machine import describe_machine

# -P: else the current folder's code would come before that of PYTHONPATH.
PROGRAM = """
import os, ernie_export
assert ernie_export.__file__.startswith(os.environ["PYTHONPATH"] + os.sep), ernie_export.__file__
from ernie_export.runtime.cli.run import main
main()
"""


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--code", multiple=True, required=True, metavar="NAME=FOLDER", help="A version of the code.")
@click.option("--image", type=click.Path(path_type=Path, exists=True), help="A picture to ask about, too.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the numbers as JSON, too.")
def main(bundle: Path, code: tuple[str, ...], image: Path | None, rounds: int, output: Path | None) -> None:
    """Start ernie-run on BUNDLE by each version of the code in turn."""
    questions: dict[str, list[str]] = {"text": []} | ({"picture": ["--image", str(image)]} if image else {})
    folders = dict(one.split("=", 1) for one in code)
    machine = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {q: {name: [] for name in folders} for q in questions}
    for number in range(rounds + 1):
        for question, arguments in questions.items():
            for name, folder in folders.items():
                run = start(bundle, Path(folder), arguments)
                if number or question != "text":  # the first brings the files into the page cache
                    runs[question][name].append(run)
    answers = {q: {run.pop("answer") for several in by_code.values() for run in several} for q, by_code in runs.items()}
    if any(len(different) > 1 for different in answers.values()):
        raise click.ClickException(f"{bundle}: expected equal answers of all versions, found {answers}")
    medians = {
        question: {
            name: {key: statistics.median(run[key] for run in several) for key in several[0]}
            for name, several in by_code.items()
        }
        for question, by_code in runs.items()
    }
    table = Table("", "seconds", "processor s", "MiB alone", "MiB with files", title=f"{bundle.name}, first token")
    for question, by_code in medians.items():
        for name, values in by_code.items():
            table.add_row(
                f"{question}, {name}",
                f"{values['seconds']:.2f}",
                f"{values['processor_seconds']:.2f}",
                f"{values['anonymous_bytes'] / 2**20:,.0f}",
                f"{values['resident_bytes'] / 2**20:,.0f}",
            )
    Console().print(table)
    if output is not None:
        document = {"date": str(date.today()), "bundle": bundle.name, "machine": machine}
        output.write_text(json.dumps(document | {"rounds": rounds, "medians": medians, "runs": runs}, indent=1) + "\n")


def start(bundle: Path, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Return seconds, processor seconds, memory and the answer of one run for a single token."""
    command = [sys.executable, "-P", "-c", PROGRAM, str(bundle), "What is this?", "--max-new-tokens", "1", "--json"]
    before = os.times()
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(folder.resolve())}
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, env=environment)
    trace = watch(process)
    assert process.stdout is not None
    answer = process.stdout.read().decode()
    after = os.times()
    return {
        "answer": answer,
        "seconds": time.perf_counter() - started,
        "processor_seconds": sum(after[2:4]) - sum(before[2:4]),
        "anonymous_bytes": peak(trace)[0],
        "resident_bytes": max(one.anon + one.file for one in trace),
    }


if __name__ == "__main__":
    main()
