"""Both function bodies of the mixture of experts against the NumPy reference."""

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.moe_dispatch import function, reference, spec
from ernie_export.graphs.ops.quantized_linear.reference import dequantize, dequantize_float8

NAMES = ("gate", "bias", "gate_up", "down")
SHORT = "onnxruntime-without-minimum"
BODIES = [
    ("portable", "onnxruntime"),
    ("onnxruntime", "onnxruntime"),
    (SHORT, "onnxruntime"),
    ("portable", "onnx"),
    ("rtx", "onnxruntime"),
]
MIXES = {"mixed": lambda t: t % 3, "text only": lambda t: t * 0, "vision only": lambda t: t * 0 + 2}

Experts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # gate, bias, gate_up, down


def expert_group(rng: np.random.Generator, hidden: int, experts: int, width: int) -> Experts:
    shapes = (hidden, experts), (experts,), (experts, 2 * width, hidden), (experts, hidden, width)
    gate, bias, gate_up, down = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in shapes)
    return gate, bias, gate_up, down


def case(seed: int) -> tuple[np.ndarray, Experts, Experts, int]:
    rng = np.random.default_rng(seed)
    tokens, hidden, experts = (int(n) for n in rng.integers((1, 4, 2), (40, 33, 12)))
    k = int(rng.integers(1, experts + 1))
    text, vision = (expert_group(rng, hidden, experts, int(width)) for width in rng.integers(1, 20, 2))
    return rng.standard_normal((tokens, hidden)).astype(np.float32), text, vision, k


def in_float32(arrays: Sequence[np.ndarray]) -> Experts:
    gate, bias, gate_up, down = (a.astype(np.float32) for a in arrays)
    return gate, bias, gate_up, down


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("lowering", "evaluator"), BODIES)
@pytest.mark.parametrize("seed", range(4))
def test_body_equals_reference(run_op, seed, lowering, evaluator, mix):
    x, text, vision, k = case(seed)
    types = MIXES[mix](np.arange(len(x)))
    expected, experts = reference.moe_dispatch(x, types, text, vision, k, 1e-12)
    inputs = {"x": x, "token_types": types}
    inputs |= {f"{name}_{kind}": a for kind, arrays in (("t", text), ("v", vision)) for name, a in zip(NAMES, arrays)}
    outputs = [(np.float32, 2), (np.int64, 2)]
    y, chosen = run_op("MoEDispatch", lowering, inputs, {"k": k, "norm_min": 1e-12}, outputs, evaluator)
    assert np.array_equal(chosen, experts)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("mix", MIXES)
def test_a_body_of_16_bits_asks_each_expert_group_for_a_row_at_least(run_op, mix):
    """The CUDA kernels refuse none. Only the rounding to 16 bits is between this and the reference."""
    x, text, vision, k = case(1)
    half = [[a.astype(np.float16) if n > 1 else a for n, a in enumerate(arrays)] for arrays in (text, vision)]
    x, types = x.astype(np.float16), MIXES[mix](np.arange(len(x)))
    text, vision = (in_float32(arrays) for arrays in half)
    expected, experts = reference.moe_dispatch(x.astype(np.float32), types, text, vision, k, 1e-12)
    inputs = {"x": x, "token_types": types}
    inputs |= {f"{name}_{kind}": a for kind, arrays in zip("tv", half) for name, a in zip(NAMES, arrays)}
    outputs = [(np.float16, 2), (np.int64, 2)]
    y, chosen = run_op("MoEDispatch", "onnxruntime", inputs, {"k": k, "norm_min": 1e-12}, outputs, "onnxruntime")
    assert np.array_equal(chosen, experts)
    assert np.linalg.norm(y - expected) <= 3e-3 * np.linalg.norm(expected)


SIZES = [(128, (96, 64), 32), (256, (128, 384), 128), (64, (16, 48), 16)]
QUANTIZED_NAMES = ("gate", "bias", "gate_up", "gate_up_scales", "down", "down_scales")


