"""Codes that make up for each other's errors: better on inputs like those seen, and laid out as all others are."""

import numpy as np
import pytest

from ernie_export.exporter.calibration import gptq
from ernie_export.exporter.calibration.gptq import cholesky_factor, column_blocks, quantize_rows
from ernie_export.exporter.weights.quantize import Quantizer, quantize_groups
from ernie_export.graphs.ops.quantized_linear.reference import dequantize
from ernie_export.graphs.weight_spec import Quantization

ROWS = 48
WIDTH = 256


def correlated(rng: np.random.Generator, tokens: int) -> np.ndarray:
    """Inputs (tokens, WIDTH) that lie near 40 directions, with three channels twenty times as large as the others."""
    mix = np.random.default_rng(7).standard_normal((40, WIDTH))
    x = rng.standard_normal((tokens, 40)) @ mix + 0.3 * rng.standard_normal((tokens, WIDTH))
    x[:, [3, 90, 200]] *= 20
    return x.astype(np.float32)


def hessian(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64).T @ x / len(x)


def rounded(weights: np.ndarray, factors: list, how: Quantization) -> np.ndarray:
    qweight, scales = quantize_rows(weights, factors, how)
    assert qweight.dtype == np.uint8 and qweight.shape == (weights.size * how.bits // 8,)
    assert scales.dtype == np.float32 and scales.shape == (weights.size // how.group,)
    return dequantize(qweight.reshape(len(weights), -1), scales.reshape(len(weights), -1), how.bits)


def plain(weights: np.ndarray, how: Quantization) -> np.ndarray:
    with Quantizer() as quantizer:
        qweight = quantizer.quantize(weights.reshape(-1), how)
        scales = quantizer.take_scales()
    return dequantize(qweight.reshape(len(weights), -1), scales.reshape(len(weights), -1), how.bits)


@pytest.mark.parametrize("group", [16, 32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_are_nearer_on_inputs_not_seen(bits, group):
    """The error of x Wᵀ on fresh inputs is at most half of what rounding without calibration leaves."""
    rng = np.random.default_rng(bits)
    weights = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    seen = correlated(rng, 2000)
    fresh = correlated(rng, 500)
    how = Quantization(bits, group)
    found = rounded(weights, [(slice(0, WIDTH), cholesky_factor(hessian(seen)))], how)
    error, before = (np.linalg.norm(fresh @ (w - weights).T) for w in (found, plain(weights, how)))
    assert 0 < error < 0.5 * before


@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_alike_in_all_directions_change_nothing(bits):
    """Nothing to make up for: the identity, and no input at all, cost what rounding without calibration does."""
    weights = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)
    how = Quantization(bits, 32)
    for nothing in (np.eye(WIDTH), np.zeros((WIDTH, WIDTH)), 1e-30 * np.eye(WIDTH), 1e30 * np.eye(WIDTH)):
        found = rounded(weights, [(slice(0, WIDTH), cholesky_factor(nothing))], how)
        error, before = (np.linalg.norm(w - weights) for w in (found, plain(weights, how)))
        assert error == pytest.approx(before, rel=1e-2)


def test_factor_is_that_of_the_damped_inverse():
    h = hessian(correlated(np.random.default_rng(2), 300))
    upper = cholesky_factor(h).astype(np.float64)
    assert np.array_equal(upper, np.triu(upper))
    level = np.trace(h) / WIDTH
    np.testing.assert_allclose(
        upper.T @ upper @ (h / level + gptq.DAMPING * np.eye(WIDTH)), np.eye(WIDTH), rtol=0, atol=2e-4
    )


def test_fewer_tokens_than_channels_do_not_break_it():
    """One token's statistics have rank 1: its own output is kept, and no other one is made much worse."""
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    how = Quantization(4, 32)
    seen = correlated(rng, 1)
    found = rounded(weights, [(slice(0, WIDTH), cholesky_factor(hessian(seen)))], how)
    before = plain(weights, how)
    assert np.linalg.norm(seen @ (found - weights).T) < 0.2 * np.linalg.norm(seen @ (before - weights).T)
    assert np.linalg.norm(found - weights) < 1.5 * np.linalg.norm(before - weights)


def test_wide_layers_are_quantized_in_column_blocks():
    """Column blocks that cover the width, whose quantized values do not depend on each other."""
    assert column_blocks(300, 128) == [slice(0, 128), slice(128, 256), slice(256, 300)]
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
    x = correlated(rng, 1000)
    how = Quantization(4, 64)
    factors = [(span, cholesky_factor(hessian(x[:, span]))) for span in column_blocks(WIDTH, 128)]
    whole = rounded(weights, factors, how)
    for span, upper in factors:
        alone = rounded(np.ascontiguousarray(weights[:, span]), [(slice(0, 128), upper)], how)
        assert np.array_equal(whole[:, span], alone)
    assert np.linalg.norm(x @ (whole - weights).T) < np.linalg.norm(x @ (plain(weights, how) - weights).T)


@pytest.mark.parametrize("rows", [1, 4])
def test_weights_that_were_given_stay_as_they_were(rows):
    weights = np.random.default_rng(5).standard_normal((rows, 32)).astype(np.float32)
    kept = weights.copy()
    quantize_rows(weights, [(slice(0, 32), cholesky_factor(np.eye(32)))], Quantization(4, 32))
    assert np.array_equal(weights, kept)


def test_important_places_are_rounded_better():
    values = np.random.default_rng(6).standard_normal((300, 64)).astype(np.float32)
    importance = np.where(np.arange(64) < 8, 100, 1).astype(np.float32)
    errors = []
    for weight in (None, importance):
        qweight, scales = quantize_groups(values, 4, weight)
        errors.append(((qweight * scales[:, None] - values) ** 2 * importance).sum())
    assert errors[1] < 0.95 * errors[0]
