"""What an experts' operator of our own could reach on this CPU: ONNX Runtime's beside one product for each expert.

    python benchmarks/grouped_experts.py [--output benchmarks/results/grouped-experts.json]

The prototype is a graph of standard operators: the tokens of each expert are gathered, multiplied by its weights with
both threads in every product, and added up with their routing weights. A second one multiplies integers (MatMulInteger,
which has kernels for VNNI and AMX): weights of 8 bits with a scale for each row, activations rounded to 8 bits with a
scale for each token. Answers are compared with the operator's.
Widths of make_checkpoint.py's model and of the released one, random routing, scales for groups as the exporter chooses
them; of the released one half of the experts and of the tokens, so that an expert has as many. The ways take turns, and
the median counts.
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
import onnx
import onnxruntime as ort
from contestants import THREADS
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from ernie_export.doctor.machine import describe_machine
from ernie_export.graphs.layers.quantized import group_size

K = 6
ATTRIBUTES = {
    "k": K,
    "normalize_routing_weights": 1,
    "activation_type": "swiglu",
    "swiglu_fusion": 1,
    "activation_alpha": 1.0,
    "activation_beta": 0.0,
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a layer's experts, and how many tokens choose among them."""

    hidden: int
    width: int
    experts: int
    tokens: int

    @property
    def group(self) -> int:
        """Values of a row that share a scale, as in a bundle."""
        return group_size("experts", self.hidden, self.width)

    @property
    def operations(self) -> int:
        """Floating-point operations of all tokens."""
        return 2 * self.tokens * K * 3 * self.hidden * self.width


SHAPES = {"650 M, 512 tokens": Shape(1024, 352, 32, 512), "released widths, 256 tokens": Shape(2560, 1536, 32, 256)}
BITS = {"fp32": 32, "int8": 8, "int4": 4}


