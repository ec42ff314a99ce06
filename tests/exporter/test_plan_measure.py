"""ernie-plan measures this machine once, and plans with its rates from then on, if it is still the same machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ernie_export.common.errors import CannotWrite, InvalidFile
from ernie_export.exporter.cli import plan as plan_cli
from ernie_export.exporter.plan import measure
from ernie_export.exporter.plan.rates import Conditions, Rates, keep_rates, rates_file, read_rates
from tests.paths import MINI

NOW = Conditions.of_now()
RATES = Rates(NOW, bandwidth=20e9, fp32=1e11, int8=3e11, int4=2e11)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return rates_file()


def planned(*arguments: str) -> dict[str, Any]:
    command = [str(MINI), "--images", "100x100", "--json", *arguments]
    result = CliRunner().invoke(plan_cli.command, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_measurement_finds_rates_of_a_processor():
    steps = []
    rates = measure.measure(lambda: steps.append(1), stream_bytes=2**22, seconds=0.05)
    assert len(steps) == measure.MEASUREMENTS
    assert rates.conditions == NOW
    assert 1e8 < rates.bandwidth < 1e13
    assert all(1e8 < rate < 1e15 for rate in (rates.fp32, rates.int8, rates.int4))


def test_kept_rates_are_planned_with_until_their_conditions_change(cache):
    assert planned("--device", "cpu")["precisions"]["fp32"]["decode"]["seconds"] is None
    keep_rates(RATES, cache)
    assert read_rates(cache) == RATES
    plan = planned("--device", "cpu")
    assert (plan["device"]["bandwidth"], "measured" in plan["device"]["source"]) == (20e9, True)
    for precision, rate in (("fp32", RATES.fp32), ("int8", RATES.int8), ("int4", RATES.int4)):
        step = plan["precisions"][precision]["decode"]
        assert step["seconds"] == max(step["bytes"] / 20e9, step["flops"] / rate)
    others: dict[str, Any] = {"cpu": "another", "features": (), "cores": NOW.cores + 1, "onnxruntime": "1.0"}
    for name, other in others.items():
        keep_rates(replace(RATES, conditions=replace(NOW, **{name: other})), cache)
        assert read_rates(cache) is None
        assert planned("--device", "cpu")["device"]["bandwidth"] is None


def test_the_encoder_is_planned_in_its_own_precision(cache):
    """A slow rate of one arithmetic slows the parts that compute in it alone."""
    keep_rates(RATES, cache)
    before = planned("--device", "cpu")["precisions"]["int4"]["prefill"]["seconds"]
    keep_rates(replace(RATES, int4=RATES.int4 / 2), cache)
    slower = planned("--device", "cpu")["precisions"]["int4"]["prefill"]["seconds"]
    assert before < slower < 2 * before


@pytest.mark.slow
def test_measuring_keeps_the_rates_and_plans_with_them(cache):
    device = planned("--measure")["device"]
    assert "measured" in device["source"]
    kept = read_rates(cache)
    assert kept is not None
    assert (device["bandwidth"], device["fp32"], device["int8"], device["int4"]) == (
        kept.bandwidth,
        kept.fp32,
        kept.int8,
        kept.int4,
    )


def test_a_malformed_file_of_rates_is_named(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text('{"bandwidth": "fast"}')
    with pytest.raises(InvalidFile, match="bandwidth"):
        read_rates(cache)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite, match="measured rates"):
        keep_rates(RATES, tmp_path / "file" / "ernie-export" / "rates.json")
