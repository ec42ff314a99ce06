"""ernie-export: export a checkpoint to a bundle."""

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

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
from ernie_export.common.errors import printable
from ernie_export.common.image_sizes import max_image_pixels_option
from ernie_export.common.manifest import Manifest
from ernie_export.exporter.cli.target_options import (
    describe_targets,
    options_of_targets,
    precision_option,
    target_option,
    with_target_options,
)
from ernie_export.exporter.output_layout import LAYOUTS
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets import check_calibration, find_target, make_options
from ernie_export.exporter.targets.options import TargetOptions
from ernie_export.exporter.targets.target import Target
from ernie_export.graphs.precision import Precision

MOST_NAMED = 12  # keys or tensors of one file in the summary


def export_options() -> list[click.Parameter]:
    """Return the options of ernie-export that follow from the targets."""
    return [target_option(describe_targets()), precision_option(), *options_of_targets()]


@click.command(cls=with_target_options(export_options))
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
    "--layout",
    type=click.Choice(list(LAYOUTS)),
    default="bundle",
    show_default=True,
    help="triton: a model repository of Triton Inference Server, with the bundle in it.",
)
@click.option(
    "--calibrate",
    "conversations",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="int4: conversations, as ernie-run --messages takes them, for whose inputs the weights are rounded.",
)
@max_image_pixels_option("Of an image of --calibrate, or of a video's frame.")
@click.pass_context
def command(
    context: click.Context,
    /,
    checkpoint: Path | None,
    output: Path | None,
    bundle: Path | None,
    target: str,
    precision: str | None,
    layout: str,
    conversations: Path | None,
    max_image_pixels: int,
    **target_options: Any,
) -> None:
    """Export the Hugging Face CHECKPOINT folder to a bundle that ernie-run answers from."""
    work: Callable[[Progress], Manifest]
    if bundle is not None:
        refuse_other_parameters(context, "bundle")
        folder = location = bundle
        work = prepare_resume(bundle)
    elif checkpoint is None or output is None:
        missing = "CHECKPOINT" if checkpoint is None else "--output"
        raise click.UsageError(f"expected CHECKPOINT and --output, or --resume BUNDLE; found no {missing}")
    else:
        folder = output
        location = output / LAYOUTS[layout].bundle
        chosen = find_target(target)
        options = make_options(chosen, {name: value for name, value in target_options.items() if value is not None})
        work = prepare_export(
            checkpoint,
            output,
            chosen,
            chosen.precision(precision),
            options=options,
            conversations=conversations,
            max_image_pixels=max_image_pixels,
            layout=layout,
        )
    console = Console(stderr=True)
    started = time.monotonic()
    with progress_bars(console) as progress:
        manifest = work(progress)
    seconds = time.monotonic() - started
    print_line = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    print_line(printable(f"{folder} ({manifest.target}, {manifest.precision})"))
    if (calibration := manifest.calibration) is not None:
        counts = f"{calibration.conversations} conversations of {calibration.tokens} tokens"
        console.print(f"calibrated on {counts}", highlight=False)
    console.print(summary(manifest, f"{seconds:.1f} s, peak memory {peak_memory() / 2**20:.0f} MiB"))
    if progress.ignored:
        print_line(f"ignored: {list_ignored(progress.ignored)}")
    if manifest.needs_engine_build:
        print_line(f"engines are not built yet: {progress.deferred_because}")
        quoted = printable(shlex.quote(str(location)))
        print_line(f"on the machine that has the GPU and TensorRT: ernie-export --resume {quoted}")


def prepare_resume(bundle: Path) -> Callable[[Progress], Manifest]:
    """Return what builds the engines of `bundle`. Raises UsageError without the extra that it needs."""
    with naming_the_extra():
        from ernie_export.exporter.build_engines import resume
    return partial(resume, bundle)


def prepare_export(
    checkpoint: Path,
    output: Path,
    target: Target,
    precision: Precision,
    *,
    options: TargetOptions,
    conversations: Path | None,
    max_image_pixels: int,
    layout: str,
) -> Callable[[Progress], Manifest]:
    """Return what exports.

    Raises UsageError without the extra that it needs, InvalidValue for a calibration that the precision does not take.
    """
    if conversations is not None:
        check_calibration(target, precision)
    with naming_the_extra():
        from ernie_export.exporter.export import export

    def work(progress: Progress) -> Manifest:
        return export(
            checkpoint,
            output,
            target,
            precision,
            progress,
            options=options,
            conversations=conversations,
            max_image_pixels=max_image_pixels,
            layout=layout,
        )

    return work


