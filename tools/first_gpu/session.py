"""A run's steps: each may fail or be skipped without ending the others, and all of them end up in the report."""

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ernie_export.common.gpu import Gpu

ROOT = Path(__file__).resolve().parents[2]
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TAIL = 60  # lines of a step's output in the report


class Skipped(Exception):
    """A step cannot be done here; the message says why."""


class StepFailed(Exception):
    """A step went wrong; the message says how, in one line.

    Attributes:
        data: What was found all the same.
    """

    def __init__(self, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.data = data or {}


@dataclass
class Outcome:
    """How a step ended.

    Attributes:
        name: The step.
        status: PASSED, FAILED or SKIPPED.
        detail: One line: what was found, what went wrong, or why it was skipped.
        seconds: How long it took.
        data: What it found, for JSON.
        output: The end of what its commands printed.
    """

    name: str
    status: str
    detail: str
    seconds: float
    data: dict[str, Any] = field(default_factory=dict)
    output: str = ""


@dataclass(frozen=True)
class Found:
    """What a step that passed returns: one line for people, and the data behind it."""

    detail: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class Session:
    """What the steps share.

    Attributes:
        out: Folder of bundles, logs and the report.
        checkpoint: The checkpoint to export.
        gpu: The first GPU; None without one.
        device_name: A device of ernie-plan, or a file that describes one; None for the measured bandwidth alone.
        timeout: Seconds that one command may take.
        environment: Added to the environment of every command.
        outcomes: How the steps so far ended.
    """

    out: Path
    checkpoint: Path
    gpu: Gpu | None
    device_name: str | None = None
    timeout: float = 1200
    environment: Mapping[str, str] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list)

    def bundle(self, target: str) -> Path:
        """Return the folder of a target's bundle."""
        return self.out / target

    def logs(self, name: str) -> Path:
        """Return a folder of logs, made if it is missing."""
        folder = self.out / "logs" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def log(self, name: str) -> Path:
        """Return the file with what a step's commands print."""
        return self.out / "logs" / f"{name}.log"

    def do(self, name: str, step: Callable[["Session", str], Found]) -> Outcome:
        """Do a step, whatever it raises, and keep how it ended."""
        began = time.monotonic()
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        self.log(name).write_text("")
        data: dict[str, Any] = {}
        try:
            found = step(self, name)
            status, detail, data = PASSED, found.detail, found.data
        except Skipped as e:
            status, detail = SKIPPED, str(e)
        except StepFailed as e:
            status, detail, data = FAILED, str(e), e.data
        except Exception as e:  # a fault of this script's own: the other steps are still worth their time
            status, detail = FAILED, f"{type(e).__name__}: {e}"
            with self.log(name).open("a") as log:
                log.write(traceback.format_exc())
        lines = self.log(name).read_text(errors="replace").splitlines()
        seconds = round(time.monotonic() - began, 2)
        outcome = Outcome(name, status, detail, seconds, data, "\n".join(lines[-TAIL:]))
        self.outcomes.append(outcome)
        return outcome

    def run(self, name: str, program: list[str], environment: Mapping[str, str] | None = None, fine: int = 0) -> str:
        """Run a command; return what it printed to standard output.

        Args:
            name: The step, whose log receives the command and what it printed.
            program: The command.
            environment: Added to this process's environment.
            fine: An exit code besides 0 that is no failure.

        Raises:
            StepFailed: It ended with another exit code or by a signal, or took longer than `timeout`.
        """
        env = os.environ | self.environment | (environment or {})
        with self.log(name).open("a") as log:
            log.write(f"$ {' '.join(program)}\n")
            pipe = subprocess.PIPE
            process = subprocess.Popen(
                program,
                stdout=pipe,
                stderr=pipe,
                text=True,
                errors="replace",
                env=env,
                cwd=ROOT,
                start_new_session=True,
            )
            try:
                output, errors = process.communicate(timeout=self.timeout)
            except BaseException as e:  # a command's own children end with it
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                if isinstance(e, subprocess.TimeoutExpired):
                    raise StepFailed(f"still running after {self.timeout:.0f} s: ended") from e
                raise
            log.write(output + errors)  # what went wrong is said last
        if process.returncode not in (0, fine):
            raise StepFailed(describe_end(process.returncode, self.log(name)))
        return output


def describe_end(code: int, log: Path) -> str:
    """Return how a command ended that failed, with the last line that it printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1]}" if len(lines) > 1 else how
