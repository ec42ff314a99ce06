"""Rows of results: JSON objects, a line each, printed as they come and kept in the folder that comes back."""

import json
import os
from pathlib import Path
from typing import Any

OUT = "OUT"  # names the folder on a borrowed machine whose files come back


def results_folder() -> Path | None:
    """Return the folder that comes back, None where there is none."""
    return Path(os.environ[OUT]) if os.environ.get(OUT) else None


def emit(row: dict[str, Any], name: str) -> None:
    """Print a row, and append it to rows-NAME.jsonl in the folder that comes back: what comes later cannot lose it.

    NAME.jsonl is left to whoever keeps what is printed (`| tee $OUT/kernels.jsonl`).
    """
    line = json.dumps(row)
    print(line, flush=True)
    folder = results_folder()
    if folder is not None:
        with (folder / f"rows-{name}.jsonl").open("a") as file:
            file.write(line + "\n")
