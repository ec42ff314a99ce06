"""Command-line options: those that the answering commands share, and options that a dataclass declares."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import click

from ernie_export.common.command import as_bytes
from ernie_export.runtime.devices import DEVICES

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model

_SAMPLING = (
    click.option("--max-new-tokens", type=int, default=128, help="Longest answer."),
    click.option("--min-new-tokens", type=int, default=0, help="Shortest answer."),
    click.option("--temperature", type=float, default=0.0, help="Above 0: sample; 0: the most likely token each time."),
    click.option("--top-k", type=int, default=0, help="Sample among the K most likely tokens; 0: all."),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        help="Sample among the most likely tokens of this total probability.",
    ),
    click.option("--repetition-penalty", type=float, default=1.0, help="Above 1: avoid tokens that have occurred."),
    click.option("--seed", type=int, default=None, help="Equal seeds sample equal answers."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. May be repeated."),
)
DEVICE_OPTION = click.option("--device", type=click.Choice(DEVICES), default="cpu", help="cuda: the first NVIDIA GPU.")
_MACHINE = (
    DEVICE_OPTION,
    click.option("--kv-cache", type=float, default=4.0, metavar="GIB", help="Most memory for keys and values."),
)


def answer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the fields of `SamplingParams` as options to a command, and `device` and `kv_cache`, which `load` takes."""
    for option in reversed((*_SAMPLING, *_MACHINE)):
        function = option(function)
    return function


@dataclass(frozen=True)
class Flag:
    """The form on the command line of one field of an options dataclass, which annotates the field.

    Attributes:
        help: The help text.
        type: How the text is read; None for the plain type of the default.
        names: The option and its aliases; by default the field's name with dashes.
        metavar: What stands for the value in the help text.
    """

    help: str
    type: click.ParamType | None = None
    names: tuple[str, ...] = ()
    metavar: str | None = None

    def option(self, field: str, default: object) -> click.Option:
        """Return the option that fills `field`. A tuple as default makes an option that may be repeated."""
        names = self.names or (f"--{field.replace('_', '-')}",)
        multiple = isinstance(default, tuple)
        kind = self.type or (None if multiple or default is None else type(default))
        return click.Option(
            [*names, field],
            type=kind,
            default=None if multiple else default,
            multiple=multiple,
            help=self.help,
            metavar=self.metavar,
        )


def click_options(options: type) -> Callable[[click.Command], click.Command]:
    """Return a decorator that gives a command one option for each field of a dataclass annotated with `Flag`."""

    def add_options(command: click.Command) -> click.Command:
        annotations = get_type_hints(options, include_extras=True)
        for field in fields(options):
            flag = next(extra for extra in get_args(annotations[field.name]) if isinstance(extra, Flag))
            command.params.append(flag.option(field.name, field.default))
        return command

    return add_options


def load(bundle: Path, device: str, kv_cache: float) -> "Model":
    """Load a bundle. ONNX Runtime is imported only here, so that --help comes at once."""
    from ernie_export.runtime import load as load_bundle
    from ernie_export.runtime.scheduler_config import SchedulerConfig

    return load_bundle(
        bundle, device=device, scheduler_config=SchedulerConfig(kv_cache_bytes=as_bytes("--kv-cache", kv_cache, 2**30))
    )
