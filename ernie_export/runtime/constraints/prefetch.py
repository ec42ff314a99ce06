"""Masks computed while the model computes."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from llguidance import LLExecutor

from ernie_export.runtime.constraints.grammar import GrammarState, compute_masks


class MaskPrefetcher:
    """The threads that compute the next masks of a batch, started at the first that there is to compute.

    They are at most four fifths of the processor's, and 32: llguidance's own bound.
    """

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._executor: LLExecutor | None = None

    @contextmanager
    def ahead(self, states: Sequence[GrammarState]) -> Iterator[None]:
        """Compute the next masks of `states` during the block, and wait for them at its end."""
        if not states:
            yield
            return
        self._executor = self._executor or LLExecutor()
        self._thread = self._thread or ThreadPoolExecutor(1, "masks")
        done = self._thread.submit(compute_masks, states, self._executor)
        try:
            yield
        finally:
            done.result()
