"""The bodies of QuantizedLinear and Float8Linear against the NumPy reference, and that against plain arithmetic."""

import ml_dtypes
import numpy as np
import pytest

from ernie_export.graphs.ops.quantized_linear.reference import dequantize, dequantize_float8, quantized_linear

SHAPES = [(1, 32, 16, 16), (5, 96, 40, 32), (3, 320, 7, 64), (33, 256, 48, 128)]  # T, K, N, group


def case(bits: int, tokens: int, width: int, outputs: int, group: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(width)
    return {
        "x": rng.standard_normal((tokens, width)).astype(np.float32),
        "qweight": rng.integers(0, 256, (outputs, width // group, group * bits // 8), dtype=np.uint8),
        "scales": rng.uniform(-0.02, 0.02, (outputs, width // group)).astype(np.float32),
    }


@pytest.mark.parametrize("bits", [4, 8])
def test_reference_reads_code_by_code(bits):
    """Value j of a row by hand: its bits out of the row's bytes, its group's scale."""
    inputs = case(bits, 1, 96, 4, 32)
    weights = dequantize(inputs["qweight"], inputs["scales"], bits)
    assert weights.shape == (4, 96)
    for row in range(4):
        number = int.from_bytes(inputs["qweight"][row].tobytes(), "little")
        for j in range(96):
            code = number >> (j * bits) & (2**bits - 1)
            assert weights[row, j] == inputs["scales"][row, j // 32] * np.float32(code - 2 ** (bits - 1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("lowering", "evaluator", "error"),
    [("portable", "onnxruntime", 1e-6), ("portable", "onnx", 1e-6), ("onnxruntime", "onnxruntime", 0.01)],
)
def test_body_equals_reference(run_op, lowering, evaluator, error, bits, shape):
    """The fused kernel rounds rows of x to 8 bits; a code or scale out of place costs 50 times as much."""
    inputs = case(bits, *shape)
    expected = quantized_linear(**inputs, bits=bits)
    _, width, outputs, group = shape
    attributes = {"K": width, "N": outputs, "bits": bits, "group": group}
    arguments = "QuantizedLinear", lowering, inputs, attributes, [(np.float32, 2)], evaluator
    (y,) = run_op(*arguments, constants=("qweight", "scales"))
    assert np.linalg.norm(y - expected) <= error * np.linalg.norm(expected)


def e4m3(byte: int) -> float:
    """A finite e4m3 number from its bits: sign, 4 of exponent (bias 7), 3 of mantissa."""
    exponent = byte >> 3 & 15
    mantissa = byte & 7
    value = (8 + mantissa) * 2.0 ** (exponent - 10) if exponent else mantissa * 2.0**-9
    return -value if byte & 128 else value


def test_reference_reads_float8_bit_by_bit():
    finite = [byte for byte in range(256) if byte & 127 != 127]
    qweight = np.array(finite[:240], np.uint8).view(ml_dtypes.float8_e4m3fn).reshape(5, 48)
    scales = np.arange(1, 16, dtype=np.float32).reshape(5, 3)
    expected = [e4m3(byte) * scales[i // 48, i % 48 // 16] for i, byte in enumerate(finite[:240])]
    assert np.array_equal(dequantize_float8(qweight, scales).reshape(-1), np.array(expected, np.float32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("lowering", ["portable", "onnxruntime"])
def test_float8_body_equals_reference(run_op, lowering, shape):
    tokens, width, outputs, group = shape
    inputs = case(8, *shape)
    inputs["qweight"] = inputs["x"][:1].repeat(outputs, 0).astype(ml_dtypes.float8_e4m3fn).reshape(outputs, -1, group)
    expected = inputs["x"] @ dequantize_float8(inputs["qweight"].reshape(outputs, width), inputs["scales"]).T
    attributes = {"K": width, "N": outputs, "group": group}
    outs = [(np.float32, 2)]
    (y,) = run_op("Float8Linear", lowering, inputs, attributes, outs, constants=("qweight", "scales"))
    assert np.linalg.norm(y - expected) <= 1e-6 * np.linalg.norm(expected)
