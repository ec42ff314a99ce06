"""Where ONNX Runtime spends the time of an exported bundle on this CPU: seconds by operator, beside the CPU's limits.

    python benchmarks/profile_operators.py scratch/m600-int4 --output benchmarks/results/profile-m600-int4.json

Each phase loads the model twice, without ONNX Runtime's profiling and with it, and makes its requests twice: first to
warm up; the last request of the second time is measured. Nodes that contain others (CONTROL_FLOW) are left out, since
those have their own events. Time outside operators is the rest: ONNX Runtime between two nodes, its profiling, Python.
A ceiling is the best of ten runs of one operator on large matrices, with a row for each token of the text prefill: of
ONNX Runtime's, and of PyTorch's for what the CPU can do. That of reading is a streaming read by a thread a core.
PyTorch comes with the extra `parity`.
"""

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import click
import numpy as np
import onnxruntime as ort
import torch
from compare import DECODE, MANY, prefill
from contestants import MAX_NEW_TOKENS, THREADS, Ours, prompts_of
from onnx import TensorProto
from operators import RNG, best, normal, timed
from rich.console import Console
from rich.table import Table

from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.doctor.machine import describe_machine
from ernie_export.exporter.plan.measure import sustained_bandwidth
from ernie_export.graphs.config import ErnieConfig, TextConfig

CONTROL_FLOW = ("If", "Loop", "Scan")
CEILINGS = {"MoE": "Gemm fp32 GFLOP/s", "QMoE": "MatMulNBits 8 bits GFLOP/s"}  # of the experts' operators in a prefill
READING = "streaming read GB/s"  # their ceiling in a decode
STREAMED = 2**30  # bytes: more than any cache holds
Requests = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class GraphProfile:
    """Seconds of each run of a graph, and of each launch of a node, by operator."""

    runs: list[float]
    nodes: dict[str, list[float]]


def read_profile(events: list[dict[str, Any]], runs: int) -> GraphProfile:
    """Return what the last `runs` runs of a session took; the events of its profile have microseconds."""
    windows = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")[-runs:]
    nodes: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            operator = event["args"]["op_name"]
            if operator not in CONTROL_FLOW and any(start <= event["ts"] < end for start, end in windows):
                nodes[operator].append(event["dur"] / 1e6)
    return GraphProfile([(end - start) / 1e6 for start, end in windows], dict(nodes))


def run_twice(bundle: Path, requests: Requests) -> float:
    """Load the model, make the requests twice, and return the seconds of the last one."""
    ours = Ours(bundle)
    with ours.model:
        for request in requests * 2:
            inputs = (prompts_of(request, ours.ids), MAX_NEW_TOKENS) if "text" in request else (request["tokens"],)
            seconds = timed(partial(getattr(ours, request["do"]), *inputs))
    return seconds


