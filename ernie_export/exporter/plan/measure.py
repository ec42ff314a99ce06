"""Measure what this machine's processor does: streaming reads of its memory, and the products that bundles compute."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from ernie_export.common.processor import usable_cores
from ernie_export.exporter.plan.rates import Conditions, Rates
from ernie_export.graphs.layers.quantized import group_size

STREAM_BYTES = 2**30
SECONDS = 2.0  # of each measurement
WIDTH = 2048  # of the square matrices that are multiplied
TOKENS = 512  # rows of the activations, as of a chunk of a prompt
MEASUREMENTS = 4


def measure(step: Callable[[], object], stream_bytes: int = STREAM_BYTES, seconds: float = SECONDS) -> Rates:
    """Measure this machine, for `seconds` each; `step` is called after each of the four measurements."""
    found = []
    for rate in _measurements(stream_bytes, seconds):
        found.append(rate)
        step()
    return Rates(Conditions.of_now(), *found)


def _measurements(stream_bytes: int, seconds: float) -> Iterator[float]:
    yield sustained_bandwidth(stream_bytes, seconds)
    for bits in (None, 8, 4):
        yield product_rate(bits, seconds)


def sustained_bandwidth(nbytes: int, seconds: float = 3.0) -> float:
    """Return bytes a second of a streaming read that lasts, by one thread a core, each over its own part of an array.

    A single pass takes a thirtieth of a second, in which a virtual machine may get more than decode gets over seconds.
    Pages differ from each other: those of equal content may be one page of the host's, which its caches hold.
    """
    cores = usable_cores()
    numbers = np.random.default_rng(0).random(2**20 + 13, np.float32)  # no whole number of pages
    parts = np.array_split(np.resize(numbers, nbytes // numbers.itemsize), cores)
    read = 0
    with ThreadPoolExecutor(cores) as pool:
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            list(pool.map(lambda part: part.dot(part), parts))
            read += nbytes
    return read / elapsed


def product_rate(bits: int | None, seconds: float) -> float:
    """Return FLOP/s of ONNX Runtime's product of float32 activations (TOKENS, WIDTH) with a square matrix.

    Args:
        bits: Bits of the matrix's numbers; None for float32.
        seconds: How long it is measured; the fastest of the runs counts, since others may share the machine.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = ort.InferenceSession(_product(bits), options, providers=["CPUExecutionProvider"])
    inputs = {"x": np.random.default_rng(1).standard_normal((TOKENS, WIDTH), dtype=np.float32)}
    session.run(None, inputs)
    fastest = float("inf")
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        session.run(None, inputs)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * TOKENS * WIDTH * WIDTH / fastest


def _product(bits: int | None) -> bytes:
    """Return an ONNX model of one product, as bundles hold them."""
    rng = np.random.default_rng(2)
    if bits is None:
        tensors: dict[str, np.ndarray[Any, Any]] = {"w": rng.standard_normal((WIDTH, WIDTH), dtype=np.float32)}
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    else:
        group = group_size("w", WIDTH)
        packed = rng.integers(0, 256, (WIDTH, WIDTH // group, group * bits // 8), dtype=np.uint8)
        tensors = {"w": packed, "scales": np.full((WIDTH, WIDTH // group), 0.01, np.float32)}
        settings: dict[str, Any] = {"K": WIDTH, "N": WIDTH, "bits": bits, "block_size": group, "accuracy_level": 4}
        node = helper.make_node("MatMulNBits", ["x", *tensors], ["y"], domain="com.microsoft", **settings)
    initializers = [
        helper.make_tensor(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape, value.tobytes(), raw=True)
        for name, value in tensors.items()
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (TOKENS, WIDTH)) for name in ("x", "y")]
    graph = helper.make_graph([node], "product", values[:1], values[1:], initializers)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
