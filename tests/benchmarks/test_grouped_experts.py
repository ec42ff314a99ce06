"""The prototype of an experts' operator computes what ONNX Runtime's does, so that their times can be compared."""

import numpy as np
import pytest
from grouped_experts import BITS, K, Shape, compare, routing


@pytest.mark.parametrize("bits", BITS.values(), ids=BITS)
def test_both_ways_give_one_answer(bits):
    assert compare(Shape(hidden=64, width=32, experts=8), bits, rounds=1)["difference"] < 1e-3


def test_routing_sorts_slots_by_expert_and_finds_the_way_back():
    router = np.random.default_rng(0).standard_normal((512, 8), np.float32)
    found = routing(router)
    experts = np.repeat(np.arange(8), found["counts"])  # of each sorted slot
    assert np.array_equal(experts[found["place"]], np.argsort(-router, axis=1)[:, :K])
    assert np.array_equal(found["token"][found["place"]], np.repeat(np.arange(512)[:, None], K, 1))
    np.testing.assert_allclose(found["share"].sum(1), 1, rtol=1e-6)
