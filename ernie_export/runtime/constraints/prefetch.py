"""Masks computed while the model computes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from ernie_export.runtime.constraints import Constraint


class MaskPrefetcher:
    """A thread that computes the next masks of a batch, started at the first that there is to compute."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None

    @contextmanager
    def ahead(self, constraints: Sequence[Constraint]) -> Iterator[None]:
        """Compute the next masks of `constraints` during the block, and wait for them at its end."""
        if not constraints:
            yield
            return
        self._thread = self._thread or ThreadPoolExecutor(1, "masks")
        done = self._thread.submit(_prepare, constraints)
        try:
            yield
        finally:
            done.result()


def _prepare(constraints: Sequence[Constraint]) -> None:
    for constraint in constraints:
        constraint.prepare()