def profile(bundle: Path, requests: Requests) -> tuple[float, dict[str, GraphProfile]]:
    """Return the last request's seconds with profiling on, and the profile of each graph that it ran.

    A decode runs one graph, once a token. A prefill runs its graphs as often as the same prefill did to warm up.
    """
    create = ort.InferenceSession
    sessions: dict[str, ort.InferenceSession] = {}

    def open_session(model: Path, options: ort.SessionOptions, **named: Any) -> ort.InferenceSession:
        options.enable_profiling = True
        options.profile_file_prefix = f"{folder}/{model.stem}"
        sessions[model.stem] = create(model, options, **named)
        return sessions[model.stem]

    with tempfile.TemporaryDirectory() as folder:
        with patch.object(ort, "InferenceSession", open_session):
            seconds = run_twice(bundle, requests)
        profiles = {graph: json.loads(Path(one.end_profiling()).read_text()) for graph, one in sessions.items()}
    runs = {graph: sum(e["name"] == "model_run" for e in events) // 2 for graph, events in profiles.items()}
    if requests[-1]["do"] == "decode":
        runs = {Manifest.read(bundle).cpu_decode_graph: requests[-1]["tokens"]}
    return seconds, {graph: read_profile(profiles[graph], count) for graph, count in runs.items() if count}


def measure(bundle: Path, requests: Requests) -> dict[str, Any]:
    """Return seconds of the last request, by graph and by operator; operators with the most time come first."""
    plain = run_twice(bundle, requests)
    seconds, profiles = profile(bundle, requests)
    nodes: dict[str, list[float]] = defaultdict(list)
    graphs, operators = {}, {}
    for name, graph in profiles.items():
        launches = sum(map(len, graph.nodes.values())) / len(graph.runs)
        graphs[name] = {"runs": len(graph.runs), "seconds": sum(graph.runs), "launches_per_run": launches}
        for operator, several in graph.nodes.items():
            nodes[operator] += several
    for operator, several in sorted(nodes.items(), key=lambda item: -sum(item[1])):
        operators[operator] = {"seconds": sum(several), "share": sum(several) / seconds, "launches": len(several)}
    outside = seconds - sum(map(sum, nodes.values()))
    found = {"requests": requests, "seconds": seconds, "seconds_without_profiling": plain}
    return found | {"graphs": graphs, "operators": operators, "outside_operators": outside}


def expert_flops(text: TextConfig, request: dict[str, Any]) -> int:
    """Return the operations of a prefill's experts.

    2 (multiply, add) * 3 matrices (gate, up, down) * hidden size * expert width * experts per token, for each token and
    sparse layer. Widths are those of text and of vision experts; an image's start and end tokens are vision tokens.
    """
    placeholders = request["image"][0] * request["image"][1] // 4
    tokens = request["text"], placeholders + 2 if placeholders else 0
    columns: int = sum(count * width for count, width in zip(tokens, text.moe_intermediate_size, strict=True))
    return 2 * 3 * text.hidden_size * columns * text.experts_per_token * text.layer_types.count("sparse")


def rate_experts(bundle: Path, requests: Requests, phase: dict[str, Any], ceilings: dict[str, float]) -> dict[str, Any]:
    """Return the rate of the experts' operator: GFLOP/s of a prefill, GB/s of weights read by a decode of one sequence.

    Weights are those in the bundle, with scales. Empty without such an operator, or if several sequences share experts.
    """
    operator = next((name for name in CEILINGS if name in phase["operators"]), None)
    if operator is None or requests[0]["sequences"] > 1:
        return {}
    text = ErnieConfig.from_hf(bundle).text
    ceiling, amount = CEILINGS[operator], float(expert_flops(text, requests[0]))
    if requests[-1]["do"] == "decode":
        tensors = read_header(bundle / Manifest.read(bundle).data_file).values()
        experts = sum(tensor.nbytes for tensor in tensors if ".experts.text." in tensor.name)
        ceiling, amount = READING, experts * text.experts_per_token / text.num_experts * requests[-1]["tokens"]
    rate = amount / phase["operators"][operator]["seconds"] / 1e9
    reached = {"rate": rate, "unit": ceiling.split()[-1], "ceiling": ceiling, "share": rate / ceilings[ceiling]}
    return {"operator": operator} | reached


def measure_ceilings(rows: int) -> dict[str, float]:
    """Return what large products of so many rows reach, in GFLOP/s, and a streaming read, in GB/s."""
    x, part = {"x": normal(rows, 4096)}, normal(2048, 4096)
    quantized = {"w": RNG.integers(0, 256, (2048, 32, 128), "uint8"), "scales": normal(2048, 32)}
    sizes: dict[str, Any] = {"N": 2048, "K": 4096, "bits": 8, "block_size": 128, "accuracy_level": 4}
    giga = 2 * rows * part.size / 1e9
    return {
        CEILINGS["MoE"]: giga / best("Gemm", x, {"w": part}, transB=1),
        CEILINGS["QMoE"]: giga / best("MatMulNBits", x, quantized, domain="com.microsoft", **sizes),
        "MatMulInteger GFLOP/s": giga / best("MatMulInteger", *integers(rows), output_type=TensorProto.INT32),
        **{f"PyTorch {name} GFLOP/s": giga / seconds for name, seconds in pytorch_products(rows)},
        READING: sustained_bandwidth(STREAMED) / 1e9,
    }


def integers(rows: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return activations (rows, 4096) uint8 and weights (4096, 2048) int8."""
    return {"x": RNG.integers(0, 256, (rows, 4096), "uint8")}, {"w": RNG.integers(-128, 128, (4096, 2048), "int8")}


def pytorch_products(rows: int) -> Iterator[tuple[str, float]]:
    """Yield the name and the seconds of the same product in PyTorch, in each type that it multiplies."""
    torch.set_num_threads(THREADS)
    x, w = torch.randn(rows, 4096), torch.randn(4096, 2048)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        call = partial(torch.mm, x.to(dtype), w.to(dtype))
        yield name, min(timed(call) for _ in range(10))
    call = partial(torch._int_mm, x.to(torch.int8), w.to(torch.int8))  # what torch.ao multiplies with
    yield "int8", min(timed(call) for _ in range(10))


def table(title: str, phase: dict[str, Any]) -> Table:
    """Return the operators that take at least 1 % of the request's time."""
    result = Table("operator", "seconds", "share", "launches", title=title)
    outside = {"seconds": phase["outside_operators"], "share": phase["outside_operators"] / phase["seconds"]}
    for operator, row in (phase["operators"] | {"outside operators": outside}).items():
        if row["share"] >= 0.01:
            result.add_row(operator, f"{row['seconds']:.4f}", f"{row['share']:.1%}", str(row.get("launches", "")))
    lines = [f"without profiling: {phase['seconds_without_profiling']:.3f} s; with it: {phase['seconds']:.3f} s"]
    lines += [f"{graph}: {one['launches_per_run']:g} launches a run" for graph, one in phase["graphs"].items()]
    if one := phase["experts"]:
        lines.append(f"{one['operator']}: {one['rate']:.1f} {one['unit']}, {one['share']:.0%} of {one['ceiling']}")
    result.caption = "\n".join(lines)
    return result


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--text", default=512, show_default=True, help="Text tokens; with an image, half as many.")
@click.option("--image", default=64, show_default=True, help="Height and width of the image in patches, even.")
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(1, MAX_NEW_TOKENS - 1), help="Decoded.")
@click.option("--output", type=click.Path(path_type=Path), help="Write the measurements as JSON, too.")
def main(bundle: Path, text: int, image: int, tokens: int, output: Path | None) -> None:
    """Profile requests to BUNDLE by operator."""
    manifest = Manifest.read(bundle)
    document: dict[str, Any] = {"date": str(date.today())}
    document["machine"] = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    sizes = {"weights_bytes": manifest.files[manifest.data_file].bytes} | asdict(ErnieConfig.from_hf(bundle).text)
    document["bundle"] = {"name": bundle.name, "precision": manifest.precision} | sizes
    document |= {"onnxruntime": ort.__version__, "threads": THREADS, "ceilings": measure_ceilings(text), "phases": {}}
    phases: dict[str, Requests] = {f"prefill {text} text": (prefill(text),)}
    phases[f"prefill {text // 2} text + {image**2 // 4} image"] = (prefill(text // 2, (image, image)),)
    phases |= {name: (task.requests[0], DECODE | {"tokens": tokens}) for name, task in MANY.items()}
    for name, requests in phases.items():
        document["phases"][name] = phase = measure(bundle, requests)
        phase["experts"] = rate_experts(bundle, requests, phase, document["ceilings"])
        Console().print(table(name, phase))
    Console().print(*(f"{ceiling}: {value:.1f}" for ceiling, value in document["ceilings"].items()), sep="\n")
    if output is not None:
        output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
