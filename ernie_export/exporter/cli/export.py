"""ernie-export: a checkpoint folder in, a bundle out."""

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from ernie_export.common.command import peak_memory, run
from ernie_export.common.manifest import HARDWARE_COMPATIBILITY, Manifest

if TYPE_CHECKING:
    from ernie_export.exporter.export import Progress

ONNX = ("fp32", "fp16", "bf16", "int8", "int4", "int4-fp16")
# By target, the default first.
PRECISIONS = {"onnx": ONNX, "onnx-portable": ONNX, "trt": ("bf16", "fp16", "int8", "int4", "fp8"), "trt-rtx": ("bf16",)}
CALIBRATED = ("int4", "int4-fp16")
# Options of some targets alone.
OWN = {
    **dict.fromkeys(("max_batch", "max_tokens", "max_image_tokens"), ("trt", "trt-rtx")),
    **dict.fromkeys(("arch", "hardware", "version_compatible", "workspace"), ("trt",)),
    "capabilities": ("trt-rtx",),
}
SPELLED = {"capabilities": "--compute-capability", "hardware": "--hardware-compatible"}


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder of the bundle to write.")
@click.option(
    "--resume",
    "bundle",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="Build the engines that a bundle of --target trt waits for, without its checkpoint.",
)
@click.option(
    "--target",
    type=click.Choice(list(PRECISIONS)),
    default="onnx",
    show_default=True,
    help="onnx: ONNX Runtime's fused kernels. onnx-portable: standard operators only, for any ONNX runtime. "
    "trt: TensorRT, engines built here where it and its GPU are, or later with --resume. "
    "trt-rtx: TensorRT for RTX, engines built here without a GPU.",
)
@click.option(
    "--precision",
    type=click.Choice(sorted({name for names in PRECISIONS.values() for name in names})),
    help="Of weights and activations.  [default: fp32; bf16 for trt and trt-rtx]",
)
@click.option("--max-batch", type=click.IntRange(1, 256), help="trt, trt-rtx: rows of one decode step.  [default: 1]")
@click.option(
    "--max-tokens", type=click.IntRange(1), help="trt, trt-rtx: tokens of a conversation.  [default: up to 8192]"
)
@click.option(
    "--max-image-tokens",
    type=click.IntRange(1),
    help="trt, trt-rtx: decoder tokens of one picture.  [default: the largest that the image processor makes]",
)
@click.option("--arch", metavar="LIST", help="trt: kernels for these, as sm80,sm90.  [default: this GPU, or all]")
@click.option(
    "--hardware-compatible",
    "hardware",
    type=click.Choice(HARDWARE_COMPATIBILITY[1:]),
    help="trt: engines for every GPU of the same compute capability, or for any from Ampere on.",
)
@click.option(
    "--version-compatible", is_flag=True, default=None, help="trt: engines for later versions of TensorRT, too."
)
@click.option("--workspace", metavar="GIB", type=click.IntRange(1, 1024), help="trt: memory that a layer may work in.")
@click.option(
    "--compute-capability", "capabilities", metavar="LIST", help="trt-rtx: cards.  [default: 8.0,8.6,8.9,12.0]"
)
@click.option(
    "--layout",
    type=click.Choice(["bundle", "triton"]),
    default="bundle",
    show_default=True,
    help="triton: a model repository of Triton Inference Server, with the bundle in it.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="int4: conversations, as ernie-run --messages takes them, for whose inputs the weights are rounded.",
)
@click.pass_context
def command(
    context: click.Context,
    checkpoint: Path | None,
    output: Path | None,
    bundle: Path | None,
    target: str,
    precision: str | None,
    layout: str,
    calibrate: Path | None,
    **limits: Any,
) -> None:
    """Export the Hugging Face CHECKPOINT folder to a bundle that ernie-run answers from."""
    given = {name: value for name, value in limits.items() if value is not None}
    if bundle is not None:
        others = [name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE]
        if others := [name for name in others if name != "bundle"]:
            raise click.UsageError(f"--resume: expected BUNDLE alone, found {spelled(others[0])} with it")
    elif checkpoint is None or output is None:
        missing = "CHECKPOINT" if checkpoint is None else "--output"
        raise click.UsageError(f"expected CHECKPOINT and --output, or --resume BUNDLE; found no {missing}")
    for name in given:
        if target not in OWN[name]:
            expected = " or ".join(OWN[name])
            raise click.UsageError(f"{spelled(name)}: expected --target {expected} with it, found --target {target}")
    precision = precision or PRECISIONS[target][0]
    if precision not in PRECISIONS[target]:
        expected = " or ".join(PRECISIONS[target])
        raise click.UsageError(f"--precision: expected {expected} for --target {target}, found {precision}")
    if calibrate is not None and precision not in CALIBRATED:
        expected = " or ".join(CALIBRATED)
        raise click.UsageError(f"--calibrate: expected --precision {expected} with it, found {precision}")
    try:
        from ernie_export.exporter.build_engines import resume
        from ernie_export.exporter.export import LAYOUTS, LIMITS, export
    except ModuleNotFoundError as e:
        raise click.UsageError(f"exporting needs the extra 'export' (no module {e.name}): pip install .[export]") from e
    console = Console(stderr=True)
    started = time.monotonic()
    reasons: list[str] = []
    with reporting(console, reasons.append) as progress:
        if bundle is not None:
            manifest = resume(bundle, progress)
        else:
            assert checkpoint is not None and output is not None  # checked above
            engine_limits = LIMITS[target](**given) if target in LIMITS else None
            manifest = export(checkpoint, output, target, precision, progress, engine_limits, calibrate, layout)
    seconds, folder = time.monotonic() - started, bundle or output
    assert folder is not None  # one of them was given
    plain = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    plain(f"{folder} ({manifest.target}, {manifest.precision})")
    if (found := manifest.calibration) is not None:
        console.print(f"calibrated on {found.conversations} conversations of {found.tokens} tokens", highlight=False)
    console.print(summary(manifest, f"{seconds:.1f} s, peak memory {peak_memory() / 2**20:.0f} MiB"))
    if manifest.needs_engine_build:
        plain(f"engines are not built yet: {reasons[0]}")
        inner = shlex.quote(str(folder / LAYOUTS[layout]))
        plain(f"on the machine that has the GPU and TensorRT: ernie-export --resume {inner}")


