"""Putting a bundle in its place: written beside it under another name, then exchanged in one step.

A bundle that is being written is a hidden, locked sibling, `.NAME.partial-PID`, and has no manifest until everything
else is in it. Killed at any moment, an export leaves the old bundle as it was and at most a partial sibling, which the
next export of the same name removes. Exports of the same name at the same time each write their own sibling; the last
one to end stays.
"""

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import NAME as MANIFEST

RENAME_EXCHANGE = 2
AT_FDCWD = -100
HERE = Path()


@contextmanager
def writing_bundle(output: Path, place: Path = HERE) -> Iterator[Path]:
    """A folder to write the bundle into; it takes the place of `output` when the block ends without an error.

    `place`: where in `output` the bundle lies, when there is more to it: the folder is then that of the bundle alone.
    UserError if `output` exists and has no bundle there, or its parent can't be written to.
    """
    output = Path(os.path.abspath(output))
    check_replaceable(output, place)
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(output, place)
        lock = make_locked(partial)
    except OSError as e:
        raise UserError(f"{output}: expected a place to write to, found: {e.strerror} ({e.filename})") from e
    try:
        (partial / place).mkdir(parents=True, exist_ok=True)
        yield partial / place
        for path in (*partial.rglob("*"), partial):
            sync(path)
        check_replaceable(output, place)
        put_in_place(partial, output, place)
        sync(output.parent)
    except OSError as e:
        raise UserError(f"{output}: expected room and leave to write a bundle, found: {e.strerror}") from e
    finally:
        remove_bundle(partial, place)
        os.close(lock)


def check_replaceable(output: Path, place: Path) -> None:
    """Refuse to replace anything but an empty folder or one with a bundle at `place`."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise UserError(f"{output}: expected a folder or nothing, found something else")
    if output.is_dir() and not (output / place / MANIFEST).is_file() and any(output.iterdir()):
        expected = "a bundle" if place == HERE else f"a folder with a bundle at {place}"
        raise UserError(f"{output}: expected {expected} to replace or an empty folder, found other files (left alone)")


def remove_stale(output: Path, place: Path) -> None:
    """Remove partial bundles that no living export holds a lock on."""
    for partial in list(output.parent.iterdir()):
        if not partial.name.startswith(f".{output.name}.partial-"):
            continue
        try:
            descriptor = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # its export has just ended
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_bundle(partial, place)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def make_locked(folder: Path) -> int:
    """Make `folder` and lock it; returns the descriptor that holds the lock until it is closed or the process dies.

    Another export may take the folder for a stale one before the lock is there: then it is made again.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor)):
            return descriptor
        os.close(descriptor)


def remove_bundle(folder: Path, place: Path) -> None:
    """Remove a folder and its files, the manifest first: what is left of it at any moment is no bundle."""
    with suppress(OSError):
        (folder / place / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def put_in_place(partial: Path, output: Path, place: Path) -> None:
    """Rename `partial` to `output`; where a bundle stands there, exchange the two in one step.

    renameat2's RENAME_EXCHANGE swaps both names atomically (Linux). Where the file system has no such call the old
    bundle is moved aside first, and moved back if the second rename fails.
    """
    try:
        partial.rename(output)  # in place of nothing, or of an empty folder
        return
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
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
    remove_bundle(aside, place)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk, so that a rename after it can't overtake them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
