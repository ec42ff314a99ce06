"""ONNX Runtime's MoE operator on one token: what it costs that six experts fall unevenly on the threads.

    python benchmarks/expert_balance.py

The operator deals experts to threads by number. Rows: experts drawn from all; as many from either half of the numbers;
each expert in two halves of its width, one in either half of the numbers. Sizes are those of make_checkpoint.py's
model, float32, with more weights than the processor caches. Median of 100 calls.
"""

import time

import click
import numpy as np
import onnx
import onnxruntime as ort
from make_checkpoint import SHAPES
from rich.console import Console
from rich.table import Table

CALLS = 100
WARMUP = 20
COPIES = 6
TEXT = SHAPES["m600"]["text"]
HIDDEN, EXPERTS, CHOSEN = (TEXT[key] for key in ("hidden_size", "moe_num_experts", "moe_k"))
WIDTH = TEXT["moe_intermediate_size"][0]


@click.command()
@click.option("--threads", default=2, show_default=True)
def main(threads: int) -> None:
    """Print milliseconds and bytes of weights a second."""
    table = Table("experts", "ms", "GB/s", title=f"MoE, one token, {threads} threads")
    nbytes = CHOSEN * 3 * HIDDEN * WIDTH * 4
    for name, parts, even in (("as they fall", 1, False), ("three and three", 1, True), ("in halves", 2, False)):
        seconds = measure(parts, even, threads)
        table.add_row(name, f"{1e3 * seconds:.2f}", f"{nbytes / seconds / 1e9:.1f}")
    Console().print(table)


def measure(parts: int, even: bool, threads: int) -> float:
    """Seconds of a call with every expert in so many parts; `even`: chosen as often from either half."""
    rng = np.random.default_rng(0)
    experts = EXPERTS * parts
    width = WIDTH // parts
    shapes = {"gate_up": (experts, 2 * width, HIDDEN), "down": (experts, HIDDEN, width)}
    weights = [{n: rng.standard_normal(s, np.float32) * 0.02 for n, s in shapes.items()} for _ in range(COPIES)]
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model(shapes, parts), options, providers=["CPUExecutionProvider"])
    seconds = []
    for number in range(CALLS + WARMUP):
        half = EXPERTS // 2
        halves = [rng.choice(half, CHOSEN // 2, replace=False) + start for start in (0, half)]
        chosen = np.concatenate(halves) if even else rng.choice(EXPERTS, CHOSEN, replace=False)
        router = np.full((1, EXPERTS), -1e30, np.float32)
        router[0, chosen] = 0
        feeds = {"x": rng.standard_normal((1, HIDDEN), np.float32), "router": np.tile(router, (1, parts))}
        feeds |= weights[number % COPIES]
        started = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[WARMUP:]))


def model(shapes: dict[str, tuple[int, ...]], parts: int) -> bytes:
    """The operator alone, its weights as inputs."""
    inputs = {"x": [None, HIDDEN], "router": [None, shapes["down"][0]], **shapes}
    attributes = {"k": CHOSEN * parts, "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.0}
    names = ["x", "router", "gate_up", "", "down"]
    node = onnx.helper.make_node("MoE", names, ["y"], domain="com.microsoft", activation_beta=0.0, **attributes)
    float32 = onnx.TensorProto.FLOAT
    values = [onnx.helper.make_tensor_value_info(name, float32, shape) for name, shape in inputs.items()]
    output = onnx.helper.make_tensor_value_info("y", float32, None)
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    graph = onnx.helper.make_graph([node], "moe", values, [output])
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


if __name__ == "__main__":
    main()
