"""What linear layers in 8 bits could reach on this CPU with a scale for each row, and what that rounding costs.

    python benchmarks/integer_products.py [--output benchmarks/results/integer-products.json]

The exporter writes MatMulNBits, which has a scale for each group of a weight's row and of an activation's. ONNX Runtime
multiplies integers faster with one scale for each row of both (MatMulIntegerToFloat, whose kernels use VNNI and AMX):
the prototype rounds activations by standard operators, which counts as its time. Both are compared with the product in
float32, on activations of a normal distribution and on ones with four channels that are 64 times as large, as large
transformers have a few (arXiv 2208.07339). Layers of make_checkpoint.py's models; the ways take turns, and the median
counts.
"""

import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnxruntime as ort
from contestants import THREADS
from grouped_experts import Graph
from rich.console import Console
from rich.table import Table

from ernie_export.doctor.machine import describe_machine
from ernie_export.exporter.weights.quantize import pack, quantize_groups

GROUP = 128
LARGE = 4, np.float32(64)  # channels, and how many times as large as others


@dataclass(frozen=True)
class Layer:
    """A linear layer, and how many rows it multiplies at once."""

    rows: int
    inputs: int
    outputs: int


LAYERS = {
    "650 M, vision encoder, up": Layer(4096, 512, 2048),
    "650 M, decoder, output of attention": Layer(512, 1024, 1024),
    "released, vision encoder, up": Layer(1296, 1280, 5120),
    "released, vision encoder, down": Layer(1296, 5120, 1280),
    "released, decoder, shared experts' down": Layer(512, 3072, 2560),
}


def float32(weight: np.ndarray, x: np.ndarray) -> ort.InferenceSession:
    """Return a session of MatMul, by `weight` (N, K)."""
    graph = Graph()
    graph.add("MatMul", "x", graph.constant(np.ascontiguousarray(weight.T)), name="y")
    return graph.session({"x": x})


def by_group(weight: np.ndarray, x: np.ndarray) -> ort.InferenceSession:
    """Return a session of MatMulNBits as it is exported."""
    graph = Graph()
    outputs, inputs = weight.shape
    values, scales = quantize_groups(weight.reshape(-1, GROUP), 8)
    stored = pack(values, 8).reshape(outputs, inputs // GROUP, GROUP)
    held = graph.constant(stored), graph.constant(scales)
    sizes = {"K": inputs, "N": outputs, "bits": 8, "block_size": GROUP, "accuracy_level": 4}
    graph.add("MatMulNBits", "x", *held, name="y", domain="com.microsoft", **sizes)
    return graph.session({"x": x})


def by_row(weight: np.ndarray, x: np.ndarray) -> ort.InferenceSession:
    """Return a session that rounds each row of x to 8 bits and multiplies integers."""
    graph = Graph()
    columns = graph.constant(np.array([1]))
    largest = graph.add(
        "Max", graph.add("ReduceMax", graph.add("Abs", "x"), columns), graph.constant(np.float32(1e-20))
    )
    scale = graph.add("Mul", largest, graph.constant(np.float32(1 / 127)))
    flat = graph.add("Squeeze", scale, columns)
    zeros = graph.add("Expand", graph.constant(np.uint8(128)), graph.add("Shape", flat))
    whole = graph.add("QuantizeLinear", "x", flat, zeros, axis=0)
    values, scales = quantize_groups(weight, 8)
    held = np.ascontiguousarray(values.astype(np.int8).T), np.float32(1), scales, np.uint8(128)
    inputs = (graph.constant(array) for array in held)
    graph.add("Mul", graph.add("MatMulIntegerToFloat", whole, *inputs, domain="com.microsoft"), scale, name="y")
    return graph.session({"x": x})


WAYS = {"float32": float32, "a scale for each group": by_group, "a scale for each row": by_row}


def measure_layer(layer: Layer, rounds: int) -> dict[str, Any]:
    """Return seconds of each way, and the error of 8 bits beside the product's size, both as root mean squares."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((layer.outputs, layer.inputs), np.float32) * np.float32(0.02)
    x = rng.standard_normal((layer.rows, layer.inputs), np.float32)
    uneven = x.copy()
    uneven[:, rng.choice(layer.inputs, LARGE[0], replace=False)] *= LARGE[1]
    sessions = {name: make(weight, x) for name, make in WAYS.items()}
    errors: dict[str, list[float]] = {name: [] for name in WAYS}
    for given in (x, uneven):
        exact = given @ weight.T
        for name, session in sessions.items():
            off = session.run(None, {"x": given})[0] - exact
            errors[name].append(float(np.sqrt(np.square(off).mean() / np.square(exact).mean())))
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, {"x": x})
            seconds[name].append(time.perf_counter() - started)
    return {"seconds": {name: statistics.median(of) for name, of in seconds.items()}, "errors": errors}


def measure(layers: dict[str, Layer], rounds: int) -> dict[str, Any]:
    """Return all figures, and what they were measured with."""
    machine = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    results = [
        {"layer": name, "operations": 2 * layer.rows * layer.inputs * layer.outputs, **measure_layer(layer, rounds)}
        for name, layer in layers.items()
    ]
    return {"date": str(date.today()), "machine": machine, "onnxruntime": ort.__version__, "results": results}


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(rounds: int, output: Path | None) -> None:
    """Measure and print."""
    figures = measure(LAYERS, rounds)
    title = f"ONNX Runtime {ort.__version__}, {THREADS} threads: G operations/s (error, error with large channels)"
    table = Table("layer", *WAYS, title=title)
    for row in figures["results"]:
        rates = {name: row["operations"] / seconds / 1e9 for name, seconds in row["seconds"].items()}
        cells = [f"{rates[name]:.0f} ({', '.join(f'{off:.0e}' for off in row['errors'][name])})" for name in WAYS]
        table.add_row(row["layer"], *cells)
    Console(width=140).print(table)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
