"""The kernel of multimodal RoPE, in Triton's interpreter, against the NumPy reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.graphs.ops.mrope import plugin, reference
from ernie_export.graphs.ops.mrope.launch import rope

pytestmark = pytest.mark.usefixtures("interpreted")
# Half a unit in the last place below 2; a whole one for bfloat16, which the interpreter cuts where a GPU rounds.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2**-11, torch.bfloat16: 2**-7}


def case(seed, rows, tokens, heads, section, dtype):
    rng = np.random.default_rng(seed)
    dim = 2 * sum(section)
    x = [torch.from_numpy(rng.uniform(-1, 1, (rows, tokens, n * dim)).astype(np.float32)).to(dtype) for n in heads]
    positions = rng.integers(0, 200_000, (3, rows, tokens))
    return *x, positions, reference.inverse_frequencies(dim, 5e5), reference.axes(section)


def check(x, found, n, positions, inv_freq, axes, scale):
    rows, tokens, size = x.shape
    by_head = x.float().numpy().reshape(rows, tokens, n, size // n)
    expected = reference.rotate(by_head, positions, inv_freq, axes).reshape(x.shape) * scale
    assert found.dtype == x.dtype
    np.testing.assert_allclose(found.float().numpy(), expected, rtol=0, atol=TOLERANCE[x.dtype])


@pytest.mark.parametrize("tactic", range(len(plugin.kernel_plugin().tactics)))
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.data())
def test_kernel_equals_reference(unwritten, tactic, data):
    rows = data.draw(st.integers(1, 2), "rows")
    tokens = data.draw(st.integers(1, 5), "tokens")
    heads = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 5)), "heads")
    section = data.draw(st.sampled_from([(1, 1, 0), (1, 1, 1), (2, 2, 3), (22, 22, 20)]), "section")
    dtype = data.draw(st.sampled_from(sorted(TOLERANCE, key=str)), "dtype")
    q, k, positions, inv_freq, axes = case(data.draw(st.integers(0, 99), "seed"), rows, tokens, heads, section, dtype)
    inputs = (torch.from_numpy(positions), torch.from_numpy(inv_freq), torch.from_numpy(axes).int())
    outputs = rope(q, k, *inputs, heads, unwritten, tactic)
    scales = reference.attention_scale(2 * sum(section)), 1
    for x, found, n, scale in zip((q, k), outputs, heads, scales):
        check(x, found, n, positions, inv_freq, axes, scale)


def test_in_place():
    q, k, positions, inv_freq, axes = case(0, 2, 5, (5, 2), (2, 2, 3), torch.float32)
    before = [q.clone(), k.clone()]
    memory = iter((q, k))
    inputs = (torch.from_numpy(positions), torch.from_numpy(inv_freq), torch.from_numpy(axes).int())
    rope(q, k, *inputs, (5, 2), lambda shape, dtype: next(memory))
    for x, found, n, scale in zip(before, (q, k), (5, 2), (reference.attention_scale(14), 1)):
        check(x, found, n, positions, inv_freq, axes, scale)


def test_position_zero_turns_nothing(unwritten):
    """Heads of 16: their scale, a quarter, is exact."""
    q, k, positions, inv_freq, axes = case(1, 1, 3, (3, 1), (3, 3, 2), torch.bfloat16)
    inputs = (torch.from_numpy(positions * 0), torch.from_numpy(inv_freq), torch.from_numpy(axes).int())
    outputs = rope(q, k, *inputs, (3, 1), unwritten)
    assert torch.equal(outputs[0], q / 4) and torch.equal(outputs[1], k)
