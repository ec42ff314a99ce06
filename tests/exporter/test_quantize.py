"""Codes and scales against the values that they were made from, alone and as the exporter streams them."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ernie_export.exporter.weights.direct_file import Blocks
from ernie_export.exporter.weights.quantize import PART, Quantizer, quantize_groups
from ernie_export.exporter.weights.writer import plan, write
from ernie_export.graphs.checkpoint.reader import SINGLE, Checkpoint
from ernie_export.graphs.ops.quantized_linear.reference import dequantize, dequantize_float8
from ernie_export.graphs.weight_spec import Interleaved, Quantization, Rows, ScalesOf, Weight
from tests.paths import PROGRAMS

U8 = np.dtype(np.uint8)
F32 = np.dtype(np.float32)


def round_trip(values: np.ndarray, bits: int, group: int) -> np.ndarray:
    with Quantizer() as quantizer:
        qweight = quantizer.quantize(values, Quantization(bits, group))
        scales = quantizer.take_scales()
    assert qweight.size == values.size * bits // 8 and scales.size == values.size // group
    return dequantize(qweight.reshape(1, -1), scales.reshape(1, -1), bits)[0]


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
    if bits == 8:  # nothing is clipped, but what would be 128: every value is within a step and a half
        assert (np.abs(found.reshape(groups.shape) - groups) <= 1.5 * scale).all()


@pytest.mark.parametrize("group", [16, 128])
def test_float8_rounds_to_three_bits_of_mantissa(group):
    """Within 2^-4 of a value that is not below a 2^14th of its group's largest; zeros stay zeros."""
    rng = np.random.default_rng(group)
    values = (rng.standard_normal(PART + 3 * group) * 10.0 ** rng.integers(-30, 30)).astype(np.float32)
    values[:group], values[group] = 0, 0
    with Quantizer() as quantizer:
        qweight = quantizer.quantize(values, Quantization(8, group, float8=True))
        scales = quantizer.take_scales()
    found = dequantize_float8(qweight.view(ml_dtypes.float8_e4m3fn).reshape(1, -1), scales.reshape(1, -1))[0]
    largest = np.abs(values.reshape(-1, group)).max(axis=1, keepdims=True).repeat(group, 1).reshape(-1)
    assert (np.abs(found - values) <= np.maximum(2**-4 * np.abs(values), 2**-18 * largest)).all()
    assert (found[:group] == 0).all() and np.linalg.norm(found - values) < 0.03 * np.linalg.norm(values)
    full = qweight.view(ml_dtypes.float8_e4m3fn).astype(np.float32).reshape(-1, group)[1:]
    assert (np.abs(full).max(axis=1) == 448).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_values_on_a_grid_come_back(bits):
    """Quantized values of every level, times a scale that float32 holds exactly, lose nothing."""
    rng = np.random.default_rng(0)
    qweight = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (40, 32)).astype(np.float32)
    qweight[:, 0] = -(2 ** (bits - 1))
    values = qweight * np.float32(0.25) * np.where(np.arange(40) % 2, 1, -1)[:, None].astype(np.float32)
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
    qweight, scales = quantize_groups(groups, 4)
    largest = np.abs(groups).max(axis=1)
    clipped = np.abs(scales) * 8 < 0.96 * largest
    assert 0.2 < clipped.mean() < 0.95
    assert qweight.min() == -8 and qweight.max() <= 7


def quantised(name: str, shape: tuple[int, ...], pieces: tuple, how: Quantization) -> list[Weight]:
    """A quantised weight of `shape`, and its scales."""
    stored = (*shape[:-1], shape[-1] * how.bits // 8)
    groups = (*shape[:-1], shape[-1] // how.group)
    return [
        Weight(f"{name}_scales", F32, groups, (ScalesOf(name),)),
        Weight(name, U8, stored, pieces, how),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_streamed_weights_are_those_quantised_whole(tmp_path, bits, dtype):
    """Blocks far smaller than a tensor, both kinds of source, scales asked for first, another weight between."""
    rng = np.random.default_rng(bits)
    arrays = {name: rng.standard_normal((50, 96)).astype(dtype) for name in ("gate", "up", "down", "more")}
    save_file(arrays, tmp_path / SINGLE)
    how = Quantization(bits, 32)
    content = [
        *quantised("expert_groups", (2, 100, 96), (Interleaved("gate", "up"), Interleaved("up", "gate")), how),
        Weight("plain", F32, (50, 96), (Rows("more"),)),
        *quantised("rows", (50, 96), (Rows("down"),), how),
    ]
    layout = plan(content)
    for qweight, scales in (("expert_groups", "expert_groups_scales"), ("rows", "rows_scales")):
        names = [weight.name for weight in layout.weights]
        assert names.index(scales) == names.index(qweight) + 1
    blocks = Blocks(made_bytes=4096, written_bytes=4096)
    write(layout, Checkpoint.open(tmp_path), tmp_path / "out", lambda count: None, block_sizes=blocks)
    loaded = load_file(tmp_path / "out")
    wide = {name: array.astype(np.float32) for name, array in arrays.items()}
    pair = np.stack([wide["gate"], wide["up"]], axis=1).reshape(100, 96)
    swapped = np.stack([wide["up"], wide["gate"]], axis=1).reshape(100, 96)
    assert np.array_equal(loaded["plain"], wide["more"])
    for name, values in (("expert_groups", np.stack([pair, swapped])), ("rows", wide["down"])):
        found = dequantize(loaded[name], loaded[f"{name}_scales"], bits)
        assert np.array_equal(found.reshape(-1), round_trip(values.reshape(-1), bits, 32)), name


def test_scales_without_weights_are_refused(tmp_path):
    save_file({"x": np.ones((2, 32), np.float32)}, tmp_path / SINGLE)
    lone = [Weight("x_scales", F32, (2, 1), (ScalesOf("x"),))]
    with pytest.raises(ValueError, match="x_scales"):
        plan(lone)


def test_memory_stays_at_a_few_blocks(tmp_path):
    """128 MiB of float32 become 17 MiB of quantized values and scales in a process that grows by less than 64 MiB."""
    save_file({"x": np.random.default_rng(0).standard_normal((8192, 4096), np.float32)}, tmp_path / SINGLE)
    result = subprocess.run(
        [sys.executable, PROGRAMS / "quantize_file.py", tmp_path], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 64, result.stdout
