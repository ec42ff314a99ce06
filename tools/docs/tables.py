"""Markdown tables, and the numbers in them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def read_result(name: str) -> Any:
    """Read `benchmarks/results/NAME.json`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def find_result(name: str) -> Any | None:
    """Read `benchmarks/results/NAME.json`; None where that run was not made."""
    return read_result(name) if (RESULTS / f"{name}.json").exists() else None


def machine_text(machine: Any) -> str:
    """Return what a result says of its machine: processor, features, cores, and load before the run."""
    features = ", ".join(machine["features"])
    return f"{machine['cpu']} ({features}), {machine['cores']} cores, load {machine['load']:.1f} before the run"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; a number is already text, and a cell may hold Markdown."""
    lines = [" | ".join(headers), " | ".join("---" for _ in headers)]
    lines += [" | ".join(str(cell).replace("|", "\\|") for cell in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def scientific(value: float) -> str:
    """Return `value` with two digits, such as 2.3e-3; a zero stays a zero."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share of 1 as a percentage."""
    return f"{100 * share:.{digits}f} %"
