"""The progress bar of an engine's first calls, on standard error."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class WarmBar:
    """A bar that is shown once an engine says how far it is; most say nothing. Use a `with` block."""

    def __init__(self, console: Console | None = None) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console or Console(stderr=True), transient=True)
        self._task: TaskID | None = None

    def __call__(self, fraction: float) -> None:
        """Show the fraction done, from 0 to 1."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("Choosing kernels", total=1.0)
        self._progress.update(self._task, completed=fraction)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._progress.stop()
