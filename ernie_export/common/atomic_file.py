"""Write a file whole or not at all, in folders that others may write to."""

import os
import tempfile
from pathlib import Path

from ernie_export.common.errors import CannotWrite


def write_atomically(path: Path, content: bytes, what: str, *, is_private: bool = False) -> None:
    """Write a file beside `path` under a random name; it replaces `path` when it is complete and on disk.

    A link at `path` is replaced, not followed.

    Args:
        path: The file.
        content: Its bytes.
        what: What it is, for errors.
        is_private: Whether only its owner may read it, whatever the process's mask says.

    Raises:
        CannotWrite: The file cannot be written.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:80]}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                if not is_private:
                    os.fchmod(file.fileno(), 0o666 & ~current_umask())
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        raise CannotWrite(path, what, str(getattr(e, "strerror", None) or e)) from e


def current_umask() -> int:
    """Return the process's file mode creation mask. There is no call that only reads it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
