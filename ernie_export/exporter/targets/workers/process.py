"""A worker: a module of ours run in a process of its own, so that a crash of a library ends that process alone."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux
# To run a module of ours with -m: -P keeps what lies in the current folder from being imported.
PYTHON = (sys.executable, "-P", "-m")
Message = dict[str, Any]
Emit = Callable[[Message], None]


class WorkerCrashed(Exception):
    """A worker ended before it was done; the message says how."""


def call_worker(program: tuple[str, ...], request: Message) -> Iterator[Message]:
    """Run `program` with one JSON object as its standard input; yield the objects that it prints, one a line.

    Raises WorkerCrashed unless it ends with exit code 0. The process is killed when the iteration is abandoned.
    """
    with tempfile.TemporaryFile() as errors:
        pipe = subprocess.PIPE
        with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=errors) as process:
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json.dumps(request).encode())
                process.stdin.close()
                for line in process.stdout:
                    yield json.loads(line)
            except BrokenPipeError:
                pass  # it died before it read the request: the exit code says how
            finally:
                if sys.exc_info()[0] is not None:  # interrupted: nobody needs its messages any more
                    process.kill()
        if process.returncode:
            errors.seek(0)
            raise WorkerCrashed(describe_exit(process.returncode, errors.read().decode(errors="replace")))


def run_worker(work: Callable[[Message, Emit], None]) -> None:
    """Run the worker's side: read one JSON request from standard input and call `work(request, emit)`.

    `emit` prints a message. What libraries print goes to the error output, apart from the messages. The process ends
    with the one that started it, however that ends.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    request = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work(request, lambda message: print(json.dumps(message), file=output, flush=True))


def describe_exit(code: int, errors: str) -> str:
    """Return how a process with this return code and error output came to its end."""
    if code < 0:
        return signal.Signals(-code).name + (" (out of memory?)" if code == -signal.SIGKILL else "")
    lines = errors.strip().splitlines()
    return f"exit code {code}" + (f" ({lines[-1].strip()})" if lines else "")
