"""Keep what this machine's processor was measured to do, in the user's cache."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.errors import CannotWrite
from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.common.processor import cpu_name, usable_cores


@dataclass(frozen=True)
class Rates:
    """What a processor reaches.

    Attributes:
        cpu: Its name.
        cores: Cores that were used.
        bandwidth: Bytes a second of streaming reads.
        fp32: FLOP/s of float32 products.
        int8: FLOP/s of products with 8-bit weights, activations rounded to 8 bits.
        int4: FLOP/s of products with 4-bit weights, likewise.
    """

    cpu: str
    cores: int
    bandwidth: float
    fp32: float
    int8: float
    int4: float


def rates_file() -> Path:
    """Return the file that rates are kept in: below XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ernie-export" / "rates.json"


def read_rates(path: Path) -> Rates | None:
    """Return the kept rates, or None where none are of this processor. Raises InvalidFile for a malformed file."""
    if not path.is_file():
        return None
    section = JsonObject(path, "", read_json(path))
    rates = {name: section.positive(name) for name in ("bandwidth", "fp32", "int8", "int4")}
    cores = section.get("cores", 0)
    if section.get("cpu", "") != cpu_name() or cores != usable_cores():
        return None
    return Rates(cpu_name(), usable_cores(), **rates)


def keep_rates(rates: Rates, path: Path) -> None:
    """Write rates to the cache. Raises CannotWrite."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CannotWrite(path, "measured rates", e.strerror or str(e)) from e
    write_atomically(path, json.dumps(asdict(rates), indent=1).encode(), "measured rates")