@contextmanager
def naming_the_extra() -> Iterator[None]:
    """Turn a missing module into a UsageError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as e:
        raise click.UsageError(f"exporting needs the extra 'export' (no module {e.name}): pip install .[export]") from e


def refuse_other_parameters(context: click.Context, alone: str) -> None:
    """Raise UsageError if the user gave another parameter than `alone`."""
    for parameter in context.command.get_params(context):
        source = context.get_parameter_source(parameter.name or "")
        if source == ParameterSource.COMMANDLINE and parameter.name != alone:
            typed = "CHECKPOINT" if isinstance(parameter, click.Argument) else max(parameter.opts, key=len)
            raise click.UsageError(f"--resume: expected BUNDLE alone, found {typed} with it")


class BarProgress(Progress):
    """Shows an export's progress as bars on a terminal, and keeps what the summary says of it."""

    def __init__(self, bars: Bars, console: Console) -> None:
        self.bars = bars
        self.console = console
        self.deferred_because = ""
        self.ignored: Sequence[tuple[Path, str]] = ()

    def begin(self, name: str, total_bytes: int = 0) -> None:
        """Add a bar, or print the name of a phase that is not measured."""
        self.bars.add_task(name, total=total_bytes or None, visible=total_bytes > 0)
        if not total_bytes and self.console.is_terminal:
            self.bars.console.print(name)

    def advance(self, nbytes: int) -> None:
        """Advance the last bar."""
        self.bars.advance(self.bars.task_ids[-1], nbytes)

    def update(self, name: str, fraction: float) -> None:
        """Set the last bar, or add one for another phase."""
        if not self.bars.tasks or self.bars.tasks[-1].description != name:
            self.bars.add_task(name, total=1.0)
        self.bars.update(self.bars.tasks[-1].id, completed=fraction)

    def on_engines_deferred(self, reason: str) -> None:
        """Keep the reason for the summary."""
        self.deferred_because = reason

    def on_ignored(self, ignored: Sequence[tuple[Path, str]]) -> None:
        """Keep for the summary what changes nothing."""
        self.ignored = ignored


@contextmanager
def progress_bars(console: Console) -> Iterator[BarProgress]:
    """Yield a progress whose bars are shown until the block ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), Amount(), TimeRemainingColumn())
    # Without a terminal stderr holds the summary, or the one line of an error, and nothing else.
    with Bars(*columns, console=console, disable=not console.is_terminal) as bars:
        yield BarProgress(bars, console)


class Amount(ProgressColumn):
    """Shows bytes and their speed, or the percentage of a task that is not measured in bytes."""

    size = DownloadColumn()
    speed = TransferSpeedColumn()

    def render(self, task: Task) -> Text:
        """Return the percentage of a task that is counted to 1, else its size and speed."""
        if task.total == 1.0:
            return Text(f"{task.percentage:.0f} %")
        return Text(" ").join([self.size.render(task), self.speed.render(task)])


def summary(manifest: Manifest, caption: str) -> Table:
    """Return a table of the bundle's files and their sizes."""
    total = sum(entry.bytes for entry in manifest.files.values())
    table = Table(caption=caption, caption_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("MiB", justify="right")
    for name, entry in manifest.files.items():
        table.add_row(Text(name), f"{entry.bytes / 2**20:.2f}")
    table.add_section()
    table.add_row(f"{len(manifest.files)} files", f"{total / 2**20:.2f}")
    return table


def list_ignored(ignored: Sequence[tuple[Path, str]]) -> str:
    """Return what changes nothing in one line, by the files that have it; of many keys or tensors the first few."""
    files: dict[str, list[str]] = {}
    for path, name in ignored:
        files.setdefault(path.name, []).append(name)
    parts = []
    for file, names in files.items():
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        parts.append(f"{file} ({', '.join(names[:MOST_NAMED])}{more})" if names != [""] else file)
    return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ernie-export on `arguments`, by default those of this process, and exit."""
    run(command, arguments)


if __name__ == "__main__":
    main()
