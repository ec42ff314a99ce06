"""What a planted fault is, and how a bundle is signed again after it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ernie_export.common.manifest import NAME, Manifest
from ernie_export.exporter.export import list_files


@dataclass(frozen=True)
class Planted:
    """One fault as it was planted.

    Attributes:
        place: Where, for the table.
        sentence: Regular expression that the beginning of the diagnosis has to match for the fault to be named rightly.
        during: Holds while the bundle is verified: what is wrong with the runtime, not with a file.
    """

    place: str
    sentence: str
    during: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: What is wrong.
        kind: "weights", "graphs", "files" or "runtime".
        plant: Changes a bundle by random numbers; returns None where it does not apply to the bundle.
    """

    name: str
    kind: str
    plant: Callable[[Path, np.random.Generator], Planted | None]


def sign(bundle: Path) -> None:
    """Write the manifest anew, so that the files pass for what was exported."""
    manifest = Manifest.read(bundle)
    (bundle / NAME).unlink()
    replace(manifest, files=list_files(bundle, {})).write(bundle)
