"""Where an export reports how far it is, and what it leaves aside."""

from collections.abc import Sequence
from pathlib import Path


class Progress:
    """What an export calls as it goes on. This one ignores every call; a subclass overrides what it shows."""

    def begin(self, name: str, total_bytes: int = 0) -> None:
        """Begin the phase `name`, which writes `total_bytes`; 0 if it is not measured in bytes."""

    def advance(self, nbytes: int) -> None:
        """Add `nbytes` to what the phase has written."""

    def update(self, name: str, fraction: float) -> None:
        """Set the fraction of the phase `name` that is done, from 0 to 1; the first call begins the phase."""

    def on_engines_deferred(self, reason: str) -> None:
        """Take note that engines can't be built on this machine, and why: `ernie-export --resume` builds them."""

    def on_ignored(self, ignored: Sequence[tuple[Path, str]]) -> None:
        """Take note of file and name of each key and tensor of the checkpoint that changes nothing."""


SILENT = Progress()
