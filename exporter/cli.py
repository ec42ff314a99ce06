"""ernie-export: a checkpoint folder in, a bundle out."""

import time
from pathlib import Path
from typing import Any

import click
from ernie_export.graphs.manifest import Manifest
from ernie_export.runtime.command import peak_memory, run
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

ONNX = ("fp32", "fp16", "bf16", "int8", "int4")
PRECISIONS = {"onnx": ONNX, "onnx-portable": ONNX, "trt-rtx": ("bf16",)}  # by target, the default first


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle to write.")
@click.option(
    "--target",
    type=click.Choice(list(PRECISIONS)),
    default="onnx",
    show_default=True,
    help="onnx: ONNX Runtime's fused kernels. onnx-portable: standard operators only, for any ONNX runtime. "
    "trt-rtx: TensorRT for RTX, engines built here without a GPU.",
)
@click.option(
    "--precision",
    type=click.Choice(sorted({name for names in PRECISIONS.values() for name in names})),
    help="Of weights and activations.  [default: fp32; bf16 for trt-rtx]",
)
@click.option(
    "--layout",
    type=click.Choice(["bundle", "triton"]),
    default="bundle",
    show_default=True,
    help="triton: a model repository of Triton Inference Server, with the bundle in it.",
)
@click.option(
    "--compute-capability", "capabilities", metavar="LIST", help="trt-rtx: cards.  [default: 8.0,8.6,8.9,12.0]"
)
@click.option("--max-batch", type=click.IntRange(1, 256), help="trt-rtx: rows of one decode step.  [default: 1]")
@click.option("--max-tokens", type=click.IntRange(1), help="trt-rtx: tokens of a conversation.  [default: up to 8192]")
@click.option(
    "--max-image-tokens",
    type=click.IntRange(1),
    help="trt-rtx: decoder tokens of one picture.  [default: the largest that the image processor makes]",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="int4: conversations, as ernie-run --messages takes them, for whose inputs the weights are rounded.",
)
def command(
    checkpoint: Path,
    output: Path,
    target: str,
    precision: str | None,
    layout: str,
    calibrate: Path | None,
    **limits: Any,
) -> None:
    """Export the Hugging Face CHECKPOINT folder to a bundle that ernie-run answers from."""
    given = {name: value for name, value in limits.items() if value is not None}
    if given and target != "trt-rtx":
        option = {"capabilities": "compute-capability"}.get(first := next(iter(given)), first).replace("_", "-")
        raise click.UsageError(f"--{option}: expected --target trt-rtx with it, found --target {target}")
    precision = precision or PRECISIONS[target][0]
    if precision not in PRECISIONS[target]:
        expected = " or ".join(PRECISIONS[target])
        raise click.UsageError(f"--precision: expected {expected} for --target {target}, found {precision}")
    if calibrate is not None and precision != "int4":
        raise click.UsageError(f"--calibrate: expected --precision int4 with it, found {precision}")
    try:
        from ernie_export.exporter.export import Progress, export
        from ernie_export.exporter.targets.rtx import Limits
    except ModuleNotFoundError as e:
        raise click.UsageError(f"exporting needs the extra 'export' (no module {e.name}): pip install .[export]") from e
    console = Console(stderr=True)
    started = time.monotonic()
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
            bars.update(bars.task_ids[-1], completed=done)

        progress = Progress(stage, advance, share)
        manifest = export(checkpoint, output, target, precision, progress, Limits(**given), calibrate, layout)
    seconds = time.monotonic() - started
    console.print(f"{output} ({manifest.target}, {manifest.precision})", soft_wrap=True, markup=False, highlight=False)
    if (found := manifest.calibration) is not None:
        console.print(f"calibrated on {found.conversations} conversations of {found.tokens} tokens", highlight=False)
    console.print(summary(manifest, f"{seconds:.1f} s, peak memory {peak_memory() / 2**20:.0f} MiB"))


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
