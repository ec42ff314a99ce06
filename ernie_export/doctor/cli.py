"""ernie-doctor: what this machine can run, and what to install for the rest."""

import json
import sys
from dataclasses import asdict

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import run
from ernie_export.doctor.capabilities import Capability, find_capabilities
from ernie_export.doctor.machine import Machine, describe_machine


@click.command(context_settings={"show_default": True, "max_content_width": 110})
@click.option("--json", "as_json", is_flag=True, help="Print machine and capabilities as JSON.")
def command(as_json: bool) -> None:
    """Say what this machine can run, and what to install for the rest.

    Exit code 0: bundles run here, at least on the CPU; 1: they do not.
    """
    machine = describe_machine()
    capabilities = find_capabilities()
    if as_json:
        entries = [asdict(entry) | {"install": entry.install} for entry in capabilities]
        print(json.dumps({"machine": asdict(machine), "capabilities": entries}, indent=1))
    else:
        show(machine, capabilities, Console())
    sys.exit(0 if capabilities[0].is_available else 1)


def show(machine: Machine, capabilities: list[Capability], console: Console) -> None:
    """Print the machine, a table of what it can do, and what is missing for the rest."""
    lines = (
        f"ernie-export {machine.package}, Python {machine.python}, {machine.system}",
        f"{machine.cpu}: {machine.cores} cores, {machine.memory / 2**30:.1f} GiB, {', '.join(machine.features) or '–'}",
        f"GPU: {machine.gpu or 'none that NVIDIA’s driver shows'}",
    )
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("you want to", "here", "install"):
        table.add_column(column, no_wrap=True)
    for entry in capabilities:
        table.add_row(entry.name, "yes" if entry.is_available else "no", Text(entry.install))
    console.print(table)
    for entry in capabilities:
        for line in entry.missing:
            console.print(Text(f"{entry.name}: {line}"), soft_wrap=True)


def main() -> None:
    """Entry point of `ernie-doctor`."""
    run(command)
