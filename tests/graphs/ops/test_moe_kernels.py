"""The kernels of expert dispatch, in Triton's interpreter, against the NumPy reference.

The interpreter runs a grid's programs one after the other, so it can't show a race. What it can show stands in
`test_answer_does_not_depend_on_the_order_of_programs`.
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ernie_export.common.errors import UserError
from ernie_export.graphs.ops.kernel_plugin import launch
from ernie_export.graphs.ops.moe_dispatch import plugin as moe_plugin
from ernie_export.graphs.ops.moe_dispatch import reference, support
from ernie_export.graphs.ops.moe_dispatch.launch import DECODE, PREFILL, PREFILL_QUANTIZED, moe_dispatch
from ernie_export.graphs.ops.quantized_linear import plugin as linear_plugin
from ernie_export.graphs.ops.quantized_linear.reference import dequantize, dequantize_float8

pytestmark = pytest.mark.usefixtures("interpreted")
NORM_MIN = 1e-12
MIXES = {
    "mixed": lambda t: t * 7 % 5 % 3,
    "text only": lambda t: t * 0,
    "vision only": lambda t: t * 0 + 2,
    "one vision token": lambda t: (t == 3).astype(np.int64),
}

Experts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # gate, bias, gate_up, down


def expert_group(rng, hidden, experts, width) -> Experts:
    shapes = (hidden, experts), (experts,), (experts, 2 * width, hidden), (experts, hidden, width)
    gate, bias, gate_up, down = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes)
    return gate, bias, gate_up, down


def case(seed, tokens, hidden, experts, widths):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    expert_groups: list[Any] = [expert_group(rng, hidden, experts, width) for width in widths]
    return x, *expert_groups


@pytest.fixture(scope="module")
def run(unwritten):
    """run(x, types, text, vision, k, tactics): the chain's tensors, with x and the expert weights in `dtype`.

    Without `types` and `vision` by the text expert group alone.
    """

    def tensors(arrays, dtype):
        gate, bias, *weights = (torch.from_numpy(array) for array in arrays)
        return gate, bias, *(weight.to(dtype) for weight in weights)

    def run(x, types, text, vision, k, tactics, dtype=torch.float32, few=False):
        types, vision = (None, None) if types is None else (torch.from_numpy(types), tensors(vision, dtype))
        x, text = torch.from_numpy(x).to(dtype), tensors(text, dtype)
        return moe_dispatch(x, types, text, vision, {"k": k, "norm_min": NORM_MIN}, unwritten, tactics, few=few)

    return run


# How weights are stored -> the operators' prefix, its attributes, bits a value.
QWEIGHT = {"int4": ("Quantized", {"bits": 4}, 4), "int8": ("Quantized", {"bits": 8}, 8), "fp8": ("Float8", {}, 8)}


def stored(rng, kind, shape, group, dtype):
    """Random qweight (..., K·bits/32) int32 and scales in `dtype`, and the weights that they stand for (float32)."""
    _, _, bits = QWEIGHT[kind]
    widest = 0.5 if kind == "fp8" else 0.8 / 2 ** (bits - 1)
    scales = rng.uniform(-widest, widest, (*shape[:-1], shape[-1] // group)).astype(np.float32)
    scales = torch.from_numpy(scales).to(dtype)
    meant = scales.float().numpy()
    if kind == "fp8":
        qweight = torch.from_numpy(rng.standard_normal(shape).astype(np.float32)).to(torch.float8_e4m3fn)
        numbers = qweight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
        return qweight.view(torch.int32), scales, dequantize_float8(numbers, meant)
    qweight = rng.integers(0, 256, (*shape[:-1], shape[-1] * bits // 8), dtype=np.uint8)
    return torch.from_numpy(qweight).view(torch.int32), scales, dequantize(qweight, meant, bits)


def stored_group(rng, kind, hidden, experts, width, group, dtype) -> tuple[list[torch.Tensor], Experts]:
    """An expert group's inputs, and the expert group that they stand for."""
    gate, bias, _, _ = expert_group(rng, hidden, experts, width)
    gate_up, gate_up_scales, gate_up_meant = stored(rng, kind, (experts, 2 * width, hidden), group, dtype)
    down, down_scales, down_meant = stored(rng, kind, (experts, hidden, width), group, dtype)
    inputs = [torch.from_numpy(gate), torch.from_numpy(bias), gate_up, gate_up_scales, down, down_scales]
    return inputs, (gate, bias, gate_up_meant, down_meant)