def spelled(parameter: str) -> str:
    """A parameter of `command` as a user types it."""
    return "CHECKPOINT" if parameter == "checkpoint" else SPELLED.get(parameter, f"--{parameter.replace('_', '-')}")


@contextmanager
def reporting(console: Console, waiting: Callable[[str], None]) -> Iterator["Progress"]:
    """Progress bars of an export."""
    from ernie_export.exporter.export import Progress

    columns = TextColumn("{task.description}"), BarColumn(), Amount()
    # Without a terminal stderr holds the summary, or the one line of an error, and nothing else.
    with Bars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:

        def stage(name: str, total: int) -> None:
            bars.add_task(name, total=total or None, visible=total > 0)
            if not total and console.is_terminal:
                bars.console.print(name)

        def advance(count: int) -> None:
            bars.advance(bars.task_ids[-1], count)

        def share(name: str, done: float) -> None:
            if not bars.tasks or bars.tasks[-1].description != name:
                bars.add_task(name, total=1.0)
            bars.update(bars.tasks[-1].id, completed=done)

        yield Progress(stage, advance, share, waiting)


class Amount(ProgressColumn):
    """Bytes and their speed; of a task without a measure in bytes the share that is done."""

    size, speed = DownloadColumn(), TransferSpeedColumn()

    def render(self, task: Task) -> Text:
        if task.total == 1.0:
            return Text(f"{task.percentage:.0f} %")
        return Text(" ").join([self.size.render(task), self.speed.render(task)])


def summary(manifest: Manifest, caption: str) -> Table:
    """Files and sizes."""
    total = sum(entry.bytes for entry in manifest.files.values())
    table = Table(caption=caption, caption_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("MiB", justify="right")
    for name, entry in manifest.files.items():
        table.add_row(Text(name), f"{entry.bytes / 2**20:.2f}")
    table.add_section()
    table.add_row(f"{len(manifest.files)} files", f"{total / 2**20:.2f}")
    return table


def main() -> None:
    """Entry point of ernie-export."""
    run(command)


if __name__ == "__main__":
    main()
