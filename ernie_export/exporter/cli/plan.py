"""Run ernie-plan: say whether a model fits a device and how fast it can be, from config.json alone."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import run
from ernie_export.common.errors import InvalidFile, InvalidValue, printable
from ernie_export.common.json_fields import one_line
from ernie_export.exporter.cli.target_options import options_of_targets, target_option, with_target_options
from ernie_export.exporter.plan.devices import CPU, DEVICES, Device, find_device
from ernie_export.exporter.plan.rates import keep_rates, rates_file
from ernie_export.exporter.plan.workload import DEFAULT_CONTEXT, read_workload
from ernie_export.exporter.processor_files import find_processor_files
from ernie_export.exporter.targets import find_target, make_options
from ernie_export.exporter.targets.target import Target
from ernie_export.graphs.checkpoint.original.files import as_hf_checkpoint
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import ONNX, Precision

if TYPE_CHECKING:
    from ernie_export.exporter.plan.roofline import Estimate

LARGEST_BATCH = 2**16
COUNTED_OPTIONS = ("bakes_projections",)  # of targets, that change a device's memory
COUNTED = ONNX["fp32"]  # parameters are counted in a precision that quantizes nothing
ESTIMATED = ("device_memory", "activations", "engine_memory", "longest_context", "prefill", "decode")
NOTES = (
    "rates: upper bounds (roofline; intermediate results stay on the chip, experts evenly chosen); where the"
    " arithmetic's rate is unknown, decode is bounded by its bytes alone",
    "activations: estimated; weights counted once; no allowance for the engine's own memory",
)
ENGINE_MEMORY = (
    "engine memory: of ONNX Runtime's CUDA provider, 2 GiB of it estimated, and a slot of the KV cache to swap with"
)
DUPLICATES = "duplicate weights: constants of the prefill and of the decode engine, which hold a copy each"
ENGINES = "bundle on disk: without the engines and kernels, a few MiB each, whose sizes are known only once built"


def plan_options() -> list[click.Parameter]:
    """Return the options of ernie-plan that follow from the targets."""
    of_targets = {option.name: option for option in options_of_targets()}
    return [target_option("Export target, as of ernie-export."), *(of_targets[name] for name in COUNTED_OPTIONS)]


@click.command(cls=with_target_options(plan_options), context_settings={"show_default": True})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--device", "device_name", help=f"{', '.join(DEVICES)}, cpu, or a .json file that describes one.")
@click.option("--precision", help="Precisions, with commas between. [default: all of the target]")
@click.option(
    "--context", type=click.IntRange(min=1), help=f"Tokens of a sequence, images included. [default: {DEFAULT_CONTEXT}]"
)
@click.option("--images", default="", help="Images of each sequence, as WIDTHxHEIGHT,... in pixels.")
@click.option("--batch", type=click.IntRange(1, LARGEST_BATCH), default=1, help="Sequences answered together.")
@click.option("--measure", is_flag=True, help="Measure this machine first, for --device cpu now and later.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, in bytes, FLOP and seconds.")
def command(
    checkpoint: Path,
    device_name: str | None,
    target: str,
    precision: str | None,
    context: int | None,
    images: str,
    batch: int,
    measure: bool,
    as_json: bool,
    **target_options: Any,
) -> None:
    """Plan for CHECKPOINT (a folder, or its config.json): sizes, what fits, and the highest speed of a device."""
    try:
        from ernie_export.exporter.plan.roofline import estimate
        from ernie_export.exporter.plan.sizes import EXPORT_MEMORY, Model
    except ModuleNotFoundError as e:
        raise click.UsageError(f"planning needs the extra 'export' (no module {e.name}): pip install .[export]") from e
    if checkpoint.is_file() and checkpoint.name != "config.json":
        raise InvalidFile(checkpoint, "a checkpoint folder or its config.json", "another file")
    folder = checkpoint.parent if checkpoint.name == "config.json" and not checkpoint.is_dir() else checkpoint
    chosen = find_target(target)
    options = make_options(chosen, {name: value for name, value in target_options.items() if value is not None})
    precisions = chosen.precisions if precision is None else read_precisions(chosen, precision)
    config = ErnieConfig.from_hf(folder)
    if measure:
        device_name = CPU if device_name is None else device_name
        measure_here(device_name, rates_file())
    device = find_device(device_name) if device_name is not None else None
    with as_hf_checkpoint(folder, config, require_all=False) as source:
        workload = read_workload(config, source, context, batch, images)
        copied = sum(path.stat().st_size for path in find_processor_files(source, require_all=False))
    model = Model.build(config, COUNTED).model
    estimates = [estimate(model, chosen, planned, workload, device, options) for planned in precisions]
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
        "notes": notes(chosen, estimates),
    }
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        show(plan, device, Console())


def measure_here(device_name: str, path: Path) -> None:
    """Measure this machine behind a progress bar, and keep what was found.

    Raises InvalidValue for another device than this machine, and CannotWrite.
    """
    if device_name != CPU:
        raise InvalidValue("--device", f"{CPU} with --measure", one_line(device_name))
    from ernie_export.exporter.plan.measure import MEASUREMENTS, measure

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring this machine", total=MEASUREMENTS)
        keep_rates(measure(lambda: progress.advance(task)), path)


def notes(target: Target, estimates: Sequence["Estimate"]) -> list[str]:
    """Return what to know about the numbers."""
    rates, counted = NOTES
    if any(estimate.engine_memory for estimate in estimates):
        return [rates, f"{counted.rpartition('; ')[0]}; {ENGINE_MEMORY}"]
    return [*NOTES, DUPLICATES, ENGINES] if target.compiles_engines else [*NOTES]


def read_precisions(target: Target, names: str) -> tuple[Precision, ...]:
    """Return the precisions of `target` that `names` lists, with commas between. Raises InvalidValue for another."""
    known = {precision.name: precision for precision in target.precisions}
    chosen = dict.fromkeys(name.strip() for name in names.split(","))
    for name in chosen:
        if name not in known:
            expected = f"some of {','.join(known)} for --target {target.name}"
            raise InvalidValue("--precision", expected, one_line(name))
    return tuple(known[name] for name in chosen)


def show(plan: dict[str, Any], device: Device | None, console: Console) -> None:
    """Print a plan as a summary and a table with a column for each precision."""
    for line in summary(plan, device):
        console.print(Text(printable(line)), soft_wrap=True)
    console.print(PlanTable(plan).table)
    for note in plan["notes"]:
        console.print(Text(note), soft_wrap=True)


def summary(plan: dict[str, Any], device: Device | None) -> list[str]:
    """Return the lines above the table."""
    active = plan["active_parameters"]
    work = plan["workload"]
    text = f"text {count(active['text'])} ({count(active['text with head'])} with the head)"
    lines = [
        f"{plan['checkpoint']}: {count(plan['parameters']['total'])} parameters",
        f"active per token: {text}, vision {count(active['vision'])}",
        f"workload: batch {work['batch']}, context {work['context']}, of it {work['vision_tokens']} of images",
        f"export: peak memory {plan['export_peak_memory']['bytes'] / 2**20:.0f} MiB (measured, whatever the size)",
    ]
    if device is not None:
        lines.append(f"device: {device.name}, {device.memory / 1e9:.1f} GB ({device.source})")
    return lines


class PlanTable:
    """The table of a plan: a column for each precision."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._estimates = list(plan["precisions"].values())
        large = plan["parameters"]["total"] > 2**28
        self._unit = "GiB" if large else "MiB"
        self._bytes = 2**30 if large else 2**20
        self.table = Table(title=f"sizes in {self._unit}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        self.table.add_column("", no_wrap=True)
        for estimate in self._estimates:
            self.table.add_column(estimate["precision"], justify="right")
        self._add_sizes(plan["parameters"])
        if plan["device"] is not None:
            self._add_row("fits", lambda fits: "yes" if fits else "no", "fits")
            self._add_row("longest context", lambda tokens: str(tokens or "–"), "longest_context")
            self.table.add_section()
        for phase in ("prefill", "decode"):
            self._add_phase(phase)

    def _add_sizes(self, parts: Iterable[str]) -> None:
        for part in parts:
            if part != "total" and any(estimate["weights"][part] for estimate in self._estimates):
                self._add_row(part, self._size, "weights", part)
        self._add_row("KV cache", self._size, "kv_cache")
        self._add_row("activations ≈", self._size, "activations")
        if any(estimate["engine_memory"] for estimate in self._estimates):
            self._add_row("engine memory ≈", self._size, "engine_memory")
        if any(estimate["duplicate_weights"] for estimate in self._estimates):
            self._add_row("duplicate weights", self._size, "duplicate_weights")
        self._add_row("device memory", self._size, "device_memory")
        self._add_row("KV bytes/token", str, "kv_per_token")
        self._add_row("bundle on disk", self._size, "bundle")
        self.table.add_section()

    def _add_phase(self, phase: str) -> None:
        self._add_row(f"{phase} GFLOP", lambda flops: number(flops, 1e-9), phase, "flops")
        self._add_row(f"{phase} {self._unit}", self._size, phase, "bytes")
        self._add_row(f"{phase} ms ≥", lambda seconds: number(seconds, 1e3), phase, "seconds")
        self._add_row(f"{phase} tokens/s ≤", lambda rate: number(rate, 1), phase, "tokens_per_second")

    def _add_row(self, label: str, text: Callable[[Any], str], *keys: str) -> None:
        """Add the value under `keys` of each precision, as `text` writes it."""
        self.table.add_row(label, *(text(reduce(getitem, keys, estimate)) for estimate in self._estimates))

    def _size(self, value: float) -> str:
        size = value / self._bytes
        return f"{size:.2f}" if size < 1000 else f"{size:.0f}"


def count(parameters: float) -> str:
    """Return a count in billions, or in millions below one."""
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def number(value: float | None, factor: float) -> str:
    """Return `value` times `factor`, or a dash where it is unknown."""
    return "–" if value is None else f"{value * factor:,.0f}" if value * factor >= 100 else f"{value * factor:.3g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ernie-plan on `arguments`, by default those of this process, and exit."""
    run(command, arguments)


if __name__ == "__main__":
    main()
