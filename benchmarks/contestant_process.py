"""A contestant's process, as compare.py speaks with it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from contestants import THREADS


class Refused(Exception):
    """A contestant can't do what it was asked; the text says why."""


class Worker:
    """A contestant's process; Refused if it can't begin. A spec may name variables of its environment.

    Attributes:
        seconds_to_first_token: From the process's start to the answer to `first`, a prefill.
    """

    def __init__(self, spec: dict[str, Any], packages: Sequence[str], first: dict[str, Any]) -> None:
        made = {name: value for name, value in spec.items() if name != "environment"}
        command = [sys.executable, str(Path(__file__).parent / "contestants.py"), json.dumps(made), *packages]
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)} | spec.get("environment", {})
        started = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.read()
        self.ask(first)
        self.seconds_to_first_token = time.perf_counter() - started

    def read(self) -> dict[str, Any]:
        """The worker's next line; Refused if it is an error, or there is none."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Refused(f"its process ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request there."""
        assert self.process.stdin is not None
        if (code := self.process.poll()) is not None:
            raise Refused(f"its process ended with code {code}")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        """End the process and wait for it."""
        self.process.communicate()
