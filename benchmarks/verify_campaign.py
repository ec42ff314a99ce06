"""Plant faults of every kind at random places in bundles of several precisions, and count what ernie-verify finds.

    python benchmarks/verify_campaign.py --output benchmarks/results/verify-campaign.json
    python benchmarks/verify_campaign.py --bundle fp32 --rounds 1 --only "mask off by one"

A fault is found if the report has a failure. It is named rightly if the last sentence says what was planted, by the
regular expression beside each fault in tools/faults.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ernie_export.common.errors import UserError
from ernie_export.doctor.machine import describe_machine
from ernie_export.exporter.verify.conversations import example_conversations
from ernie_export.exporter.verify.verify import verify
from tests.paths import MINI
from tools.faults.fault import Fault, sign
from tools.faults.graphs import GRAPHS
from tools.faults.runtime import RUNTIME
from tools.faults.weights import WEIGHTS

TOOLS = Path(__file__).parents[1] / "tools"
BUNDLES = {
    "fp32": ("--precision", "fp32"),
    "fp32, portable": ("--target", "onnx-portable", "--precision", "fp32"),
    "fp16": ("--precision", "fp16"),
    "int8": ("--precision", "int8"),
    "int4": ("--precision", "int4"),
    "int4, calibrated": ("--precision", "int4", "--calibrate"),
}


@click.command()
@click.option("--bundle", "bundles", multiple=True, type=click.Choice(list(BUNDLES)), default=list(BUNDLES))
@click.option("--rounds", default=3, show_default=True, help="Places of each kind of fault and bundle.")
@click.option("--only", help="Only the faults whose name contains this.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the counts as JSON, too.")
def main(bundles: tuple[str, ...], rounds: int, only: str | None, seed: int, output: Path | None) -> None:
    """Plant faults and count what ernie-verify finds."""
    faults = [fault for fault in (*WEIGHTS, *GRAPHS, *RUNTIME) if only is None or only in fault.name]
    rng = np.random.default_rng(seed)
    results = []
    with tempfile.TemporaryDirectory() as folder, Progress(console=Console(stderr=True)) as progress:
        for name in bundles:
            bundle = export(Path(folder), name)
            right = compare(bundle)
            assert not right["failures"], right  # what was exported has no fault
            for fault in progress.track(faults, description=name):
                results += [run(fault, bundle, name, rng) for _ in range(rounds)]
            print(f"{name}: {time.process_time():.0f} s", file=sys.stderr, flush=True)
    planted = [result for result in results if result is not None]
    show(planted)
    if output is not None:
        machine = describe_machine()
        about = {"date": date.today().isoformat(), "cpu": machine.cpu, "command": " ".join(["python", *sys.argv])}
        output.write_text(json.dumps(about | {"seed": seed, "planted": planted}, indent=1) + "\n")


def export(folder: Path, name: str) -> Path:
    """Export the small checkpoint and return the bundle."""
    bundle = folder / name.replace(", ", "-")
    options = list(BUNDLES[name])
    if options[-1] == "--calibrate":
        scenes = folder / "scenes.json"
        write_scenes = [sys.executable, TOOLS / "calibration_file.py", scenes, "--count", "2"]
        subprocess.run(list(map(str, write_scenes)), check=True, capture_output=True)
        options.append(str(scenes))
    command = [Path(sys.executable).with_name("ernie-export"), MINI, "-o", bundle, *options]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return bundle


def run(fault: Fault, bundle: Path, name: str, rng: np.random.Generator) -> dict[str, Any] | None:
    """Plant one fault in a copy of a bundle and verify it; None where the fault does not apply."""
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(bundle, copy)
        planted = fault.plant(copy, rng)
        if planted is None:
            return None
        sign(copy)
        with planted.during():
            report = compare(copy)
        found = bool(report["failures"])
        named = found and re.match(planted.sentence, report["diagnosis"]) is not None
        if not named:
            print(
                f"{name}, {fault.name}, {planted.place}: {report['diagnosis'] or 'not found'}",
                file=sys.stderr,
                flush=True,
            )
        about = {"bundle": name, "kind": fault.kind, "fault": fault.name, "place": planted.place}
        return about | {"found": found, "named": named, **report, "failures": report["failures"][:1]}


def compare(bundle: Path) -> dict[str, Any]:
    """Return the failures and the sentence of ernie-verify, and the seconds that it takes once PyTorch is loaded."""
    begin = time.perf_counter()
    try:
        report = verify(bundle, MINI, None, example_conversations(), [], lambda text: None)
        failures = report.failures
        diagnosis = report.diagnosis
    except UserError as e:
        failures = [str(e)]
        diagnosis = str(e)
    return {"failures": failures, "diagnosis": diagnosis, "seconds": round(time.perf_counter() - begin, 1)}


def show(planted: list[dict[str, Any]]) -> None:
    """Print what was found and named, by fault and bundle."""
    counts: dict[str, Counter[str]] = {what: Counter() for what in ("planted", "found", "named")}
    for result in planted:
        for what, counter in counts.items():
            counter[f"{result['fault']}/{result['bundle']}"] += int(result.get(what, True))
    precisions = list(dict.fromkeys(result["bundle"] for result in planted))
    table = Table("fault", *precisions, title="found and named, of those planted")
    for fault in dict.fromkeys(result["fault"] for result in planted):
        cells = [
            tuple(counts[what][f"{fault}/{precision}"] for what in ("found", "named", "planted"))
            for precision in precisions
        ]
        table.add_row(fault, *("/".join(map(str, cell)) if cell[2] else "" for cell in cells))
    console = Console()
    console.print(table)
    total = [sum(counter.values()) for counter in counts.values()]
    console.print(f"{total[0]} planted, {total[1]} found, {total[2]} named rightly")


if __name__ == "__main__":
    main()
