"""The kernels of a decode step's attention, in Triton's interpreter, against the NumPy reference."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.graphs.ops.cached_attention import reference
from ernie_export.graphs.ops.cached_attention.launch import decode_attention
from ernie_export.graphs.ops.cached_attention.plugin import splits

pytestmark = pytest.mark.usefixtures("interpreted")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2**-9, torch.bfloat16: 2**-6}


def case(seed, past, capacity, kv_heads, group, dim, dtype):
    """q, the caches with the new token in place, past_lengths, and what the reference makes of them."""
    rng = np.random.default_rng(seed)
    rows = len(past)

    def draw(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(-1, 1, shape).astype(np.float32)).to(dtype)

    q = draw(rows, 1, kv_heads * group * dim)
    k, v = draw(rows, 1, kv_heads * dim), draw(rows, 1, kv_heads * dim)
    caches = [draw(rows, kv_heads, capacity, dim) for _ in range(2)]
    lengths = np.array(past), np.ones(rows, np.int64)
    arrays = {"q": q, "k": k, "v": v, "past_key": caches[0], "past_value": caches[1]}
    heads = {"num_heads": kv_heads * group, "kv_num_heads": kv_heads}
    y, key, value = reference.cached_attention(
        **{name: x.float().numpy() for name, x in arrays.items()},
        past_lengths=lengths[0],
        lengths=lengths[1],
        **heads,
    )
    key, value = (torch.from_numpy(x).to(dtype) for x in (key, value))
    return (q, key, value, torch.from_numpy(lengths[0])), y


def attend(inputs: tuple[torch.Tensor, ...], num_heads: int, empty: Any) -> torch.Tensor:
    q, key, value, past = inputs
    return decode_attention(q, key, value, past, num_heads, empty)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_kernels_equal_the_reference(unwritten, data):
    capacity = data.draw(st.integers(1, 400), "capacity")
    past = data.draw(st.lists(st.integers(0, capacity - 1), min_size=1, max_size=3), "past")
    kv_heads = data.draw(st.integers(1, 3), "kv heads")
    group = data.draw(st.sampled_from([1, 2, 5, 17]), "query heads of each")
    dim = data.draw(st.sampled_from([2, 12, 16, 24, 128]), "head size")
    dtype = data.draw(st.sampled_from(sorted(TOLERANCE, key=str)), "dtype")
    seed = data.draw(st.integers(0, 99), "seed")
    inputs, expected = case(seed, past, capacity, kv_heads, group, dim, dtype)
    y = attend(inputs, kv_heads * group, unwritten)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.float().numpy(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("past", [0, 63, 64, 2047, 2048, 5000, 8255])
def test_a_long_cache_of_the_released_heads(unwritten, past):
    """Every number of blocks in a split, at the capacity that engines have by default."""
    inputs, expected = case(past, [past], 8256, 2, 5, 128, torch.float32)
    y = attend(inputs, 10, unwritten)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=1e-5)
    assert splits(8256) == 32


def test_what_lies_behind_a_rows_tokens_does_not_count(unwritten):
    """Not even NaN, which a cache's memory may hold there."""
    inputs, expected = case(3, [70, 5], 300, 2, 2, 16, torch.float32)
    for cache in inputs[1:3]:
        cache[0, :, 71:] = cache[1, :, 6:] = float("nan")
    y = attend(inputs, 4, unwritten)
    np.testing.assert_allclose(y.numpy(), expected, rtol=0, atol=2e-6)


def test_large_scores_do_not_overflow(unwritten):
    """One score of 1e4 among small ones takes all weight."""
    (q, key, value, past), _ = case(4, [200], 256, 1, 1, 16, torch.float32)
    key[0, 0, 150] = q[0, 0] * 1e4 / (q[0, 0] ** 2).sum()
    y = decode_attention(q, key, value, past, 1, unwritten)
    np.testing.assert_allclose(y[0, 0].numpy(), value[0, 0, 150].numpy(), rtol=0, atol=1e-6)