@pytest.mark.parametrize("kind", QWEIGHT)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_stored_weights_equal_reference(unwritten, kind, data):
    """Against the reference on the weights that qweight and scales stand for: integers are multiplied exactly.

    The interpreter truncates to bfloat16, three times by up to 2^-8 of what is added to y.
    """
    draw = data.draw
    group = draw(st.sampled_from([16, 32, 64]), "group")
    tokens = draw(st.integers(1, 20), "tokens")
    hidden, *widths = (group * draw(st.integers(1, 64 // group), name) for name in ("H", "text I", "vision I"))
    experts = draw(st.integers(1, 3), "experts")
    tactics = draw(st.sampled_from([DECODE, PREFILL_QUANTIZED]), "tactics")
    k = draw(st.integers(1, experts), "k")
    both = draw(st.booleans(), "both expert groups")
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), "dtype")
    rng = np.random.default_rng(draw(st.integers(0, 99), "seed"))
    text, text_meant = stored_group(rng, kind, hidden, experts, widths[0], group, dtype)
    vision, vision_meant = stored_group(rng, kind, hidden, experts, widths[1], group, dtype)
    x = torch.from_numpy(rng.standard_normal((tokens, hidden)).astype(np.float32)).to(dtype)
    plain = x.float().numpy()
    types = MIXES["mixed"](np.arange(tokens))
    storage, attributes, _ = QWEIGHT[kind]
    attributes = attributes | {"k": k, "norm_min": NORM_MIN, "group": group}
    if both:
        expected = reference.moe_dispatch(plain, types, text_meant, vision_meant, k, NORM_MIN)
    else:
        expected = reference.expert_group(plain, *text_meant, k=k, norm_min=NORM_MIN)
    token_types = torch.from_numpy(types) if both else None
    found = moe_dispatch(x, token_types, text, vision if both else None, attributes, unwritten, tactics, storage)
    check(found, *expected, {torch.float32: 3e-6, torch.bfloat16: 0.016, torch.float16: 0.0015}[dtype])


@pytest.mark.parametrize("kind", QWEIGHT)
@pytest.mark.parametrize(
    ("tokens", "width", "outputs", "group", "dtype", "tolerance"),
    [
        (1, 32, 16, 16, torch.float32, 3e-6),
        (5, 96, 40, 32, torch.float32, 3e-6),
        (70, 128, 24, 64, torch.float32, 3e-6),
        (5, 96, 40, 32, torch.bfloat16, 2**-7),
        (5, 96, 40, 32, torch.float16, 2**-11),
    ],
)
def test_stored_linear_equals_reference(unwritten, kind, tokens, width, outputs, group, dtype, tolerance):
    """Every tactic of the linear layers' plugin; in 16 bits only the result is rounded (by the interpreter down)."""
    rng = np.random.default_rng(width)
    qweight, scales, weights = stored(rng, kind, (outputs, width), group, dtype)
    x = torch.from_numpy(rng.standard_normal((tokens, width)).astype(np.float32)).to(dtype)
    storage, attributes, bits = QWEIGHT[kind]
    inputs = {"x": x, "qweight": qweight.reshape(outputs, -1, group * bits // 32), "scales": scales}
    plugin = linear_plugin.kernel_plugin(storage)
    for tactic in plugin.tactics:
        (y,) = launch(plugin, inputs, attributes | {"K": width, "N": outputs, "group": group}, tactic, unwritten)
        expected = x.float().numpy() @ weights.T
        np.testing.assert_allclose(y.float().numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def check(found, expected, experts, tolerance=3e-6):
    assert np.array_equal(found["experts"].numpy(), experts)
    y = found["y"].float().numpy()
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-3))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.data())
def test_chain_equals_reference(run, data):
    tokens = data.draw(st.integers(1, 20), "tokens")
    hidden = data.draw(st.integers(1, 50), "hidden")
    experts = data.draw(st.integers(1, 7), "experts")
    widths = data.draw(st.tuples(*[st.integers(1, 40)] * 2), "widths")
    k = data.draw(st.integers(1, experts), "k")
    mix = data.draw(st.sampled_from(sorted(MIXES)), "types")
    tactics = data.draw(st.sampled_from([DECODE, PREFILL]), "tactics")
    x, text, vision = case(data.draw(st.integers(0, 99), "seed"), tokens, hidden, experts, widths)
    types = MIXES[mix](np.arange(tokens))
    check(run(x, types, text, vision, k, tactics), *reference.moe_dispatch(x, types, text, vision, k, NORM_MIN))


@pytest.mark.parametrize("tactics", [DECODE, PREFILL], ids=["decode", "prefill"])
@pytest.mark.parametrize(("tokens", "k"), [(3, 4), (9, 5), (66, 2)])
def test_one_expert_group_equals_reference(run, tokens, k, tactics):
    """Tiles are found in the slots themselves: 132 slots are more than one block of them."""
    text: Experts
    x, text = case(tokens, tokens, 33, 5, (21,))
    check(run(x, None, text, None, k, tactics), *reference.expert_group(x, *text, k=k, norm_min=NORM_MIN))


def test_every_tactic_equals_the_first(run, unwritten):
    """Widths of no block's multiple; more tokens than the smallest block of slots, so that an expert has two tiles."""
    x, text, vision = case(5, 19, 40, 3, (37, 19))
    types = MIXES["mixed"](np.arange(19))
    found = run(x, types, text, vision, 2, DECODE)
    check(found, *reference.moe_dispatch(x, types, text, vision, 2, NORM_MIN))
    values = {"k": 2, "norm_min": NORM_MIN}
    for plugin in moe_plugin.kernel_plugins(vision=True):
        attributes = {name: values[name] for name in plugin.attributes}
        names = [o.name for o in plugin.outputs({n: found[n].shape for n in plugin.inputs}, attributes)]
        for tactic in plugin.tactics:
            for name, tensor in zip(names, launch(plugin, found, attributes, tactic, unwritten)):
                torch.testing.assert_close(tensor, found[name], rtol=1e-5, atol=1e-5, equal_nan=name == "act")


@pytest.mark.parametrize("tactics", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_all_tokens_to_one_expert(run, tactics):
    """The bias decides, and does not weigh: the tokens fill many tiles of one expert, and all others have none."""
    x, text, vision = case(1, 35, 20, 4, (18, 9))
    text[1][:] = [0, 0, 9, 0]
    types = np.zeros(35, np.int64)
    expected, experts = reference.moe_dispatch(x, types, text, vision, 1, NORM_MIN)
    assert (experts == 2).all()
    found = run(x, types, text, vision, 1, tactics)
    check(found, expected, experts)
    assert found["offsets"].tolist() == [0, 0, 0, 35, 35, 35, 35, 35, 35]
    assert found["order"].tolist() == list(range(35))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.012), (torch.float16, 0.0015)])
