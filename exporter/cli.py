"""ernie-export: a checkpoint folder in, a bundle out."""

import time
from pathlib import Path

import click
from ernie_export.graphs.manifest import Manifest
from ernie_export.runtime.command import peak_memory, run
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle to write.")
@click.option(
    "--target",
    type=click.Choice(["onnx", "onnx-portable"]),
    default="onnx",
    show_default=True,
    help="onnx: ONNX Runtime's fused kernels. onnx-portable: standard operators only, for any ONNX runtime.",
)
@click.option("--precision", type=click.Choice(["fp32"]), default="fp32", show_default=True)
def command(checkpoint: Path, output: Path, target: str, precision: str) -> None:
    """Export the Hugging Face CHECKPOINT folder to a bundle that ernie-run answers from."""
    try:
        from ernie_export.exporter.export import Progress, export
    except ModuleNotFoundError as e:
        raise click.UsageError(f"exporting needs the extra 'export' (no module {e.name}): pip install .[export]") from e
    console = Console(stderr=True)
    started = time.monotonic()
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    # Without a terminal stderr holds the summary, or the one line of an error, and nothing else.
    with Bars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:

        def stage(name: str, total: int) -> None:
            bars.add_task(name, total=total or None, visible=total > 0)
            if not total and console.is_terminal:
                bars.console.print(name)

        def advance(count: int) -> None:
            bars.advance(bars.task_ids[-1], count)

        manifest = export(checkpoint, output, target, precision, Progress(stage, advance))
    seconds = time.monotonic() - started
    console.print(f"{output} ({manifest.target}, {manifest.precision})", soft_wrap=True, markup=False, highlight=False)
    console.print(summary(manifest, f"{seconds:.1f} s, peak memory {peak_memory() / 2**20:.0f} MiB"))


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
