"""What admitted requests hold together is counted from their admission to their end, and limited."""

import pytest

from ernie_export.runtime.serving.http.admission import Admission
from ernie_export.runtime.serving.http.errors import ApiError


@pytest.fixture
def admission():
    return Admission(max_requests=4, max_bytes=100, max_feature_bytes=1000, max_num_seqs=2)


@pytest.mark.parametrize("held", [{"choices": 3}, {"size": 60}, {"feature_size": 600}], ids=str)
def test_what_two_requests_hold_together_is_limited(admission, held):
    first = admission.admit()
    second = admission.admit()
    first.take(**held)
    with pytest.raises(ApiError) as refusal:
        second.take(**held)
    assert refusal.value.status == 429 and "Retry-After" in refusal.value.headers
    first.release()
    second.take(**held)
    second.release()
    assert admission.count == admission.open == 0
    admission.admit().take(choices=4, size=100, feature_size=1000)


def test_features_count_when_the_body_no_longer_does(admission):
    ticket = admission.admit()
    ticket.take(choices=1, size=100)
    ticket.drop_bytes()
    ticket.take(feature_size=900)
    other = admission.admit()
    other.take(size=100)
    with pytest.raises(ApiError):
        other.take(feature_size=101)
