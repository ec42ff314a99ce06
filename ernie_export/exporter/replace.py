"""Put a bundle in its place: write it beside the place under another name, then exchange the two in one step.

A bundle that is being written is a hidden, locked folder beside the output, `.NAME.partial-RANDOM`, and has no manifest
until everything else is in it. Killed at any moment, an export leaves the old bundle as it was and at most a partial
folder, which the next export of the same name removes. Exports of the same name at the same time each write their own
folder; the last one to end stays.

Others may write to the parent folder, too. So the partial folder has a random name and is private (0700) until it
is complete, links and pipes are never followed or opened, and only folders of the same user are removed.
"""

import ctypes
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ernie_export.common.atomic_file import current_umask
from ernie_export.common.errors import CannotWrite, InvalidFile
from ernie_export.common.manifest import NAME as MANIFEST

RENAME_EXCHANGE = 2
AT_FDCWD = -100
WHOLE_OUTPUT = Path()
# Open a folder and nothing else: a link is not followed, a pipe not waited for.
OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK


@contextmanager
def writing_bundle(output: Path, subfolder: Path = WHOLE_OUTPUT) -> Iterator[Path]:
    """Yield a folder to write a bundle into; it replaces `output` when the block ends without an error.

    Args:
        output: Folder to write or replace.
        subfolder: Where in `output` the bundle lies, when there is more to it. The yielded folder is the bundle's.

    Raises:
        InvalidFile: If `output` exists and has no bundle there.
        CannotWrite: If the parent folder cannot be written to, or the disk is full.
    """
    output = Path(os.path.abspath(output))
    check_replaceable(output, subfolder)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(output, subfolder)
        partial, lock = make_partial(output)
    except OSError as e:
        raise CannotWrite(output, f"beside it ({e.filename})", e.strerror or str(e)) from e
    try:
        (partial / subfolder).mkdir(parents=True, exist_ok=True)
        yield partial / subfolder
        check_same_folder(partial, lock)
        for path in (*partial.rglob("*"), partial):
            sync(path)
        check_replaceable(output, subfolder)
        os.fchmod(lock, 0o777 & ~current_umask())
        check_same_folder(partial, lock)
        put_in_place(partial, output, subfolder)
        sync(output.parent)
    except OSError as e:
        raise CannotWrite(output, "a bundle", e.strerror or str(e)) from e
    finally:
        if is_same_folder(partial, lock):  # not moved into place
            remove_bundle(partial, subfolder)
        os.close(lock)


def check_replaceable(output: Path, subfolder: Path) -> None:
    """Refuse to replace anything but an empty folder or one with a bundle in `subfolder`."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise InvalidFile(output, "a folder or nothing", "something else")
    if output.is_dir() and not (output / subfolder / MANIFEST).is_file() and any(output.iterdir()):
        expected = "a bundle" if subfolder == WHOLE_OUTPUT else f"a folder with a bundle at {subfolder}"
        raise InvalidFile(output, f"{expected} to replace or an empty folder", "other files", hint="left alone")


def remove_stale(output: Path, subfolder: Path) -> None:
    """Remove partial bundles of this user that no living export holds a lock on."""
    for partial in list(output.parent.iterdir()):
        if not partial.name.startswith(f".{output.name}.partial-") or not is_own_folder(partial):
            continue
        try:
            descriptor = os.open(partial, OPEN_FOLDER)
        except OSError:  # its export has just ended, or another user exchanged it for something else
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_same_folder(partial, descriptor):
                remove_bundle(partial, subfolder)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def make_partial(output: Path) -> tuple[Path, int]:
    """Make and lock a new private folder beside `output`.

    Another export may take the folder for a stale one before the lock is there: then another is made.

    Returns:
        The folder, and the descriptor that holds its lock until it is closed or the process dies.
    """
    while True:
        folder = output.with_name(f".{output.name}.partial-{secrets.token_hex(8)}")
        folder.mkdir(mode=0o700)
        try:
            descriptor = os.open(folder, OPEN_FOLDER)
        except FileNotFoundError:
            continue
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if is_same_folder(folder, descriptor):
            return folder, descriptor
        os.close(descriptor)


def is_own_folder(path: Path) -> bool:
    """Return whether `path` itself is a folder of this user, and no link to one."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def is_same_folder(path: Path, descriptor: int) -> bool:
    """Return whether `path` itself is the folder that `descriptor` was opened on."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def check_same_folder(path: Path, descriptor: int) -> None:
    """Raise OSError if somebody exchanged the folder at `path` since `descriptor` was opened on it."""
    if not is_same_folder(path, descriptor):
        raise OSError(errno.ESTALE, "another user exchanged the folder that was being written", str(path))


def remove_bundle(folder: Path, subfolder: Path) -> None:
    """Remove a folder and its files, the manifest first: what is left of it at any moment is no bundle."""
    with suppress(OSError):
        (folder / subfolder / MANIFEST).unlink()
    shutil.rmtree(folder, ignore_errors=True)


def put_in_place(partial: Path, output: Path, subfolder: Path) -> None:
    """Rename `partial` to `output`; where a bundle stands there, exchange the two in one step and remove the old one.

    renameat2's RENAME_EXCHANGE swaps both names atomically (Linux). Where the file system has no such call the old
    bundle is moved aside first, and moved back if the second rename fails.
    """
    try:
        partial.rename(output)  # in place of nothing, or of an empty folder
        return
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    old = partial if exchange(partial, output) else move_aside(partial, output)
    # Another export may have replaced the output a moment before: any bundle of this user is what was exchanged.
    if is_own_folder(old) and (old / subfolder / MANIFEST).is_file():
        remove_bundle(old, subfolder)


def exchange(one: Path, other: Path) -> bool:
    """Swap two names atomically. Return False where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(other))
    return False


def move_aside(partial: Path, output: Path) -> Path:
    """Rename `output` to a name of its own and `partial` to `output`; return the old one's name."""
    aside = output.with_name(f".{output.name}.old-{secrets.token_hex(8)}")
    output.rename(aside)
    try:
        partial.rename(output)
    except OSError:
        aside.rename(output)
        raise
    return aside


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk, so that a rename after it cannot overtake them."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
