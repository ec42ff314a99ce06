"""Weights in the layout of CUDA's kernels for experts: the provider's own tiles, and the way back."""

import hashlib

import numpy as np
import pytest

from ernie_export.common.expert_layout import to_rows, to_tiles

# SHA-256 of what onnxruntime-gpu 1.31.1 makes of these rows itself, on the stand-ins of tools/cuda_stub (check.py).
PROVIDERS = {
    (4, 384, 64): "f5e71932937d81873f9c81d0075c4aae85d3c21f29aa2d08b65f7730f4236bb0",
    (4, 128, 96): "19ba240958c4b5149a8df06d92afc73fa9e9b080298e1eeda1faa4d64b7b572d",
}


def test_tiles_are_those_that_the_provider_makes():
    rng = np.random.default_rng(0)
    for shape, digest in PROVIDERS.items():
        tiles = to_tiles(rng.integers(0, 256, shape, np.uint8))
        assert hashlib.sha256(tiles.tobytes()).hexdigest() == digest


def tiled_by_value(rows: np.ndarray) -> np.ndarray:
    """Return the tiles of one matrix (N, K/2), value by value, as the sources of the provider describe them."""
    values = np.stack([rows & 15, rows >> 4], axis=-1).reshape(len(rows), -1)
    outputs, inputs = values.shape
    order = [8 * (i // 2 % 4) + 2 * (i // 8) + i % 2 for i in range(32)]  # {0, 1, 8, 9, 16, 17, 24, 25, 2, 3, ...}
    placed = np.zeros(outputs * inputs, np.uint8)
    for n in range(outputs):
        for k in range(inputs):
            word, within = divmod(k, 8)
            column = n // 4 * inputs * 4 // 8 + 4 * (word // 8 * 8) + 8 * (n % 4) + word % 8
            placed[8 * column + (within // 2 if within % 2 == 0 else within // 2 + 4)] = values[
                n, k // 32 * 32 + order[k % 32]
            ]
    return (placed[0::2] | placed[1::2] << 4).reshape(rows.shape)


@pytest.mark.parametrize("shape", [(4, 32), (8, 64), (12, 96), (64, 64)])
def test_every_value_lies_where_the_kernels_read_it(shape):
    rows = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    assert np.array_equal(to_tiles(rows), tiled_by_value(rows))


@pytest.mark.parametrize("shape", [(4, 32), (3, 8, 64), (2, 3, 12, 96)])
def test_rows_come_back_from_tiles(shape):
    rows = np.random.default_rng(2).integers(0, 256, shape, np.uint8)
    kept = rows.copy()
    tiles = to_tiles(rows)
    assert tiles.shape == rows.shape and tiles.dtype == np.uint8 and not np.array_equal(tiles, rows)
    assert np.array_equal(to_rows(tiles), rows) and np.array_equal(rows, kept)
