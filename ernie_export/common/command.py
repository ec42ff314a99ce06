"""What the command lines of this project share: one line for an error, the exit codes, an option's form, peak memory.

0: done. 2: bad input or bad usage. 130: interrupted with Ctrl-C. 141: the reader of a pipe went away, as for a program
that SIGPIPE ends.
"""

import copy
import io
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ernie_export.common.errors import UserError, one_printable_line
from ernie_export.common.version import __version__

ASPECT = 200  # the image processor takes no longer picture


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn the errors that a user or the machine causes into one line on stderr and an exit code, without a traceback.

    Standard output is flushed within, so that a full disk or a closed pipe is noticed here. Any other exception is a
    defect of this program and passes through.
    """
    try:
        yield
        sys.stdout.flush()
    except UserError as e:
        _fail(str(e))
    except click.ClickException as e:
        _fail(e.format_message())
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except OSError as e:
        _fail(f"{e.filename or 'output'}: {e.strerror or e}")


def run(command: click.Command) -> None:
    """Run `command` on the arguments of this process and exit. Every command has `--version`."""
    command = copy.copy(command)  # which may be run again in this process
    command.params = list(command.params)
    click.version_option(__version__, message="%(prog)s %(version)s")(command)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold what a terminal that is not UTF-8 cannot show
    status = 0
    with user_errors():
        # click's own main() would print several lines for a mistake, and turn a broken pipe into exit code 1.
        try:
            with command.make_context(Path(sys.argv[0]).name, sys.argv[1:]) as context:
                command.invoke(context)
        except click.exceptions.Exit as e:  # --help, --version
            status = e.exit_code
    sys.exit(status)


def picture_sizes(images: str) -> tuple[tuple[int, int], ...]:
    """(width, height) of each picture of an option `--images WIDTHxHEIGHT,...` in pixels; empty text is none.

    Raises UserError on anything else, and on a picture that the image processor would refuse as too long.
    """
    sizes = []
    for text in images.split(",") if images else []:
        found = re.fullmatch(r"\s*([1-9][0-9]{0,5})[xX×]([1-9][0-9]{0,5})\s*", text)
        if found is None:
            raise UserError(f"--images: expected WIDTHxHEIGHT,... in pixels, found {text[:80].strip() or 'nothing'}")
        width, height = int(found[1]), int(found[2])
        if max(width, height) > ASPECT * min(width, height):
            raise UserError(f"--images: expected an aspect ratio of at most {ASPECT}, found {text.strip()}")
        sizes.append((width, height))
    return tuple(sizes)


def as_bytes(option: str, amount: float, unit: int) -> int:
    """`amount` of `unit` bytes each. Raises UserError, naming the option, for what is no size of memory."""
    if not 0 <= amount * unit < 2**62:  # nor is a NaN
        raise UserError(f"{option}: expected a size from 0, found {amount:g}")
    return int(amount * unit)


def check_text(text: str, name: str) -> None:
    """Raises UserError, naming `name`, for bytes that are not text: these come in as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise UserError(f"{name}: expected text in UTF-8, found {text!a}") from e


def peak_memory() -> int:
    """The most memory that this process has held, in bytes.

    ru_maxrss would do elsewhere, but on Linux it begins at what the process that started this one held.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_error(message: str) -> None:
    """One line on stderr, whatever a file name or a library put into the message."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    print("error:", one_printable_line(message), file=sys.stderr)


def _fail(message: str) -> None:
    print_error(message)
    sys.exit(2)


def _discard_output() -> None:
    """Send standard output to nowhere: Python flushes it once more on its way out, and would complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
