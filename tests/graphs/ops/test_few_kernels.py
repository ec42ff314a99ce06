"""The expert kernels for a token or two, in Triton's interpreter, against the NumPy reference and the other kernels.

By the chain of engines of up to two sequences, or as the first and the last launch of that of more.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.graphs.ops.moe_dispatch import reference
from ernie_export.graphs.ops.moe_dispatch.launch import DECODE, moe_dispatch
from tests.graphs.ops.test_moe_kernels import NORM_MIN, QWEIGHT, Experts, case, check, expert_group, stored_group

pytestmark = pytest.mark.usefixtures("interpreted")
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.012, torch.float16: 0.0015}


def tensors(arrays: Experts, dtype: torch.dtype) -> list[torch.Tensor]:
    gate, bias, *weights = (torch.from_numpy(array) for array in arrays)
    return [gate, bias, *(weight.to(dtype) for weight in weights)]


def rounded(group: Experts, dtype: torch.dtype) -> Experts:
    """The expert group as its weights are in `dtype`."""
    gate, bias, *weights = group
    gate_up, down = (torch.from_numpy(weight).to(dtype).float().numpy() for weight in weights)
    return gate, bias, gate_up, down


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.data())
def test_kernels_equal_the_reference(unwritten, data):
    """Any sizes, and more tokens than they are meant for."""
    tokens = data.draw(st.integers(1, 3), "tokens")
    hidden = data.draw(st.integers(1, 50), "hidden")
    experts = data.draw(st.integers(1, 7), "experts")
    width = data.draw(st.integers(1, 40), "width")
    k = data.draw(st.integers(1, min(experts, 4)), "k")
    dtype = data.draw(st.sampled_from(sorted(TOLERANCE, key=str)), "dtype")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), "seed"))
    group = expert_group(rng, hidden, experts, width)
    x = torch.from_numpy(rng.standard_normal((tokens, hidden)).astype(np.float32) / hidden**0.5).to(dtype)
    attributes = {"k": k, "norm_min": NORM_MIN}
    found = moe_dispatch(x, None, tensors(group, dtype), None, attributes, unwritten, DECODE, few=True)
    expected = reference.expert_group(x.float().numpy(), *rounded(group, dtype), k=k, norm_min=NORM_MIN)
    check(found, *expected, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", QWEIGHT)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(data=st.data())
def test_stored_weights_equal_the_reference(unwritten, kind, data):
    draw = data.draw
    group = draw(st.sampled_from([16, 32, 64]), "group")
    tokens = draw(st.integers(1, 2), "tokens")
    hidden, width = (group * draw(st.integers(1, 64 // group), name) for name in ("H", "I"))
    experts = draw(st.integers(1, 3), "experts")
    k = draw(st.integers(1, experts), "k")
    dtype = draw(st.sampled_from(sorted(TOLERANCE, key=str)), "dtype")
    rng = np.random.default_rng(draw(st.integers(0, 99), "seed"))
    text, meant = stored_group(rng, kind, hidden, experts, width, group, dtype)
    x = torch.from_numpy(rng.standard_normal((tokens, hidden)).astype(np.float32) / hidden**0.5).to(dtype)
    storage, attributes, _ = QWEIGHT[kind]
    attributes = attributes | {"k": k, "norm_min": NORM_MIN, "group": group}
    found = moe_dispatch(x, None, text, None, attributes, unwritten, DECODE, storage, few=True)
    expected = reference.expert_group(x.float().numpy(), *meant, k=k, norm_min=NORM_MIN)
    check(found, *expected, TOLERANCE[dtype])


@pytest.mark.parametrize("kind", ["", *QWEIGHT])
@pytest.mark.parametrize(("hidden", "width"), [(528, 16), (16, 528)])
def test_a_row_of_several_steps(unwritten, kind, hidden, width):
    """Steps that do not divide a row, in groups of 16."""
    rng = np.random.default_rng(hidden)
    x = rng.standard_normal((1, hidden)).astype(np.float32) / hidden**0.5
    storage, bits, _ = QWEIGHT[kind] if kind else ("", {}, 0)
    attributes = {**bits, "k": 2, "norm_min": NORM_MIN, "group": 16}
    if kind:
        text, meant = stored_group(rng, kind, hidden, 2, width, 16, torch.float32)
    else:
        meant = expert_group(rng, hidden, 2, width)
        text = tensors(meant, torch.float32)
    given = torch.from_numpy(x)
    found = moe_dispatch(given, None, text, None, attributes, unwritten, DECODE, storage, few=True)
    check(found, *reference.expert_group(x, *meant, k=2, norm_min=NORM_MIN))


def test_they_choose_and_weigh_as_the_other_kernels_do(unwritten):
    """Among equal scores, too, and where a bias chooses experts of next to no probability."""
    x, group = case(3, 2, 24, 12, (8,))
    gate, bias = group[:2]
    gate[:, 3:9] = gate[:, 3:4]
    bias[:] = 0
    bias[9] = 2
    attributes = {"k": 5, "norm_min": 0.4}
    found, other = (
        moe_dispatch(torch.from_numpy(x), None, tensors(group, torch.float32), None, attributes, unwritten, DECODE,
                     few=few)
        for few in (True, False)
    )  # fmt: skip
    assert torch.equal(found["experts"], other["experts"])
    torch.testing.assert_close(found["y"], other["y"], rtol=1e-5, atol=1e-6)


def test_the_answer_does_not_depend_on_the_order_of_programs(unwritten, reversed_programs):
    x, group = case(3, 2, 140, 6, (24,))
    attributes = {"k": 3, "norm_min": NORM_MIN}

    def run():
        given = tensors(group, torch.float32)
        return moe_dispatch(torch.from_numpy(x), None, given, None, attributes, unwritten, DECODE, few=True)

    forward = run()
    reversed_programs()
    backward = run()
    for name in ("experts", "few_act", "y"):
        assert torch.equal(forward[name], backward[name]), name


def test_not_a_number_harms_its_own_token_only(unwritten):
    group: Experts
    x, group = case(8, 2, 24, 6, (12,))
    expected, _ = reference.expert_group(x, *group, k=3, norm_min=NORM_MIN)
    x[0] = np.nan
    with np.errstate(invalid="ignore"):
        given = tensors(group, torch.float32)
        attributes = {"k": 3, "norm_min": NORM_MIN}
        found = moe_dispatch(torch.from_numpy(x), None, given, None, attributes, unwritten, DECODE, few=True)
    assert all(len(set(row)) == 3 and 0 <= min(row) and max(row) < 6 for row in found["experts"].tolist())
    y = found["y"].numpy()
    assert np.isnan(y[0]).all()
    np.testing.assert_allclose(y[1], expected[1], rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize("kind", ["", *QWEIGHT])
def test_engines_of_more_sequences_run_the_same_kernels_for_a_token_or_two(unwritten, kind):
    """What the kernels for more tokens would write is left unwritten, and for more tokens the others do all of it."""
    rng = np.random.default_rng(5)
    storage, bits, _ = QWEIGHT[kind] if kind else ("", {}, 0)
    attributes = {**bits, "k": 3, "norm_min": NORM_MIN, "group": 16}
    if kind:
        text, meant = stored_group(rng, kind, 48, 5, 32, 16, torch.float32)
    else:
        meant = expert_group(rng, 48, 5, 32)
        text = tensors(meant, torch.float32)
    x = torch.from_numpy(rng.standard_normal((3, 48)).astype(np.float32))
    for tokens in (1, 2, 3):
        given = x[:tokens].contiguous()
        found = moe_dispatch(given, None, text, None, attributes, unwritten, DECODE, storage)
        check(found, *reference.expert_group(given.numpy(), *meant, k=3, norm_min=NORM_MIN))
        assert found["few_act"].isnan().all() == (tokens == 3)
        for name in ("weights", "act", "out"):
            assert found[name].isnan().all() == (tokens < 3), name
        alone = moe_dispatch(given, None, text, None, attributes, unwritten, DECODE, storage, few=True)
        assert torch.equal(alone["experts"], found["experts"])
        assert torch.equal(alone["y"], found["y"]) == (tokens < 3)
