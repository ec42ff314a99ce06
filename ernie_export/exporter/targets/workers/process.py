"""A program of ours in a process of its own: a crash of a library there ends that process alone."""

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
Tell = Callable[[dict[str, Any]], None]


class Crashed(Exception):
    """A process ended before it was done; the message says how."""


def answers(program: tuple[str, ...], request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Run `program` on one JSON object, its standard input; yields those that it prints, one a line.

    Raises Crashed unless it ends with exit code 0. The process is killed when its answers are no longer asked for.
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
                if sys.exc_info()[0] is not None:  # interrupted: what it does is of no use any more
                    process.kill()
        if process.returncode:
            errors.seek(0)
            raise Crashed(how(process.returncode, errors.read().decode(errors="replace")))


def serve(work: Callable[[dict[str, Any], Tell], None]) -> None:
    """Be such a process: `work` is given the request, and a function that prints an answer.

    What libraries print goes to the error output, where it does not mix with the answers. The process ends with the
    one that started it, however that ends.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    request, output = json.load(sys.stdin), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work(request, lambda answer: print(json.dumps(answer), file=output, flush=True))


def how(code: int, errors: str) -> str:
    """How a process with this return code and error output came to its end."""
    if code < 0:
        return signal.Signals(-code).name + (" (out of memory?)" if code == -signal.SIGKILL else "")
    lines = errors.strip().splitlines()
    return f"exit code {code}" + (f" ({lines[-1].strip()})" if lines else "")
