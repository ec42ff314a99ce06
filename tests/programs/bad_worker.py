"""A worker of tools/fuzz whose inputs go wrong in every way; tools/fuzz is on its path."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import kinds
import workers

from ernie_export.common.errors import UserError


def attempt(data: bytes) -> None:
    """Go wrong as the input's number says; 0 and 8 are answered."""
    number = int(data)
    if number == 1:
        raise UserError("an expected line")
    if number == 2:
        raise ZeroDivisionError("a defect")
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 4:
        while True:
            pass
    if number == 5:
        bytearray(8 * 2**30)
    if number == 6:
        os._exit(7)
    if number == 7:
        error = UserError("")
        error.args = ("two\nlines",)
        raise error


class Kind:
    """Inputs that are their own numbers."""

    seeds = [b"0"]
    attempt = staticmethod(attempt)

    def input(self, name: str, number: int) -> bytes:
        return b"%d" % number


class Scratch:
    """The one kind."""

    def __init__(self, folder: Path) -> None:
        pass

    def kinds(self) -> dict[str, Callable[[], Kind]]:
        return {"bad": Kind}


kinds.Scratch = Scratch
workers.worker(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
