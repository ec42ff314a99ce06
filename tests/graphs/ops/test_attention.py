"""Function bodies of the two attention operators against their NumPy references."""

import numpy as np
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument

from ernie_export.graphs.ops.cached_attention.reference import cached_attention
from ernie_export.graphs.ops.vision_attention.reference import vision_attention

BODIES = [("portable", "onnxruntime"), ("onnxruntime", "onnxruntime"), ("portable", "onnx"), ("rtx", "onnxruntime")]
STEPS = {  # past, new tokens of each row, tokens in the call
    "prefill": ([0], [6], 6),
    "ragged prefill": ([0, 0, 0], [5, 2, 7], 7),
    "chunk after a past": ([3], [4], 4),
    "ragged decode": ([4, 9, 0], [1, 1, 1], 1),
}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 8), (5, 1, 16), (3, 3, 24)])
@pytest.mark.parametrize(("lowering", "evaluator"), BODIES)
def test_cached_attention(run_op, lowering, evaluator, heads, kv_heads, dim, step):
    rng = np.random.default_rng(heads)
    past, new = (np.array(x) for x in STEPS[step][:2])
    tokens = STEPS[step][2]
    rows = len(past)
    capacity = 16
    cache = (rows, kv_heads, capacity, dim)
    arrays = {
        "q": normal(rng, rows, tokens, heads * dim),
        "k": normal(rng, rows, tokens, kv_heads * dim),
        "v": normal(rng, rows, tokens, kv_heads * dim),
        "past_key": normal(rng, *cache),
        "past_value": normal(rng, *cache),
        "past_lengths": past,
        "lengths": new,
    }
    q, k, v, past_key, past_value, _, _ = arrays.values()
    expected = cached_attention(q, k, v, past_key, past_value, past, new, heads, kv_heads)
    arrays["capacity"] = np.array([capacity])
    place = {"shape": np.array([rows, tokens]), "past_lengths": past, "capacity": arrays["capacity"]}
    if lowering == "onnxruntime":  # its body takes no mask
        arrays["mask"] = np.zeros((1, 1, 1, 1), bool)
    else:
        (arrays["mask"],) = run_op("CausalMask", lowering, place, {}, [(bool, 4)], evaluator)
    outputs = [(np.float32, 3), (np.float32, 4), (np.float32, 4)]
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads}
    if lowering == "onnxruntime" and rows > 1 < tokens:
        with pytest.raises(InvalidArgument, match="batch_size must be 1 when sequence_length > 1"):
            run_op("CachedAttention", lowering, arrays, attributes, outputs, evaluator)
        return
    y, keys, values = run_op("CachedAttention", lowering, arrays, attributes, outputs, evaluator)
    real = np.arange(tokens) < new[:, None]
    np.testing.assert_allclose(y[real], expected[0][real], rtol=0, atol=2e-6)
    filled = np.arange(capacity) < (past + new)[:, None]
    for found, wanted in ((keys, expected[1]), (values, expected[2])):
        assert np.array_equal(found.transpose(0, 2, 1, 3)[filled], wanted.transpose(0, 2, 1, 3)[filled])


@pytest.mark.parametrize(("lowering", "evaluator"), BODIES)
def test_vision_attention(run_op, lowering, evaluator):
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, 3, 20, 32) for _ in range(3))
    arrays = {"q": q, "k": k, "v": v}
    (y,) = run_op("VisionAttention", lowering, arrays, {"num_heads": 4}, [(np.float32, 3)], evaluator)
    np.testing.assert_allclose(y, vision_attention(q, k, v, 4), rtol=0, atol=2e-6)
