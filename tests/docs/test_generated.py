"""Generated pages and pictures are what their sources say now, and pictures can be read."""

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from tools.docs import comparison, generate, profile, tables

SVG = "{http://www.w3.org/2000/svg}"


def test_generated_pages_are_current():
    assert generate.stale() == [], "run: python -m tools.docs.generate"


def test_a_changed_result_makes_a_page_stale(tmp_path, monkeypatch):
    for path in tables.RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        changed = {"rounds": 99} if path.stem == "cpu-m600" else {}
        (tmp_path / path.name).write_text(json.dumps(result | changed))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert generate.stale() == ["results/performance.md"]


@pytest.mark.parametrize("name", generate.PICTURES)
def test_a_picture_has_a_title_a_description_and_dark_colours(name):
    text = (generate.DOCS / "images" / f"{name}.svg").read_text()
    root = ElementTree.fromstring(text)
    for tag in ("title", "desc"):
        element = root.find(SVG + tag)
        assert element is not None and element.text
    assert "prefers-color-scheme: dark" in text


@pytest.fixture
def run() -> dict[str, Any]:
    """A result of benchmarks/compare.py: 100 tokens in so many seconds."""
    tasks = (*comparison.WORKLOADS, *comparison.TOGETHER)
    times = {
        "ernie-export fp32": 2.0,
        "ernie-export int4": 1.0,
        "PyTorch eager fp32": 5.0,
        "PyTorch eager bf16": 4.0,
        "llama.cpp Q4_0": 2.0,
        "llama.cpp Q4_K_S, mapped": 2.5,
    }
    seconds = {name: dict.fromkeys(tasks, [one]) for name, one in times.items()}
    seconds["llama.cpp Q4_0"] |= {"prefill 256 text + 1024 image": [], "decode": [0.5]}
    seconds["llama.cpp Q4_K_S, mapped"] |= {"prefill 256 text + 1024 image": []}
    return {
        "tokens": dict.fromkeys(tasks, 100) | {"decode, 16 together": 300},
        "seconds": seconds,
        "seconds_to_first_token": {name: [one, one] for name, one in times.items()},
        "rss_mib": dict.fromkeys(times, 1234.5),
        "errors": {"llama.cpp Q4_0": {"prefill 256 text + 1024 image": "no vision"}},
    }


def test_a_run_fills_its_tables(run):
    assert "| llama.cpp Q4_0 | 50.0 | 200 | fails | 1,234 | 2.00 |" in comparison.comparison(run)
    assert "| llama.cpp Q4_K_S, mapped | 40.0 | 40.0 | not run | 1,234 | 2.50 |" in comparison.comparison(run)
    assert "| llama.cpp Q4_0 | 50.0 | 50.0 | 150 | 3.00 × |" in comparison.together(run)


def test_rates_of_several_rounds_have_the_slowest_and_the_fastest(run):
    run["seconds"]["ernie-export int4"]["decode"] = [0.5, 1.0, 0.25]
    assert "| ernie-export int4 | 100 | 200 (100..400) | 100 |" in comparison.comparison(run)
    assert "| decode | 2.00 × (PyTorch eager bf16) | no peer | 1.00 × (llama.cpp Q4_0; rounds overlap) |" in (
        comparison.leads(run)
    )


def test_the_quickest_start_and_the_least_memory_are_named(run):
    run["rss_mib"] |= {"llama.cpp Q4_0": 300.0, "ernie-export fp32": 4000.0}
    assert comparison.starts(run) == (
        "From a process's start to its first token takes least: of the exports ernie-export int4 with 1.00 s, "
        "and ernie-export int4 holds least, 1,234 MiB; of the peers llama.cpp Q4_0 with 2.00 s, and llama.cpp Q4_0 "
        "holds least, 300 MiB."
    )


def test_exports_stand_beside_the_fastest_peer_of_as_many_bits(run):
    table = comparison.leads(run)
    assert "| decode | 2.00 × (PyTorch eager bf16) | no peer | 0.50 × (llama.cpp Q4_0) |" in table
    assert "| prefill 256 text + 1024 image | 2.00 × (PyTorch eager bf16) | no peer | no peer |" in table


def test_profiles_say_what_the_experts_take_and_reach_in_every_bundle():
    def result(share: float, reached: float) -> dict:
        experts = {"operator": "QMoE", "rate": 100.0, "unit": "GFLOP/s", "share": reached}
        operators = {"QMoE": {"share": share}, "Seldom": {"share": 0.001}}
        first = {"seconds": 2.0, "outside_operators": 0.2, "experts": experts, "operators": operators}
        first |= {"graphs": {"decoder": {"launches_per_run": 7.0}}, "seconds_without_profiling": 1.9}
        mixed = {"Gemm": {"share": 0.3}, "MatMulNBits": {"share": 0.1}, "MultiHeadAttention": {"share": 0.2}}
        phases = {"prefill": first, "image": {**first, "operators": mixed | {"MoE": {"share": share / 5}}}}
        for count, seconds in ((1, 0.1), (4, 0.3), (16, 0.8)):
            phases[f"decode, {count} together"] = {**first, "operators": {"QMoE": {"share": 0.5, "seconds": seconds}}}
        ceilings = {"Gemm fp32 GFLOP/s": 300.0, "PyTorch int8 GFLOP/s": 1000.0}
        machine = {"cpu": "a CPU", "features": ["AVX2"], "cores": 2, "load": 0.0}
        bundle = {"precision": "int4", "num_experts": 32, "experts_per_token": 6}
        other = {"bundle": bundle, "onnxruntime": "1.32.0", "date": "2026-01-01"}
        return other | {"machine": machine, "ceilings": ceilings, "phases": phases}

    results = [result(0.6, 0.25), result(0.5, 0.5)]
    limits = profile.limits(results)
    assert "takes 50 % to 60 % of the time, at 25 % to 50 % of the" in limits
    assert "int4 at 10 % of PyTorch's product of integers" in limits
    assert "linear layers take 40 %, " in limits and "experts\n10 % to 12 %." in limits
    assert "3.0 and 8.0 times as long" in profile.several(results[0])
    assert "\n3.0 and 5.1 times as many experts are met" in profile.several(results[0])
    page = profile.profile(results[0])
    assert "| QMoE | 60 % |" in page and "| between operators | 10 % |" in page and "Seldom" not in page
    assert (
        "| 7 |" in page
        and "| 2.00; 1.90 |" in page
        and "100 GFLOP/s (25 %)" in page
        and "Gemm fp32 300 GFLOP/s" in page
    )
    results[0]["phases"]["prefill"]["seconds_without_profiling"] = 1.5
    page = profile.profile({**results[0], "phases": {"prefill": results[0]["phases"]["prefill"]}})
    assert "| QMoE | 60 % |" in page and "between operators" not in page and "100 GFLOP/s" not in page
