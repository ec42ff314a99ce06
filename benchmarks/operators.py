"""What limits this runtime on this machine: ONNX Runtime's own operators, one by one.

    python benchmarks/operators.py

Sizes are those of make_checkpoint.py's model. Best of ten runs each, two threads, float32.
"""

import time
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

HIDDEN = 1024
WIDTH = 352
EXPERTS = 32
K = 6
TOKENS = 512
HEADS = 16
KV_HEADS = 4
HEAD_DIM = 64
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Random float32 values of the size of weights."""
    return RNG.standard_normal(shape, np.float32) * np.float32(0.02)


def best(
    op_type: str,
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    outputs: tuple[str, ...] = ("y",),
    **attributes: object,
) -> float:
    """Seconds of one node, of whose `outputs` only the first is asked for.

    `inputs` and then `constants` are its inputs, in order; a name that begins with _ is left out.
    """
    domain = attributes.pop("domain", "")
    output_type = attributes.pop("output_type", TensorProto.FLOAT)
    declared = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in inputs.items()
    ]
    names = ["" if name.startswith("_") else name for name in (*inputs, *constants)]
    held = [numpy_helper.from_array(a, name) for name, a in constants.items() if not name.startswith("_")]
    node = helper.make_node(op_type, names, list(outputs), domain=domain, **attributes)
    output = helper.make_tensor_value_info("y", output_type, None)
    graph = helper.make_graph([node], "one", declared, [output], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return min(timed(lambda: session.run(None, inputs)) for _ in range(10))


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def moe(activation: str, fused: int) -> float:
    """com.microsoft::MoE over 512 tokens; `fused` is 1 for SwiGLU, whose second layer is half as wide."""
    inner = WIDTH if fused else 2 * WIDTH
    inputs = {"x": normal(TOKENS, HIDDEN), "router": RNG.standard_normal((TOKENS, EXPERTS), np.float32)}
    weights = {"fc1": normal(EXPERTS, 2 * WIDTH, HIDDEN), "_bias": np.zeros(0), "fc2": normal(EXPERTS, HIDDEN, inner)}
    extra = {"swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0} if fused else {}
    seconds = best("MoE", inputs, weights, domain="com.microsoft", k=K, activation_type=activation, **extra)
    return 2 * TOKENS * K * HIDDEN * (2 * WIDTH + inner) / seconds / 1e9


def main() -> None:
    """Measure and print."""
    weight = normal(8192, 4096)
    read = weight.nbytes / best("Gemm", {"x": normal(1, 4096)}, {"w": weight}, transB=1) / 1e9
    seconds = best("Gemm", {"x": normal(TOKENS, 4096)}, {"w": weight}, transB=1)
    gemm = 2 * TOKENS * weight.size / seconds / 1e9
    q = normal(1, TOKENS, HEADS * HEAD_DIM)
    kv = normal(1, TOKENS, KV_HEADS * HEAD_DIM)
    cache = np.zeros((1, KV_HEADS, TOKENS, HEAD_DIM), np.float32)
    lengths = {"last": np.array([TOKENS - 1], np.int32), "total": np.array([TOKENS], np.int32)}
    causal = {"q": q, "k": kv, "v": kv, "past_k": cache, "past_v": cache, **lengths}
    heads = {"domain": "com.microsoft", "num_heads": HEADS}
    present = ("y", "present_k", "present_v")
    gqa = best("GroupQueryAttention", causal, {}, present, **heads, kv_num_heads=KV_HEADS)
    absent = {f"_{name}": np.zeros(0) for name in ("cos", "sin", "position_ids", "bias")}
    sink = {**absent, "sink": np.full(HEADS, -1e30, np.float32)}
    whole = best("GroupQueryAttention", causal, sink, present, **heads, kv_num_heads=KV_HEADS)
    mha = best("MultiHeadAttention", {"q": q, "k": q, "v": q}, {}, **heads)
    table = Table("operator", "measured", title=f"ONNX Runtime {ort.__version__}, two threads, float32")
    table.add_row("Gemm, 1 row", f"{read:.0f} GB/s of weights")
    table.add_row(f"Gemm, {TOKENS} rows", f"{gemm:.0f} GFLOP/s")
    table.add_row(f"MoE, {TOKENS} tokens, SwiGLU", f"{moe('swiglu', 1):.0f} GFLOP/s")
    table.add_row(f"MoE, {TOKENS} tokens, no activation", f"{moe('identity', 0):.0f} GFLOP/s")
    table.add_row(f"GroupQueryAttention, causal, {TOKENS} tokens", f"{1e3 * gqa:.1f} ms")
    table.add_row("the same with a sink, as our graphs have it", f"{1e3 * whole:.1f} ms")
    table.add_row(f"MultiHeadAttention, not causal, {TOKENS} tokens", f"{1e3 * mha:.1f} ms")
    Console().print(table)


if __name__ == "__main__":
    main()
