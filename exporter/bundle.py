"""Putting a bundle in its place: written beside it under another name, then exchanged in one step.

A bundle that is being written is a hidden, locked sibling, `.NAME.partial-PID`, and has no manifest until everything
else is on the disk. Killed at any moment, an export leaves the old bundle as it was and at most a partial sibling,
which the next export of the same name removes.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import NAME as MANIFEST

RENAME_EXCHANGE = 2
AT_FDCWD = -100


@contextmanager
def writing_bundle(output: Path) -> Iterator[Path]:
    """A folder to write the bundle into; it takes the place of `output` when the block ends without an error.

    UserError if `output` exists and is not a bundle, or its parent can't be written to.
    """
    output = Path(os.path.abspath(output))
    check_replaceable(output)
    remove_stale(output)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
    except OSError as e:
        raise UserError(f"{output}: expected a place to write to, found: {e.strerror} ({e.filename})") from e
    try:
        with locked(partial):
            yield partial
        sync_folder(partial)
        put_in_place(partial, output)
        sync_folder(output.parent)
    except OSError as e:
        raise UserError(f"{output}: expected room and leave to write a bundle, found: {e.strerror}") from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(output: Path) -> None:
    """Refuse to replace anything but a bundle or an empty folder."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UserError(f"{output}: expected a folder or nothing, found something else")
    if output.is_dir() and not (output / MANIFEST).is_file() and any(output.iterdir()):
        raise UserError(f"{output}: expected a bundle to replace or an empty folder, found other files (left alone)")


def remove_stale(output: Path) -> None:
    """Remove partial bundles that no living export holds a lock on."""
    for partial in output.parent.glob(f".{output.name}.partial-*"):
        with locked(partial) as free:
            if free:
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold an advisory lock on a folder, if it can be had at once; the system drops it when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def put_in_place(partial: Path, output: Path) -> None:
    """Rename `partial` to `output`; where a bundle stands there, exchange the two in one step.

    renameat2's RENAME_EXCHANGE swaps both names atomically (Linux). Where the file system has no such call the old
    bundle is moved aside first, and moved back if the second rename fails.
    """
    if not output.exists():
        partial.rename(output)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(partial), os.fsencode(output)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(output))
    aside = output.with_name(f".{output.name}.old-{os.getpid()}")
    output.rename(aside)
    try:
        partial.rename(output)
    except OSError:
        aside.rename(output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk, so that a rename after it can't overtake them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
