"""Writing a worker's files."""

from pathlib import Path
from typing import Any


def write(path: Path, data: Any) -> None:
    """Write a file, whole or not at all. Raises OSError if it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
