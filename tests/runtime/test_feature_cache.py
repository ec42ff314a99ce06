"""Encoding that is given up between the calls of the encoder, also while it waits for another request's."""

import threading

import numpy as np
import pytest

from ernie_export.runtime.feature_cache import FeatureCache

GRID = (1, 2, 2)


class GivenUp(Exception):
    """What `check` raises here."""


class Encoder:
    """Returns zeros; from `block` on it waits to be `released`."""

    def __init__(self) -> None:
        self.calls = 0
        self.entered = threading.Event()
        self.released = threading.Event()
        self.released.set()

    def encode(self, pixel_values, coordinates, pairs):
        self.calls += 1
        self.entered.set()
        assert self.released.wait(30)
        return np.zeros((pairs.shape[1], 1, 8), np.float32)


def items(count: int) -> list[np.ndarray]:
    return [np.full((4, 3), number, np.float32) for number in range(count)]


def give_up() -> None:
    raise GivenUp


def test_encoding_ends_between_two_calls():
    encoder = Encoder()
    cache = FeatureCache(encoder, 2, limit=2**20, patches_per_call=4)

    def check() -> None:
        if encoder.calls == 3:
            raise GivenUp

    with pytest.raises(GivenUp):
        cache.encode(items(10), [GRID] * 10, check)
    assert encoder.calls == 3
    features, _ = cache.encode(items(10), [GRID] * 10)
    assert len(features) == 10 and encoder.calls == 13


def test_a_request_that_waits_for_another_ones_encoding_is_given_up():
    encoder = Encoder()
    cache = FeatureCache(encoder, 2, limit=2**20)
    encoder.released.clear()
    slow = threading.Thread(target=cache.encode, args=(items(1), [GRID]))
    slow.start()
    assert encoder.entered.wait(30)
    with pytest.raises(GivenUp):
        cache.encode(items(2), [GRID] * 2, give_up)
    encoder.released.set()
    slow.join()
    assert encoder.calls == 1