def quantized_group(
    rng: np.random.Generator, hidden: int, experts: int, width: int, bits: int | None, group: int
) -> tuple:
    """An expert group's inputs, and the weights that they stand for; `bits` None: e4m3 numbers."""
    gate, bias, _, _ = expert_group(rng, hidden, experts, width)
    stored = [gate, bias]
    meant = [gate, bias]
    for rows, columns in ((2 * width, hidden), (hidden, width)):
        scales = rng.uniform(-0.02, 0.02, (experts, rows, columns // group)).astype(np.float32)
        if bits is None:
            qweight = rng.standard_normal((experts, rows, columns)).astype(ml_dtypes.float8_e4m3fn)
            meant.append(dequantize_float8(qweight, scales))
        else:
            qweight = rng.integers(0, 256, (experts, rows, columns * bits // 8), dtype=np.uint8)
            meant.append(dequantize(qweight, scales, bits))
        stored += qweight, scales
    return tuple(stored), tuple(meant)


STORED = [
    ("portable", 4, 2e-6),
    ("portable", 8, 2e-6),
    ("portable", None, 2e-6),
    ("onnxruntime", 4, 0.02),
    ("onnxruntime", 8, 0.02),
    (SHORT, 4, 0.02),
    (SHORT, 8, 0.02),
    ("onnxruntime", None, 2e-6),
]


@pytest.mark.slow
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("hidden", "widths", "group"), SIZES)
@pytest.mark.parametrize(("lowering", "bits", "error"), STORED)
def test_quantised_body_equals_reference(run_op, lowering, error, bits, hidden, widths, group, mix):
    """The fused kernel rounds its rows to 8 bits: that error is far below a swapped code's or scale's."""
    rng = np.random.default_rng((bits or 0) + hidden)
    (text, text_meant), (vision, vision_meant) = (quantized_group(rng, hidden, 8, w, bits, group) for w in widths)
    x = rng.standard_normal((17, hidden)).astype(np.float32)
    k = 3
    types = MIXES[mix](np.arange(len(x)))
    expected, experts = reference.moe_dispatch(x, types, text_meant, vision_meant, k, 1e-12)
    expert_groups = {
        f"{n}_{kind}": a for kind, arrays in (("t", text), ("v", vision)) for n, a in zip(QUANTIZED_NAMES, arrays)
    }
    attributes = {"k": k, "norm_min": 1e-12, "group": group} | ({} if bits is None else {"bits": bits})
    outputs = [(np.float32, 2), (np.int64, 2)]
    inputs = {"x": x, "token_types": types, **expert_groups}
    op = "Float8MoEDispatch" if bits is None else "QuantizedMoEDispatch"
    y, chosen = run_op(op, lowering, inputs, attributes, outputs, constants=tuple(expert_groups))
    assert np.array_equal(chosen, experts)
    assert np.linalg.norm(y - expected) <= error * np.linalg.norm(expected)


@pytest.mark.parametrize(("lowering", "evaluator"), BODIES)
def test_bias_chooses_but_does_not_weigh(run_op, lowering, evaluator):
    """A bias that lifts an unlikely expert changes who is asked, and the answer weighs by unbiased probabilities."""
    x, text, _, _ = case(0)
    gate, _, gate_up, down = text
    bias = np.zeros(gate.shape[1], np.float32)
    bias[1] = 5
    inputs = dict(zip(("x", *NAMES), (x, gate, bias, gate_up, down)))
    outputs = [(np.float32, 2), (np.int64, 2)]
    y, chosen = run_op("ExpertGroup", lowering, inputs, {"k": 2, "norm_min": 1e-12}, outputs, evaluator)
    assert (chosen[:, 0] == 1).all()
    probs = np.exp(x @ gate) / np.exp(x @ gate).sum(-1, keepdims=True)
    pair = np.take_along_axis(probs, chosen, -1)
    weights = pair / pair.sum(-1, keepdims=True)
    expected = sum(
        weights[t, j]
        * reference.swiglu(x[t : t + 1], gate_up[chosen[t, j]], down[chosen[t, j]])
        * (np.arange(len(x)) == t)[:, None]
        for t in range(len(x))
        for j in range(2)
    )
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("tokens", [1, 2, 3, 20])
def test_an_expert_group_alone_is_right_for_few_and_many_tokens(run_op, tokens):
    """RTX's body gathers the chosen experts for 1 and 2 tokens here (3·T·k <= E) and runs all experts for more."""
    rng = np.random.default_rng(tokens)
    x = rng.standard_normal((tokens, 16)).astype(np.float32)
    arrays = expert_group(rng, 16, experts=12, width=8)
    expected, experts = reference.expert_group(x, *arrays, k=2, norm_min=1e-12)
    inputs = dict(zip(("x", *NAMES), (x, *arrays)))
    outputs = [(np.float32, 2), (np.int64, 2)]
    y, chosen = run_op("ExpertGroup", "rtx", inputs, {"k": 2, "norm_min": 1e-12}, outputs)
    assert np.array_equal(chosen, experts)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("lowering", ["portable", "onnxruntime", "rtx"])
def test_norm_min_bounds_the_weights(run_op, lowering):
    """Where the chosen experts' probabilities are below norm_min together, their weights come to less than 1."""
    x, text, _, _ = case(1)
    gate, _, gate_up, down = text
    gate = gate * 0
    gate[:, 0] = np.float32(40) * np.sign(x[0])  # token 0 wants expert 0, nearly surely
    bias = np.zeros(gate.shape[1], np.float32)
    bias[1] = 2
    inputs = dict(zip(("x", *NAMES), (x[:1], gate, bias, gate_up, down)))
    attributes = {"k": 1, "norm_min": 1e-12}
    expected, _ = reference.expert_group(x[:1], gate, bias, gate_up, down, 1, 1e-12)
    y, chosen = run_op("ExpertGroup", lowering, inputs, attributes, [(np.float32, 2), (np.int64, 2)])
    assert chosen[0, 0] == 1
    full = reference.swiglu(x[:1], gate_up[1], down[1])
    assert np.abs(expected).max() < 0.5 * np.abs(full).max(), "the case does not reach norm_min"
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6 * np.abs(full).max())


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("form", [function.GROUPS_IF_ANY, function.GROUPS_OF_SOME], ids=["cpu", "cuda"])
def test_no_expert_group_is_asked_for_no_rows(run_op, form, mix):
    """Gather finds no first row where there is none: ONNX Runtime's fused experts fail there, on a CPU before 1.32."""
    asks = "first = Constant <value_int = 0> ()\n row = Gather <axis = 0> (x, first)\n none = Sub (row, row)"
    echo = f"{asks}\n y = Add (x, none)\n k = Constant <value_int: int = @k> ()\n"
    echo += "places = Shape (x)\n all = Expand (k, places)\n experts = Cast <to = 7> (all)\n"
    texts = [
        function.group_body(spec.EXPERT_GROUP, echo),
        function.dispatch_body(spec.MOE_DISPATCH, spec.EXPERT_GROUP, form),
    ]
    x, text, vision, _ = case(2)
    inputs = {"x": x, "token_types": MIXES[mix](np.arange(len(x)))}
    inputs |= {f"{name}_{kind}": a for kind, arrays in (("t", text), ("v", vision)) for name, a in zip(NAMES, arrays)}
    outputs = [(np.float32, 2), (np.int64, 2)]
    bodies = OpBodies("echo", (lambda dtype: texts,))
    y, _ = run_op("MoEDispatch", bodies, inputs, {"k": 3, "norm_min": 1e-12}, outputs)
    assert np.array_equal(y, x)


@pytest.mark.parametrize("op", ["ExpertGroup", "QuantizedExpertGroup"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_experts_without_any_probability_weigh_nothing(run_op, op, dtype):
    """The bias chooses experts 1 and 2, whose probabilities are 0 in float32: the answer is 0, and no NaN."""
    if (op, dtype) == ("ExpertGroup", np.float16) and ort.__version__ < "1.32":
        pytest.skip("1.31.1 answers float16 with zeros on a CPU where the input is the graph's own, as in no bundle")
    rng = np.random.default_rng(3)
    (stored, meant) = (
        quantized_group(rng, 64, 8, 64, 4, 32) if "Quantized" in op else (expert_group(rng, 64, 8, 64),) * 2
    )
    gate = np.zeros((64, 8), np.float32)
    bias = np.array([0, 3, 2, 0, 0, 0, 0, 0], np.float32)
    gate[0] = [300, -100, -200, 0, 0, 0, 0, 0]
    x = np.zeros((2, 64), dtype)
    x[0, 0] = 1
    x[1, 1] = 1  # this one's probabilities are alike
    expected, experts = reference.expert_group(
        x.astype(np.float32), gate, bias, meant[2], meant[3], k=2, norm_min=1e-12
    )
    assert not expected[0].any() and expected[1].any()
    names = QUANTIZED_NAMES if "Quantized" in op else NAMES
    inputs = {n: a.astype(dtype) if a.dtype == np.float32 else a for n, a in zip(names[2:], stored[2:])}
    attributes = {"k": 2, "norm_min": 1e-12} | ({"bits": 4, "group": 32} if "Quantized" in op else {})
    every = {"x": x, "gate": gate, "bias": bias, **inputs}
    y, chosen = run_op(op, "onnxruntime", every, attributes, [(dtype, 2), (np.int64, 2)], constants=tuple(names))
    assert np.array_equal(chosen, experts)
    assert np.linalg.norm(y - expected) <= 0.02 * np.linalg.norm(expected) and not y[0].any()


@pytest.mark.parametrize("mix", MIXES)
def test_quantised_body_of_16_bits_equals_reference(run_op, mix):
    """Rounding to 16 bits alone is between the two; the widths are such as CUDA's kernels take."""
    rng = np.random.default_rng(4)
    (text, text_meant), (vision, vision_meant) = (quantized_group(rng, 128, 8, w, 4, 64) for w in (128, 64))
    x = rng.standard_normal((17, 128)).astype(np.float16)
    types = MIXES[mix](np.arange(len(x)))
    expected, experts = reference.moe_dispatch(x.astype(np.float32), types, text_meant, vision_meant, 3, 1e-12)
    expert_groups = {
        f"{n}_{kind}": a for kind, arrays in (("t", text), ("v", vision)) for n, a in zip(QUANTIZED_NAMES, arrays)
    }
    expert_groups = {n: a.astype(np.float16) if "scales" in n else a for n, a in expert_groups.items()}
    attributes = {"k": 3, "norm_min": 1e-12, "bits": 4, "group": 64}
    outputs = [(np.float16, 2), (np.int64, 2)]
    inputs = {"x": x, "token_types": types, **expert_groups}
    y, chosen = run_op(
        "QuantizedMoEDispatch", "onnxruntime", inputs, attributes, outputs, constants=tuple(expert_groups)
    )
    assert np.array_equal(chosen, experts)
    assert np.linalg.norm(y - expected) <= 0.02 * np.linalg.norm(expected)
