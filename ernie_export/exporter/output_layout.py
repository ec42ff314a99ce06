"""Where in the output of an export the bundle lies, and what lies around it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ernie_export.exporter import triton_repository
from ernie_export.exporter.replace import WHOLE_OUTPUT


@dataclass(frozen=True)
class OutputLayout:
    """A layout of the output folder.

    Attributes:
        bundle: Where in the output the bundle lies.
        write_around: Writes what else the output holds; takes the bundle's folder.
    """

    bundle: Path
    write_around: Callable[[Path], None]


def write_nothing(bundle: Path) -> None:
    """Write nothing around `bundle`: it is the whole output."""


LAYOUTS = {
    "bundle": OutputLayout(WHOLE_OUTPUT, write_nothing),
    "triton": OutputLayout(triton_repository.BUNDLE, triton_repository.write_model),
}
