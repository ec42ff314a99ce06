"""The prototypes of an experts' operator compute what ONNX Runtime's does, so that their times can be compared."""

import json

import numpy as np
import pytest
from grouped_experts import BITS, K, Shape, measure, routing, time_ways

from ernie_export.doctor.machine import describe_machine

TINY = Shape(hidden=64, width=32, experts=8, tokens=512)


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_all_ways_give_one_answer(bits):
    close, *integers = time_ways(TINY, bits, rounds=1)["differences"]
    assert close < 1e-2 and len(integers) == (bits == 8)
    # Without VNNI ONNX Runtime adds pairs of products of bytes in 16 bits, which saturate.
    assert "VNNI" not in describe_machine().features or all(off < 0.05 for off in integers)


def test_routing_sorts_slots_by_expert_and_finds_the_way_back():
    router = np.random.default_rng(0).standard_normal((512, 8), np.float32)
    found = routing(router)
    experts = np.repeat(np.arange(8), found["counts"])  # of each sorted slot
    assert np.array_equal(experts[found["place"]], np.argsort(-router, axis=1)[:, :K])
    assert np.array_equal(found["token"][found["place"]], np.repeat(np.arange(512)[:, None], K, 1))
    np.testing.assert_allclose(found["share"].sum(1), 1, rtol=1e-6)


def test_figures_name_machine_and_cases():
    figures = json.loads(json.dumps(measure({"tiny": TINY}, rounds=1)))
    assert figures["machine"]["load"] >= 0 and [case["precision"] for case in figures["results"]] == list(BITS)
