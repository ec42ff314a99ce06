"""Options that the commands which answer share: sampling, device, memory; and loading a bundle as they say."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ernie_export.common.command import as_bytes
from ernie_export.runtime.devices import DEVICES

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model

_SAMPLING = (
    click.option("--max-new-tokens", type=int, default=128, help="Longest answer."),
    click.option("--min-new-tokens", type=int, default=0, help="Shortest answer."),
    click.option("--temperature", type=float, default=0.0, help="Above 0: sample; 0: the likeliest token each time."),
    click.option("--top-k", type=int, default=0, help="Sample among the K likeliest tokens; 0: all."),
    click.option("--top-p", type=float, default=1.0, help="Sample among the likeliest tokens that make up this share."),
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
    """Give a command the fields of `SamplingParams` as options, and `device` and `kv_cache`, which `load` takes."""
    for option in reversed((*_SAMPLING, *_MACHINE)):
        function = option(function)
    return function


def load(bundle: Path, device: str, kv_cache: float) -> "Model":
    """Load a bundle. The pipeline, and with it ONNX Runtime, is imported only here, so that --help comes at once."""
    from ernie_export.runtime import load as load_bundle
    from ernie_export.runtime.scheduler import SchedulerConfig

    return load_bundle(
        bundle, device=device, scheduler_config=SchedulerConfig(kv_cache_bytes=as_bytes("--kv-cache", kv_cache, 2**30))
    )
