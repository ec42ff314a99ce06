"""ernie-plan: does it fit, and how fast can it be? From config.json alone, before any work."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import run
from ernie_export.common.errors import UserError
from ernie_export.common.json_fields import one_line
from ernie_export.exporter.cli.export import PRECISIONS
from ernie_export.exporter.plan.devices import DEVICES, Device, find_device
from ernie_export.exporter.plan.workload import DEFAULT_CONTEXT, read_workload
from ernie_export.exporter.processor_files import find_processor_files
from ernie_export.graphs.checkpoint.original.files import transformers_spelling
from ernie_export.graphs.config import ErnieConfig

LARGEST_BATCH = 2**16
ESTIMATED = ("device_memory", "activations", "longest_context", "prefill", "decode")
NOTES = (
    "rates: upper bounds (roofline; intermediate results stay on the chip, experts evenly chosen); where the"
    " arithmetic's rate is unknown, decode is bounded by its bytes alone",
    "activations: estimated; weights counted once; no allowance for the engine's own memory",
)
ENGINES = "bundle on disk: without the engines and kernels, a few MiB each, whose sizes nobody knows beforehand"


@click.command(context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--device", "device_name", help=f"{', '.join(DEVICES)}, cpu, or a .json file of figures.")
@click.option("--target", type=click.Choice(list(PRECISIONS)), default="onnx", help="As of ernie-export.")
@click.option("--precision", help="Which, with commas between. [default: all of the target]")
@click.option(
    "--context", type=click.IntRange(min=1), help=f"Tokens of a sequence, images included. [default: {DEFAULT_CONTEXT}]"
)
@click.option("--images", default="", help="Images of each sequence, as WIDTHxHEIGHT,... in pixels.")
@click.option("--batch", type=click.IntRange(1, LARGEST_BATCH), default=1, help="Sequences answered together.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, in bytes, FLOP and seconds.")
def command(
    checkpoint: Path,
    device_name: str | None,
    target: str,
    precision: str | None,
    context: int | None,
    images: str,
    batch: int,
    as_json: bool,
) -> None:
    """Plan for CHECKPOINT (a folder, or its config.json): sizes, what fits, and the fastest that a device allows."""
    try:
        from ernie_export.exporter.export import LIMITS
        from ernie_export.exporter.plan.roofline import estimate
        from ernie_export.exporter.plan.sizes import EXPORT_MEMORY, Model
        from ernie_export.graphs.precision import ONNX
        from ernie_export.graphs.precision import PRECISIONS as PRECISION_OF
    except ModuleNotFoundError as e:
        raise click.UsageError(f"planning needs the extra 'export' (no module {e.name}): pip install .[export]") from e
    if checkpoint.is_file() and checkpoint.name != "config.json":
        raise UserError(f"{checkpoint}: expected a checkpoint folder or its config.json, found another file")
    folder = checkpoint.parent if checkpoint.name == "config.json" and not checkpoint.is_dir() else checkpoint
    known = PRECISIONS[target]
    precisions = known if precision is None else [name.strip() for name in precision.split(",")]
    for name in precisions:
        if name not in known:
            expected = f"some of {','.join(known)} for --target {target}"
            raise UserError(f"--precision: expected {expected}, found {one_line(name)}")
    config = ErnieConfig.from_hf(folder)
    device = find_device(device_name) if device_name is not None else None
    with transformers_spelling(folder, config, whole=False) as source:
        workload = read_workload(config, source, context, batch, images)
        copied = sum(path.stat().st_size for path in find_processor_files(source, require_all=False))
    model = Model.build(config, ONNX["fp32"]).model
    named = [PRECISION_OF[target][name] for name in dict.fromkeys(precisions)]
    estimates = [estimate(model, target, how, workload, device) for how in named]
    parameters = model.parameters()
    plan: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "target": target,
        "parameters": {"total": sum(parameters.values()), **parameters},
        "active_parameters": model.active(),
        "workload": asdict(workload) | {"vision_tokens": workload.vision_tokens},
        "device": asdict(device) if device is not None else None,
        "export_peak_memory": {"bytes": EXPORT_MEMORY, "source": "measured: at most this, whatever the size"},
        "processor_files": copied,
        "precisions": {e.precision: asdict(e) | {"bundle": e.data_file + e.graph_files + copied} for e in estimates},
        "estimated": ESTIMATED,
        "notes": [*NOTES, ENGINES] if target in LIMITS else NOTES,
    }
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan, device, Console())


def show(plan: dict[str, Any], device: Device | None, console: Console) -> None:
    """The plan as one table, a column for each precision."""
    active, found, work = plan["active_parameters"], list(plan["precisions"].values()), plan["workload"]
    unit, scale = ("GiB", 2**30) if plan["parameters"]["total"] > 2**28 else ("MiB", 2**20)
    of_token = f"text {count(active['text'])} ({count(active['text with head'])} with the head), vision"
    lines = [
        f"{plan['checkpoint']}: {count(plan['parameters']['total'])} parameters",
        f"active per token: {of_token} {count(active['vision'])}",
        f"workload: batch {work['batch']}, context {work['context']}, of it {work['vision_tokens']} of images",
        f"export: peak memory {plan['export_peak_memory']['bytes'] / 2**20:.0f} MiB (measured, whatever the size)",
    ]
    if device is not None:
        lines.append(f"device: {device.name}, {device.memory / 1e9:.1f} GB ({device.source})")
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    table = Table(title=f"sizes in {unit}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for e in found:
        table.add_column(e["precision"], justify="right")

    def row(label: str, text: Callable[[Any], str], *keys: str) -> None:
        table.add_row(label, *(text(reduce(getitem, keys, e)) for e in found))

    def size(value: float) -> str:
        return f"{value / scale:.2f}"

    for part in plan["parameters"]:
        if part != "total" and any(e["weights"][part] for e in found):
            row(part, size, "weights", part)
    for label, key in (("KV cache", "kv_cache"), ("activations ≈", "activations"), ("device memory", "device_memory")):
        row(label, size, key)
    row("KV bytes/token", str, "kv_per_token")
    row("bundle on disk", size, "bundle")
    table.add_section()
    if device is not None:
        row("fits", lambda fits: "yes" if fits else "no", "fits")
        row("longest context", lambda tokens: str(tokens or "–"), "longest_context")
        table.add_section()
    for phase in ("prefill", "decode"):
        row(f"{phase} GFLOP", lambda flops: number(flops, 1e-9), phase, "flops")
        row(f"{phase} {unit}", size, phase, "bytes")
        row(f"{phase} ms ≥", lambda seconds: number(seconds, 1e3), phase, "seconds")
        row(f"{phase} tokens/s ≤", lambda rate: number(rate, 1), phase, "tokens_per_second")
    console.print(table)
    for note in plan["notes"]:
        console.print(Text(note), soft_wrap=True)


def count(parameters: float) -> str:
    """A count in billions, or in millions below one."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def number(value: float | None, factor: float) -> str:
    """A figure in other units; a dash where it is unknown."""
    return "–" if value is None else f"{value * factor:,.0f}" if value * factor >= 100 else f"{value * factor:.3g}"


def main() -> None:
    """Entry point of ernie-plan."""
    run(command)


if __name__ == "__main__":
    main()