@pytest.mark.parametrize("tactics", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_half_precision_is_rounded_three_times(run, dtype, tolerance, tactics):
    """Against float32 on the same rounded numbers: act, out and y are each rounded once, to 2^-9 or 2^-12."""
    x, text, vision = case(2, 11, 48, 5, (32, 20))
    types = MIXES["mixed"](np.arange(11))

    def rounded(array):
        return torch.from_numpy(array).to(dtype).float().numpy()

    text, vision = ((gate, bias, rounded(up), rounded(down)) for gate, bias, up, down in (text, vision))
    expected = reference.moe_dispatch(rounded(x), types, text, vision, 3, NORM_MIN)
    check(run(x, types, text, vision, 3, tactics, dtype), *expected, tolerance)


@pytest.mark.parametrize("tactics", [DECODE, PREFILL], ids=["decode", "prefill"])
def test_answer_does_not_depend_on_the_order_of_programs(run, tactics, reversed_programs):
    x, text, vision = case(3, 13, 40, 4, (24, 10))
    types = MIXES["mixed"](np.arange(13))
    forward = run(x, types, text, vision, 3, tactics)
    reversed_programs()
    backward = run(x, types, text, vision, 3, tactics)
    for name in ("partial", "experts", "slots", "weights", "offsets", "order", "out", "y"):
        assert torch.equal(forward[name], backward[name]), name
    used = forward["act"].isnan() == backward["act"].isnan()  # a vision row is narrower than act
    assert used.all() and torch.equal(forward["act"].nan_to_num(), backward["act"].nan_to_num())


def test_equal_scores_go_to_the_lower_expert(run):
    x, text = case(4, 3, 16, 6, (8,))
    text[0][:], text[1][:] = 0, 0
    found = run(x, None, text, None, 4, DECODE)
    assert found["experts"].tolist() == [[0, 1, 2, 3]] * 3
    assert np.allclose(found["weights"], 0.25)


def test_slots_ascend_and_are_grouped_in_order_of_token(run):
    x, text, vision = case(6, 14, 24, 5, (12, 6))
    types = MIXES["mixed"](np.arange(14))
    found = run(x, types, text, vision, 3, DECODE)
    slots, offsets, order = (found[name].numpy() for name in ("slots", "offsets", "order"))
    assert np.array_equal(slots, np.sort(found["experts"].numpy(), axis=1))
    assert np.array_equal(order, np.argsort(slots.reshape(-1), kind="stable"))
    assert np.array_equal(np.diff(offsets), np.bincount(slots.reshape(-1), minlength=10))


def test_norm_min_bounds_the_weights(run):
    """A token whose chosen expert has next to no probability gets a weight below 1."""
    text: Experts
    x, text = case(7, 1, 8, 3, (4,))
    x = np.repeat(x, 3, axis=0)
    text[0][:] = 0
    text[0][:, 0] = np.float32(8) * np.sign(x[0])
    text[1][:] = [0, 2, 0]
    expected, experts = reference.expert_group(x, *text, k=1, norm_min=NORM_MIN)
    found = run(x, None, text, None, 1, DECODE)
    assert experts.tolist() == [[1]] * 3 and (found["weights"] < 0.5).all()
    np.testing.assert_allclose(found["y"].numpy(), expected, rtol=1e-4)


def test_not_a_number_harms_its_own_token_only(run):
    x, text, vision = case(8, 6, 24, 5, (12, 6))
    types = MIXES["mixed"](np.arange(6))
    expected, _ = reference.moe_dispatch(x, types, text, vision, 3, NORM_MIN)
    x[2] = np.nan
    with np.errstate(invalid="ignore"):
        found = run(x, types, text, vision, 3, DECODE)
    slots = found["slots"].numpy()
    assert all(len(set(row)) == 3 and 0 <= row.min() and row.max() < 10 for row in slots)
    y = found["y"].numpy()
    others = np.arange(6) != 2
    assert np.isnan(y[2]).all()
    np.testing.assert_allclose(y[others], expected[others], rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("float32", 64, (4, 4), (8, 8), 2), "dtype: expected one of bfloat16, float16, found float32"),
        (("bfloat16", 64, (4, 8), (8, 8), 2), "vision experts: expected 4, as many as text experts, found 8"),
        (("bfloat16", 64, (4, 4), (8, 8), 5), "experts of a token: expected 1 to 4, found 5"),
        (("bfloat16", 64, (4, 4), (8, 8), 0), "experts of a token: expected 1 to 4, found 0"),
        (("bfloat16", 2**16, (4, 4), (8, 2**14), 2), "expert: expected under 2\\*\\*30 elements, found 16384 x 65536"),
    ],
)
def test_what_the_kernels_cannot_serve_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        support.check(*arguments)
    support.check("bfloat16", 2560, (64, 64), (1536, 512), 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Float8", 128, ("sm90", "sm86")), "architecture: expected sm89 or later for fp8 weights, found sm86"),
        (("Quantized", 8, ()), "group size: expected a power of two from 16, found 8"),
        (("Quantized", 48, ()), "group size: expected a power of two from 16, found 48"),
        (("Quantized", 1024, ()), "width: expected a multiple of the group of 1024, found 2560"),
    ],
)
def test_what_the_kernels_cannot_store_is_named(arguments, message):
    released = "bfloat16", 2560, (64, 64), (1536, 512), 6
    with pytest.raises(UserError, match=message):
        support.check(*released, *arguments)
    support.check(*released, "Quantized", 128, ("sm80", "sm110"))
    support.check(*released, "Float8", 128, ("sm89", "sm90", "sm100", "sm110", "sm120"))
