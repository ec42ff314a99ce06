"""The objects that TensorRT and TensorRT for RTX call back while they build.

Each library takes only subclasses of its own base classes, so the classes are made for the library that is loaded.
"""

import threading
from pathlib import Path
from typing import Any

from ernie_export.exporter.targets.workers.process import Emit

STEP = 0.01  # fraction of a build between two progress messages


def make_log(trt: Any, path: str | None = None) -> Any:
    """Return a logger for the library `trt` that keeps its error messages, and writes all messages to a file."""
    file = Path(path).open("w", errors="replace") if path is not None else None

    class Log(trt.ILogger):  # type: ignore[misc]  # a base class that only the loaded library has
        """Keeps the errors that the library reports, in order."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if file is not None:
                print(f"[{severity.name}] {message}", file=file, flush=True)  # a crash may follow
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def make_monitor(trt: Any, emit: Emit) -> Any:
    """Return a progress monitor for the library `trt` that emits the fraction done."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a base class that only the loaded library has
        """Emits the fraction of the build that is done: a phase within another one counts for one step of it.

        The library calls it from several threads.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.phases: dict[str, list[int]] = {}  # steps done, steps in all; outermost first
            self.last_emitted = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.phases[phase_name] = [0, max(num_steps, 1)]

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                self.phases[phase_name][0] = step + 1
                fraction = fraction_done(self.phases)
                if fraction > self.last_emitted + STEP:
                    self.last_emitted = fraction
                    emit({"progress": min(fraction, 1.0)})
            return True

    return Monitor()


def fraction_done(phases: dict[str, list[int]]) -> float:
    """Return the fraction of nested phases, outermost first, that is done."""
    fraction = 0.0
    width = 1.0
    for done, steps in phases.values():
        fraction += width * done / steps
        width /= steps
    return fraction
