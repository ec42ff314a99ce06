"""Codes and scales against the values that they were made from."""

import numpy as np
import pytest
from ernie_export.exporter.quantize import PART, Quantizer, quantize_groups
from ernie_export.graphs.ops.quantized_linear.reference import dequantize
from ernie_export.graphs.weights import Quantization


def round_trip(values: np.ndarray, bits: int, group: int) -> np.ndarray:
    with Quantizer() as quantizer:
        codes = quantizer.quantize(values, Quantization(bits, group))
        scales = quantizer.take_scales()
    assert codes.size == values.size * bits // 8 and scales.size == values.size // group
    return dequantize(codes.reshape(1, -1), scales.reshape(1, -1), bits)[0]


@pytest.mark.parametrize("group", [16, 32, 64, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_error_is_less_than_rounding_to_the_range_leaves(bits, group):
    """On normal values the relative error is below that of rounding to the largest value's range, 2^bits steps."""
    values = np.random.default_rng(group).standard_normal(2 * PART + 3 * group).astype(np.float32)
    found = round_trip(values, bits, group)
    groups = values.reshape(-1, group)
    scale = np.abs(groups).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    plain = np.rint(groups / scale) * scale
    error = np.linalg.norm(found - values)
    assert 0 < error < (0.88 if bits == 4 else 0.995) * np.linalg.norm(plain - groups)
    if bits == 8:  # nothing is clipped, but what would be 128: every value is within a step
        assert (np.abs(found.reshape(groups.shape) - groups) <= 1.01 * scale).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_values_on_a_grid_come_back(bits):
    """Codes of every level, times a scale that float32 holds exactly, lose nothing."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (40, 32)).astype(np.float32)
    codes[:, 0] = -(2 ** (bits - 1))
    values = codes * np.float32(0.25) * np.where(np.arange(40) % 2, 1, -1)[:, None].astype(np.float32)
    found = round_trip(values.reshape(-1), bits, 32)
    np.testing.assert_allclose(found.reshape(values.shape), values, rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_and_outliers(bits):
    """A group of zeros stays zeros; one large value among small ones is kept, in either direction, at any size."""
    values = np.zeros((6, 32), np.float32)
    values[1, 5], values[2, 7], values[3, 0], values[4, 31] = 1e15, -1e15, 1e-15, 3.0
    values[4, :5] = 0.01
    found = round_trip(values.reshape(-1), bits, 32).reshape(values.shape)
    assert (found[[0, 5]] == 0).all()
    np.testing.assert_allclose(found.max(axis=1)[[1, 3, 4]], values.max(axis=1)[[1, 3, 4]], rtol=2e-2)
    np.testing.assert_allclose(found[2].min(), -1e15, rtol=1e-6)


def test_clipping_is_taken_where_it_pays():
    """The scale is smaller than the largest value asks for in some groups of normal values, and not in all."""
    groups = np.random.default_rng(1).standard_normal((500, 128)).astype(np.float32)
    codes, scales = quantize_groups(groups, 4)
    largest = np.abs(groups).max(axis=1)
    clipped = np.abs(scales) * 8 < 0.96 * largest
    assert 0.2 < clipped.mean() < 0.95
    assert codes.min() == -8 and codes.max() <= 7
