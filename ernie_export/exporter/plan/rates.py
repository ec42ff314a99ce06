"""Keep what this machine's processor was measured to do, in the user's cache."""

import json
import os
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from ernie_export.common.atomic_file import write_atomically
from ernie_export.common.errors import CannotWrite
from ernie_export.common.json_fields import JsonObject, read_json
from ernie_export.common.processor import cpu_features, cpu_name, usable_cores


@dataclass(frozen=True)
class Conditions:
    """What rates depend on: other rates are measured where one of these is another.

    Attributes:
        cpu: Name of the processor.
        features: Its instruction sets; virtual machines on one kind of processor may have some alone.
        cores: Cores that were used.
        onnxruntime: Version of ONNX Runtime.
    """

    cpu: str
    features: tuple[str, ...]
    cores: int
    onnxruntime: str

    @classmethod
    def of_now(cls) -> "Conditions":
        """Return those of this process."""
        return cls(cpu_name(), cpu_features(), usable_cores(), version("onnxruntime"))


@dataclass(frozen=True)
class Rates:
    """What a processor reaches.

    Attributes:
        conditions: What they were measured with.
        bandwidth: Bytes a second of streaming reads.
        fp32: FLOP/s of float32 products.
        int8: FLOP/s of products with 8-bit weights, activations rounded to 8 bits.
        int4: FLOP/s of products with 4-bit weights, likewise.
    """

    conditions: Conditions
    bandwidth: float
    fp32: float
    int8: float
    int4: float


def rates_file() -> Path:
    """Return the file that rates are kept in: below XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ernie-export" / "rates.json"


def read_rates(path: Path) -> Rates | None:
    """Return the kept rates, or None where they are of other conditions. Raises InvalidFile for a malformed file."""
    if not path.is_file():
        return None
    document = read_json(path)
    section = JsonObject(path, "", document)
    rates = {name: section.positive(name) for name in ("bandwidth", "fp32", "int8", "int4")}
    now = Conditions.of_now()
    same = document.get("conditions") == asdict(now) | {"features": list(now.features)}
    return Rates(now, **rates) if same else None


def keep_rates(rates: Rates, path: Path) -> None:
    """Write rates to the cache. Raises CannotWrite."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CannotWrite(path, "measured rates", e.strerror or str(e)) from e
    write_atomically(path, json.dumps(asdict(rates), indent=1).encode(), "measured rates")