class Weights:
    """Random weights of all experts: `values` (experts, N, K) float32, or bytes (experts, N, K·bits/8) and scales."""

    def __init__(self, rng: np.random.Generator, shape: Shape, rows: int, columns: int, bits: int) -> None:
        experts = shape.experts
        self.bits = bits
        self.columns = columns
        self.group = shape.group
        if bits == 32:
            self.values = rng.standard_normal((experts, rows, columns), np.float32) * np.float32(0.02)
            return
        self.values = rng.integers(0, 256, (experts, rows, columns * bits // 8), np.uint8)
        self.scales = rng.random((experts, rows, columns // self.group), np.float32) * np.float32(0.1 / 2**bits)

    def stacked(self, name: str) -> dict[str, np.ndarray]:
        """The constants of the operator for all experts."""
        return {name: self.values} if self.bits == 32 else {name: self.values, f"{name}_scales": self.scales}

    def order(self, apart: bool) -> np.ndarray | slice:
        """The order of rows; `apart`: even rows, those of gate, before odd ones, those of up."""
        return np.r_[0 : self.values.shape[1] : 2, 1 : self.values.shape[1] : 2] if apart else slice(None)

    def integers(self, expert: int, apart: bool) -> tuple[np.ndarray, np.ndarray]:
        """One expert's transposed weights (K, N) int8, and a scale for each of the N; of weights of 8 bits."""
        order = self.order(apart)
        centred = self.values[expert][order].astype(np.float32) - 128
        meant = (centred.reshape(len(centred), -1, self.group) * self.scales[expert][order][..., None]).reshape(
            centred.shape
        )
        scale = np.abs(meant).max(1) / 127
        return np.ascontiguousarray(np.rint(meant / scale[:, None]).astype(np.int8).T), scale

    def product(self, graph: "Graph", x: str, expert: int, apart: bool = False) -> str:
        """Multiply `x` by one expert's transposed weights; `apart`: even rows first, then odd ones."""
        order = self.order(apart)
        values = self.values[expert][order]
        if self.bits == 32:
            return graph.add("MatMul", x, graph.constant(np.ascontiguousarray(values.T)))
        blocks = values.reshape(len(values), self.columns // self.group, self.group * self.bits // 8)
        inputs = (x, graph.constant(blocks), graph.constant(self.scales[expert][order].ravel()))
        sizes = {"K": self.columns, "N": len(values), "bits": self.bits, "block_size": self.group, "accuracy_level": 4}
        return graph.add("MatMulNBits", *inputs, domain="com.microsoft", **sizes)


class Graph:
    """Nodes and constants of a graph, with names by number."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        """Add a constant."""
        self.held.append(numpy_helper.from_array(array, f"c{len(self.held)}"))
        return self.held[-1].name

    def add(self, op_type: str, *inputs: str, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        """Add a node; return its output's name, or a list of names."""
        names = [name] if name else [f"n{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, **attributes))
        return names if outputs > 1 else names[0]

    def session(self, inputs: dict[str, np.ndarray]) -> ort.InferenceSession:
        """Load the graph, whose output is y."""
        declared = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "experts", declared, [output], self.held)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        options.add_session_config_entry("session.force_spinning_stop", "1")  # other sessions' turns would share cores
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def operator(gate_up: Weights, down: Weights, inputs: dict[str, np.ndarray]) -> ort.InferenceSession:
    """Return a session of com.microsoft's MoE or QMoE."""
    graph = Graph()
    names = []
    for name, weights in (("fc1", gate_up), ("fc2", down)):
        names += [graph.constant(array) for array in weights.stacked(name).values()] + [""]
    quantized = {"expert_weight_bits": gate_up.bits, "block_size": gate_up.group, "accuracy_level": 4}
    op_type, own = ("MoE", {}) if gate_up.bits == 32 else ("QMoE", quantized)
    graph.add(op_type, "x", "router", *names[:-1], name="y", domain="com.microsoft", **ATTRIBUTES, **own)
    return graph.session(inputs)


def prototype(gate_up: Weights, down: Weights, experts: int, inputs: dict[str, np.ndarray]) -> ort.InferenceSession:
    """Return a session of one product for each expert, over the tokens that chose it."""
    graph = Graph()
    rows = graph.add("Split", graph.add("Gather", "x", "token"), "counts", outputs=experts, axis=0)
    outputs = []
    for expert, x in enumerate(rows):
        inner = swiglu(graph, gate_up.product(graph, x, expert, apart=True))
        outputs.append(down.product(graph, inner, expert))
    add_up(graph, outputs)
    return graph.session(inputs)


def integer_prototype(
    gate_up: Weights, down: Weights, experts: int, inputs: dict[str, np.ndarray]
) -> ort.InferenceSession:
    """Return a session of one product of integers for each expert, over the tokens that chose it."""
    graph = Graph()
    whole, scale = rounded(graph, "x")
    rows = graph.add("Split", graph.add("Gather", whole, "token"), "counts", outputs=experts, axis=0)
    scales = graph.add("Split", graph.add("Gather", scale, "token"), "counts", outputs=experts, axis=0)
    outputs = []
    for expert, (x, by_row) in enumerate(zip(rows, scales, strict=True)):
        inner = swiglu(graph, integer_product(graph, x, by_row, *gate_up.integers(expert, apart=True)))
        outputs.append(integer_product(graph, *rounded(graph, inner), *down.integers(expert, apart=False)))
    add_up(graph, outputs)
    return graph.session(inputs)


def swiglu(graph: Graph, both: str) -> str:
    """Split gate from up, and multiply silu(gate) by up."""
    gate, up = graph.add("Split", both, outputs=2, axis=1, num_outputs=2)
    return str(graph.add("Mul", graph.add("Mul", gate, graph.add("Sigmoid", gate)), up))


def add_up(graph: Graph, outputs: list[str]) -> None:
    """Add each token's experts to the output y."""
    by_token = graph.add("Gather", graph.add("Concat", *outputs, axis=0), "place")
    graph.add("ReduceSum", graph.add("Mul", by_token, "share"), graph.constant(np.array([1])), name="y", keepdims=0)


def rounded(graph: Graph, x: str) -> tuple[str, str]:
    """Round float32 x (T, K) to 8 bits; return uint8, moved up by 128, and the scale of each row (T, 1)."""
    largest = graph.add("ReduceMax", graph.add("Abs", x), graph.constant(np.array([1])), keepdims=1)
    least = graph.add("Max", largest, graph.constant(np.float32(1e-20)))
    scale = graph.add("Div", least, graph.constant(np.float32(127)))
    whole = graph.add("Round", graph.add("Div", x, scale))
    moved = graph.add("Add", whole, graph.constant(np.float32(128)))
    return graph.add("Cast", moved, to=TensorProto.UINT8), scale


def integer_product(graph: Graph, x: str, by_row: str, weights: np.ndarray, by_column: np.ndarray) -> str:
    """Multiply uint8 x (T, K) by int8 weights (K, N), and by the scales of rows and columns."""
    zero = graph.constant(np.uint8(128))
    whole = graph.add("Cast", graph.add("MatMulInteger", x, graph.constant(weights), zero), to=TensorProto.FLOAT)
    return str(graph.add("Mul", graph.add("Mul", whole, graph.constant(by_column)), by_row))


def routing(router: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the prototype takes in place of logits (T, E): slots sorted by expert, and the way back."""
    chosen = np.argsort(-router, axis=1)[:, :K]
    share = np.exp(np.take_along_axis(router, chosen, 1))
    share /= share.sum(1, keepdims=True)
    order = np.argsort(chosen.ravel(), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    counts = np.bincount(chosen.ravel(), minlength=router.shape[1])
    return {"token": order // K, "counts": counts, "place": place.reshape(-1, K), "share": share[..., None]}


def time_ways(shape: Shape, bits: int, rounds: int) -> dict[str, Any]:
    """Return seconds of each way, and how far answers are from the operator's, beside its largest."""
    rng = np.random.default_rng(0)
    gate_up = Weights(rng, shape, 2 * shape.width, shape.hidden, bits)
    down = Weights(rng, shape, shape.hidden, shape.width, bits)
    given = {"x": rng.standard_normal((shape.tokens, shape.hidden), np.float32)}
    router = rng.standard_normal((shape.tokens, shape.experts), np.float32)
    logits, sorted_slots = given | {"router": router}, given | routing(router)
    weights = gate_up, down
    ways = {"operator": (operator(*weights, logits), logits)}
    ways["product for each expert"] = prototype(*weights, shape.experts, sorted_slots), sorted_slots
    if bits == 8:
        ways["of integers"] = integer_prototype(*weights, shape.experts, sorted_slots), sorted_slots
    first, *others = [session.run(None, inputs)[0] for session, inputs in ways.values()]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (session, inputs) in ways.items():
            started = time.perf_counter()
            session.run(None, inputs)
            seconds[name].append(time.perf_counter() - started)
    off = [float(np.abs(first - other).max() / np.abs(first).max()) for other in others]
    return {"seconds": {name: statistics.median(of) for name, of in seconds.items()}, "differences": off}


def measure(shapes: dict[str, Shape], rounds: int) -> dict[str, Any]:
    """Return all figures, and what they were measured with."""
    machine = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    results = [
        {"shape": name, "precision": precision, "operations": shape.operations, **time_ways(shape, bits, rounds)}
        for name, shape in shapes.items()
        for precision, bits in BITS.items()
    ]
    return {"date": str(date.today()), "machine": machine, "onnxruntime": ort.__version__, "results": results}


@click.command()
@click.option("--rounds", default=15, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(rounds: int, output: Path | None) -> None:
    """Measure and print."""
    figures = measure(SHAPES, rounds)
    title = f"ONNX Runtime {ort.__version__}, {THREADS} threads: G operations/s"
    table = Table("experts", "weights", "operator", "product for each expert", "of integers", "answers", title=title)
    for row in figures["results"]:
        rates = [f"{row['operations'] / seconds / 1e9:.0f}" for seconds in row["seconds"].values()]
        answers = ", ".join(f"{off:.0e}" for off in row["differences"])
        table.add_row(row["shape"], row["precision"], *rates, *([""] * (3 - len(rates))), answers)
    Console(width=120).print(table)
    if output is not None:
        output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
