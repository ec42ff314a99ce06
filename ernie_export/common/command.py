"""Run a command line: errors as one line on stderr, exit codes, sizes in bytes, peak memory.

Exit codes: 0 for success, 2 for bad input or usage, 130 after Ctrl-C, 141 when the reader of a pipe has gone, as for a
program that SIGPIPE ends.
"""

import copy
import io
import os
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from ernie_export.common.errors import InvalidValue, UserError, one_printable_line
from ernie_export.common.version import __version__


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


def run(command: click.Command, arguments: Sequence[str] | None = None, context_object: object = None) -> None:
    """Run a command and exit. Every command has `--version`.

    Args:
        command: The command.
        arguments: Its command line; by default that of this process.
        context_object: What the command finds as the `obj` of its context.
    """
    command = copy.copy(command)  # which may be run again in this process
    command.params = list(command.params)
    click.version_option(__version__, message="%(prog)s %(version)s")(command)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an answer may hold what a terminal that is not UTF-8 cannot show
    args = list(sys.argv[1:] if arguments is None else arguments)
    status = 0
    with user_errors():
        # click's own main() would print several lines for a mistake, and turn a broken pipe into exit code 1.
        try:
            with command.make_context(Path(sys.argv[0]).name, args, obj=context_object) as context:
                command.invoke(context)
        except click.exceptions.Exit as e:  # --help, --version
            status = e.exit_code
    sys.exit(status)


def as_bytes(option: str, amount: float, unit: int) -> int:
    """Return `amount` times `unit` bytes. Raises InvalidValue, naming the option, for what is no size of memory."""
    if not 0 <= amount * unit < 2**62:  # NaN fails, too
        raise InvalidValue(option, "a size from 0", f"{amount:g}")
    return int(amount * unit)


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes.

    On Linux, ru_maxrss begins at what the parent process held; other systems report the process's own.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def print_error(message: str) -> None:
    """Print one line on stderr, whatever a file name or a library put into the message."""
    try:
        sys.stdout.flush()
    except OSError:
        _discard_output()
    print("error:", one_printable_line(message), file=sys.stderr)


def _fail(message: str) -> None:
    print_error(message)
    sys.exit(2)


def _discard_output() -> None:
    """Redirect standard output to the null device: Python flushes it once more at exit, and would report an error."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, sys.stdout.fileno())
    os.close(null_device)
