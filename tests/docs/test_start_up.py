"""The table of starts in the deployment guide has the figures of benchmarks/results/start-up.json."""

import json

import pytest

from tests.paths import ROOT

PAGE = (ROOT / "docs" / "guides" / "deploy.md").read_text().splitlines()
BUNDLES = json.loads((ROOT / "benchmarks" / "results" / "start-up.json").read_text())["bundles"]
ROWS = {
    "released widths, 7 layers, text": ("released widths, 7 layers, int4", "text"),
    "650 M, text": ("650 M, int4", "text"),
    "650 M, a picture": ("650 M, int4", "picture"),
}


def figures(measured: dict[str, float]) -> str:
    """Return a row's cells but the first."""
    sizes = (f"{measured[name] / 2**20:,.0f}" for name in ("anonymous_bytes", "resident_bytes"))
    return " | ".join((f"{measured['seconds']:.1f}", f"{measured['processor_seconds']:.1f}", *sizes))


@pytest.mark.parametrize("label", ROWS)
def test_rows_are_the_medians(label):
    bundle, asked = ROWS[label]
    medians = BUNDLES[bundle]["medians"][asked]
    start = PAGE.index(f"| {label}: before | {figures(medians['before'])} |")
    assert PAGE[start + 1] == f"| now | {figures(medians['now'])} |"
