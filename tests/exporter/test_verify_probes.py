"""ernie-verify's errors by kind of token: what counts as a fault where rounding sends some tokens elsewhere."""

import numpy as np

from ernie_export.exporter.verify.diagnosis import first_difference
from ernie_export.exporter.verify.probes import ALL, Probe, TokenErrors, kinds_of_tokens
from ernie_export.graphs.precision import ONNX

RIGHT = np.ones((40, 4))
IS_VISION = np.repeat([False, True, False], [10, 20, 10])


def off(*rows: int) -> np.ndarray:
    """Values of which these rows are off by half."""
    values = RIGHT.copy()
    values[list(rows)] *= 1.5
    return values


def test_tokens_are_of_the_kinds_that_the_docstring_lists():
    kinds = {kind: int(selected.sum()) for kind, selected in kinds_of_tokens(IS_VISION).items()}
    assert kinds == {"first": 1, "before": 9, "media": 20, "after": 10}
    assert set(kinds_of_tokens(np.zeros(5, bool))) == {"first", "alone", "media", "after"}


def test_one_token_elsewhere_is_a_fault_of_fp32_alone():
    for every_token, error in ((True, 0.5), (False, 0.0)):
        errors = TokenErrors()
        errors.add(off(3), RIGHT, kinds_of_tokens(IS_VISION))
        assert errors.probe(every_token).error == error


def test_most_tokens_of_one_kind_in_one_conversation_are_a_fault():
    errors = TokenErrors()
    errors.add(off(*range(30, 36)), RIGHT, kinds_of_tokens(IS_VISION))
    for _ in range(4):
        errors.add(RIGHT, RIGHT, kinds_of_tokens(IS_VISION))
    probe = errors.probe(every_token=False)
    assert probe.error == 0.5 == probe.kinds["after"] and probe.kinds["media"] == 0


def test_a_kind_of_few_tokens_is_not_judged_by_their_median():
    errors = TokenErrors()
    errors.add(off(0), RIGHT, kinds_of_tokens(IS_VISION))
    probe = errors.probe(every_token=False)
    assert probe.error == 0 and probe.kinds["first"] == 0.5


def test_another_shape_and_a_nan_are_infinitely_wrong():
    for found in (RIGHT[:, :3], RIGHT * np.nan):
        errors = TokenErrors()
        errors.add(found, RIGHT, {ALL: np.ones(40, bool)})
        assert errors.probe(every_token=False).error == np.inf


def test_most_tokens_routed_elsewhere_are_a_fault_whatever_the_error():
    probe = Probe(
        error=0.0, routed=30, agreed=12, tokens={"text": 20, "vision": 10}, rerouted={"text": 11, "vision": 5}
    )
    assert probe.mostly_rerouted == ["text"]
    sentence = first_difference({"layer 1": probe}, ONNX["int8"].tolerance)
    assert sentence.startswith(
        "layer 1 is the first that differs: routing differs for text tokens, vision tokens agree"
    )
