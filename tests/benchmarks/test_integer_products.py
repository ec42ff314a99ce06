"""Linear layers in 8 bits, by group and by row of weights, compute what float32 does, so that times can be compared."""

import json

import pytest
from integer_products import WAYS, Layer, measure

from ernie_export.doctor.machine import describe_machine


@pytest.fixture(scope="module")
def figures():
    return json.loads(json.dumps(measure({"small": Layer(64, 1024, 256)}, rounds=1)))


def test_ways_give_one_answer(figures):
    (case,) = figures["results"]
    exact, group, row = (case["errors"][name][0] for name in WAYS)
    assert exact < 1e-5 and group < 0.02
    # Without VNNI ONNX Runtime adds pairs of products of bytes in 16 bits, which saturate.
    assert "VNNI" not in describe_machine().features or row < 0.02


def test_large_channels_harm_a_scale_for_each_row_more(figures):
    (case,) = figures["results"]
    group, row = (case["errors"][name][1] for name in list(WAYS)[1:])
    assert row > 1.5 * group


def test_figures_name_machine_and_ways(figures):
    assert figures["machine"]["load"] >= 0
    assert all(list(case["seconds"]) == list(WAYS) and case["operations"] > 0 for case in figures["results"])
