"""Generated pages and pictures are what their sources say now, and pictures can be read."""

from xml.etree import ElementTree

import pytest

from tools.docs import generate, performance, profile, tables

SVG = "{http://www.w3.org/2000/svg}"


def test_generated_pages_are_current():
    assert generate.stale() == [], "run: python -m tools.docs.generate"


def test_a_changed_result_makes_a_page_stale(tmp_path, monkeypatch):
    for path in tables.RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text().replace('"rounds": 5', '"rounds": 7'))
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


def test_multiples_are_of_the_best_peer_of_the_same_run():
    result = {
        "tokens": dict.fromkeys(performance.WORKLOADS, 10),
        "seconds": {
            name: dict.fromkeys(performance.WORKLOADS, [seconds])
            for name, seconds in (("ernie-export fp32", 1.0), *zip(performance.PYTORCH, (2.0, 4.0), strict=True))
        },
    }
    assert performance.ratios(result) == {"ernie-export fp32": dict.fromkeys(performance.WORKLOADS, 2.0)}


def test_a_run_with_llama_cpp_fills_its_tables():
    tasks = (*performance.WORKLOADS, *performance.TOGETHER)
    fast = {"ernie-export int4": 1.0, "PyTorch eager fp32": 4.0, "llama.cpp Q4_0": 2.0}
    seconds = {name: dict.fromkeys(tasks, [one]) for name, one in fast.items()}
    seconds["llama.cpp Q4_0"] |= {"prefill 256 text + 1024 image": [], "decode": [0.5]}
    result = {
        "date": "2026-01-01",
        "rounds": 5,
        "machine": {"cpu": "a CPU", "features": ["AVX2", "VNNI"], "cores": 2, "load": 0.04},
        "tokens": dict.fromkeys(tasks, 100) | {"decode, 16 together": 300},
        "seconds": seconds,
        "seconds_to_first_token": {name: [one, one] for name, one in fast.items()},
        "rss_mib": dict.fromkeys(fast, 1234.5),
    }
    page = performance.every_contestant(result)
    assert "a CPU (AVX2, VNNI), 2 cores, load 0.0 before the run, 5 rounds" in page
    assert "| llama.cpp Q4_0 | 50.0 | 200 | fails | 1,234 | 2.00 |" in page
    assert "| llama.cpp Q4_0 | 50.0 | 50.0 | 150 | 3.00 × |" in page
    assert "| decode | 100 (ernie-export int4) | 200 (llama.cpp Q4_0) | 0.50 × |" in page
    assert "| prefill 256 text + 1024 image | 100 (ernie-export int4) | 25.0 (PyTorch eager fp32) | 4.00 × |" in page


def test_a_page_says_which_run_is_missing():
    assert "not made" in performance.every_contestant(None)


def test_profiles_say_what_the_experts_take_and_reach_in_every_bundle():
    def result(share: float, reached: float) -> dict:
        experts = {"operator": "QMoE", "rate": 100.0, "unit": "GFLOP/s", "share": reached}
        operators = {"QMoE": {"share": share}, "Seldom": {"share": 0.001}}
        first = {"seconds": 2.0, "outside_operators": 0.2, "experts": experts, "operators": operators}
        first |= {"graphs": {"decoder": {"launches_per_run": 7.0}}}
        machine = {"cpu": "a CPU", "features": ["AVX2"], "cores": 2, "load": 0.0}
        other = {"bundle": {"precision": "int4"}, "onnxruntime": "1.32.0", "date": "2026-01-01"}
        return other | {"machine": machine, "ceilings": {"Gemm fp32 GFLOP/s": 300.0}, "phases": {"prefill": first}}

    results = [result(0.6, 0.25), result(0.5, 0.5)]
    assert "takes 50 % to 60 % of the time, at 25 % to 50 % of the" in profile.limits(results)
    page = profile.profile(results[0])
    assert "| QMoE | 60 % |" in page and "| between operators | 10 % |" in page and "Seldom" not in page
    assert "| 7 |" in page and "100 GFLOP/s (25 %)" in page and "Gemm fp32 300 GFLOP/s" in page
