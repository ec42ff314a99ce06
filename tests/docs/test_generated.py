"""Generated pages and pictures are what their sources say now, and pictures can be read."""

from xml.etree import ElementTree

import pytest

from tools.docs import generate, performance, tables

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
