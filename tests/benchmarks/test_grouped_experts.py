"""The prototype of an experts' operator computes what ONNX Runtime's does, so that their times can be compared."""

import json

import grouped_experts
import numpy as np
import pytest
from click.testing import CliRunner
from grouped_experts import BITS, K, Shape, compare, routing

TINY = Shape(hidden=64, width=32, experts=8)


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_both_ways_give_one_answer(bits):
    close, *integers = compare(TINY, bits, rounds=1)["differences"]
    assert close < 1e-3 and len(integers) == (bits == 8) and all(off < 0.05 for off in integers)


def test_routing_sorts_slots_by_expert_and_finds_the_way_back():
    router = np.random.default_rng(0).standard_normal((512, 8), np.float32)
    found = routing(router)
    experts = np.repeat(np.arange(8), found["counts"])  # of each sorted slot
    assert np.array_equal(experts[found["place"]], np.argsort(-router, axis=1)[:, :K])
    assert np.array_equal(found["token"][found["place"]], np.repeat(np.arange(512)[:, None], K, 1))
    np.testing.assert_allclose(found["share"].sum(1), 1, rtol=1e-6)


def test_result_names_machine_and_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(grouped_experts, "SHAPES", {"tiny": TINY})
    result = CliRunner().invoke(grouped_experts.main, ["--rounds", "1", "--output", str(tmp_path / "result.json")])
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["machine"]["load"] >= 0 and [case["precision"] for case in written["results"]] == list(BITS)
