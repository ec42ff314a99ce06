"""The function body of multimodal RoPE against the NumPy reference, and its constants against their definition."""

import numpy as np
import pytest

from ernie_export.graphs.ops.mrope import reference


@pytest.mark.parametrize(
    ("lowering", "evaluator"), [("portable", "onnxruntime"), ("portable", "onnx"), ("rtx", "onnxruntime")]
)
@pytest.mark.parametrize("section", [(1, 1, 2), (6, 6, 4), (22, 22, 20)])
def test_body_equals_reference(run_op, section, lowering, evaluator):
    rng = np.random.default_rng(sum(section))
    dim = 2 * sum(section)
    heads = 4
    kv_heads = 2
    rows = 2
    tokens = 7
    q = rng.standard_normal((rows, tokens, heads * dim)).astype(np.float32)
    k = rng.standard_normal((rows, tokens, kv_heads * dim)).astype(np.float32)
    positions = rng.integers(0, 3000, (3, rows, tokens))
    inv_freq = reference.inverse_frequencies(dim, 5e5)
    axes = reference.axes(section)
    attributes = {
        "num_heads": heads,
        "kv_num_heads": kv_heads,
        "inv_freq": inv_freq.tolist(),
        "axes": axes.tolist(),
    }
    tables = {name: attributes[name] for name in ("inv_freq", "axes")} | {
        "scale": float(reference.attention_scale(dim))
    }
    only = {"position_ids": positions}
    names = ("q_cos", "q_sin", "k_cos", "k_sin")
    made = run_op("RotaryTables", lowering, only, tables, [(np.float32, 3)] * 4, evaluator)
    inputs = {"q": q, "k": k, "position_ids": positions} | dict(zip(names, made))
    outputs = run_op("MultimodalRope", lowering, inputs, attributes, [(np.float32, 3)] * 2, evaluator)
    for x, y, n, scale in zip((q, k), outputs, (heads, kv_heads), (reference.attention_scale(dim), 1)):
        expected = reference.rotate(x.reshape(rows, tokens, n, dim), positions, inv_freq, axes).reshape(x.shape) * scale
        np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)


def test_axes_alternate_height_and_width_before_time():
    assert reference.axes((2, 2, 3)).tolist() == [1, 2, 1, 2, 0, 0, 0]
    assert reference.axes((22, 22, 20)).tolist() == [1, 2] * 22 + [0] * 20


def test_rotation_depends_on_each_pairs_own_axis():
    """Moving one axis turns the pairs of that axis and no others."""
    inv_freq = reference.inverse_frequencies(8, 100.0)
    axes = reference.axes((1, 1, 2))
    x = np.ones((1, 1, 1, 8), np.float32)
    for axis in range(3):
        positions = np.zeros((3, 1, 1), np.int64)
        positions[axis] = 5
        turned = np.abs(reference.rotate(x, positions, inv_freq, axes) - x).reshape(4, 2).max(-1) > 1e-6
        assert turned.tolist() == (axes == axis).tolist()
