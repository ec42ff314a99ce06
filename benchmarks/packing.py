"""Seconds that ONNX Runtime takes to load a bundle's graph, by how its weights are packed for the kernels.

    python benchmarks/packing.py scratch/m600-int4 --output benchmarks/results/packing-m600-int4.json

ONNX Runtime packs quantized weights anew at each start. Here it loads the same graph without packing, with packing by
one node after the other and by all threads, and, of the graph that decodes text, a copy with the packed weights saved
beside it, which ONNX Runtime maps. Each load is in a process of its own, from the page cache; the ways take turns, and
the median counts.
"""

import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import onnxruntime as ort
from contestants import THREADS
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ernie_export.common.manifest import Manifest
from ernie_export.doctor.machine import describe_machine

SERIAL = {"session.prepack.enable_parallel": "0"}
PARALLEL = {"session.prepack.enable_parallel": "1"}
WAYS = {"no packing": {"session.disable_prepacking": "1"}, "one node after the other": SERIAL, "all threads": PARALLEL}


def options_of(entries: dict[str, str]) -> ort.SessionOptions:
    """Return options of a session with these configuration entries."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = THREADS
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def load(graph: Path, entries: dict[str, str]) -> dict[str, float]:
    """Load a graph; return seconds, and seconds of all threads together."""
    options = options_of(entries)
    started, worked = time.perf_counter(), time.process_time()
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - worked}


def save_packed(graph: Path, folder: Path) -> Path:
    """Write the graph as ONNX Runtime optimizes it, with its packed weights in a file beside it; return its path."""
    saved = folder / graph.name
    options = options_of(
        PARALLEL
        | {
            "session.save_external_prepacked_constant_initializers": "1",
            "session.optimized_model_external_initializers_file_name": f"{graph.stem}.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }
    )
    options.optimized_model_filepath = str(saved)
    ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return saved


def apart(call: Any, *arguments: Any) -> Any:
    """Return what a call returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def measure(bundle: Path, rounds: int, folder: Path) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return the loads of each graph that decodes or prefills, by way."""
    graphs = Manifest.read(bundle).graphs
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    saved = apart(save_packed, bundle / graphs["decode"], folder)
    ways = {
        "decoder": {name: (bundle / graphs["decoder"], entries) for name, entries in WAYS.items()},
        "decode": {name: (bundle / graphs["decode"], entries) for name, entries in WAYS.items()}
        | {"all threads, packed weights saved": (saved, PARALLEL)},
    }
    for number in track(range(rounds + 1), "rounds"):
        for graph, by_way in ways.items():
            for way, given in by_way.items():
                seconds = apart(load, *given)
                if number:  # the first brings the files into the page cache
                    found.setdefault(graph, {}).setdefault(way, []).append(seconds)
    return found


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Write the figures as JSON, too.")
def main(bundle: Path, rounds: int, output: Path | None) -> None:
    """Load the graphs of BUNDLE."""
    machine = asdict(describe_machine()) | {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        found = measure(bundle, rounds, Path(folder))
    table = Table(
        "graph", "packed by", "seconds", "processor seconds", title=f"{bundle.name}: loads, {THREADS} threads"
    )
    for graph, by_way in found.items():
        for way, loads in by_way.items():
            medians = (statistics.median(one[key] for one in loads) for key in ("seconds", "processor_seconds"))
            table.add_row(graph, way, *(f"{median:.2f}" for median in medians))
    Console().print(table)
    if output is not None:
        about = {"date": str(date.today()), "machine": machine, "onnxruntime": ort.__version__, "bundle": bundle.name}
        about |= {"bundle_bytes": sum(path.stat().st_size for path in bundle.iterdir()), "rounds": rounds}
        output.write_text(json.dumps(about | {"loads": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
