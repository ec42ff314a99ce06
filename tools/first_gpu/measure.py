"""Measure a bundle's engine, in a process of its own: prefill while memory is watched, and decode against the roof.

    python -m tools.first_gpu.measure prefill BUNDLE
    python -m tools.first_gpu.measure decode BUNDLE CHECKPOINT [DEVICE]

Prints one JSON object. Bundles of engines run on the GPU; others on ONNX Runtime's CPU engine, for a rehearsal.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.plan.devices import Device, find_device
from ernie_export.exporter.plan.roofline import Rate, estimate
from ernie_export.exporter.plan.sizes import Model
from ernie_export.exporter.plan.workload import Workload
from ernie_export.exporter.targets import find_target
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import ONNX
from ernie_export.runtime.engines import Engine, PromptChunk
from ernie_export.runtime.engines.device.find_gpu import find_cuda
from ernie_export.runtime.engines.device.memory import CudaMemory, HostMemory, Memory
from ernie_export.runtime.engines.registry import open_engine

LONGEST = 512  # tokens of a prefill call where engines set no limit
STEPS = 64  # decode steps that are timed
WARM_UP = 3  # steps before that: the second one captures the CUDA graph
COPIED = 2**28  # bytes of the copy that measures the bandwidth


@dataclass(frozen=True)
class Meter:
    """Reads the memory of the device that an engine runs on. `used`: returns bytes in use."""

    memory: Memory
    used: Callable[[], int]

    @classmethod
    def of(cls, manifest: Manifest) -> "Meter":
        """Return the GPU's for a bundle of engines, else this process's."""
        if manifest.engines is None:
            return cls(HostMemory(), resident)
        gpu = CudaMemory(find_cuda("measuring", manifest.target))
        return cls(gpu, lambda: gpu.available()[1] - gpu.available()[0])

    def bandwidth(self, nbytes: int = COPIED) -> float:
        """Return bytes a second that the memory reads and writes: the best of five copies."""
        source = self.memory.allocate(nbytes)
        target = self.memory.allocate(nbytes)
        copy = partial(self.memory.copy, [(target, source, nbytes)])
        best = min(clock(copy) for _ in range(5))
        self.memory.free(source)
        self.memory.free(target)
        return 2 * nbytes / best


def resident() -> int:
    """Return the bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def clock(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def text_chunk(tokens: int, hidden: int, vocab: int, seed: int = 0) -> PromptChunk:
    """Return a prompt of random text tokens."""
    ids = np.random.default_rng(seed).integers(0, vocab, tokens)
    zeros = np.zeros(tokens, np.int64)
    return PromptChunk(ids, zeros, zeros, np.tile(np.arange(tokens), (3, 1)), np.zeros((0, hidden), np.float32))


def prefill_rows(
    engine: Engine[Any], hidden: int, vocab: int, used: Callable[[], int], lengths: list[int]
) -> dict[str, Any]:
    """Prefill every length twice over; return seconds by length, the memory in use, and how far the rounds agree.

    Memory that the second round takes is lost memory: it asks for nothing that the first has not asked for.
    """
    cache = engine.new_cache(1, max(lengths) + 1)
    memory = [used()]
    rounds: list[dict[int, float]] = []
    logits: dict[int, np.ndarray] = {}
    largest_difference = 0.0
    finite = True
    for _ in range(2):
        seconds: dict[int, float] = {}
        for length in lengths:
            cache.lengths[0] = 0
            chunk = text_chunk(length, hidden, vocab)
            began = time.perf_counter()
            found = engine.prefill(cache, 0, chunk).full()
            seconds[length] = time.perf_counter() - began
            finite = finite and bool(np.isfinite(found).all())
            if finite and length in logits:
                largest_difference = max(largest_difference, float(np.abs(found - logits[length]).max()))
            logits[length] = found.copy()
        rounds.append(seconds)
        memory.append(used())
    return {
        "seconds": rounds[1],
        "first_seconds": rounds[0],
        "memory": memory,
        "growth": memory[2] - memory[1],
        "finite": finite,
        "largest_difference": largest_difference,
        "shape_changes": getattr(engine, "shape_changes", None),  # engines of TensorRT count them
    }


def decode_rows(
    engine: Engine[Any], context: int, sequences: list[int], rate_of: Callable[[int], dict[str, Rate]]
) -> list[dict[str, Any]]:
    """Time decode steps of several numbers of sequences; return a row for each, with the least time by each device.

    Args:
        engine: The engine.
        context: Tokens before the first step.
        sequences: Numbers of sequences.
        rate_of: Returns the roof of so many sequences, by the name of what it is derived from.
    """
    cache = engine.new_cache(max(sequences), context + STEPS + WARM_UP + 1)
    rows = []
    for count in sequences:
        cache.lengths[:] = context
        step = partial(decode_step, engine, cache, count)
        for _ in range(WARM_UP):
            step()
        seconds = [clock(step) for _ in range(STEPS)]
        rates = rate_of(count)
        rows.append(
            {
                "sequences": count,
                "seconds": statistics.median(seconds),
                "slowest": max(seconds),
                "tokens_per_second": count / statistics.median(seconds),
                "bytes": next(iter(rates.values())).bytes,
                "roof_seconds": {name: rate.seconds for name, rate in rates.items()},
            }
        )
    return rows


def decode_step(engine: Engine[Any], cache: Any, count: int) -> None:
    """Append a token to each of `count` sequences, and read the best next ones: what a greedy answer takes."""
    positions = np.tile(cache.lengths[:count], (3, 1)).astype(np.int64)
    for logits in engine.decode(cache, np.arange(count), positions):
        logits.topk()


def measure_prefill(bundle: Path) -> dict[str, Any]:
    """Open the bundle's engine and prefill lengths of 1 to the longest that it takes."""
    manifest = Manifest.read(bundle)
    meter = Meter.of(manifest)
    info = manifest.model
    engines = manifest.engines
    longest = engines.prefill_chunk if engines is not None else LONGEST
    lengths = list(range(1, longest + 1)) if engines is not None else [1, 2, 63, 64, 65, longest]
    before = meter.used()
    began = time.perf_counter()
    with open_engine(bundle, manifest, "cpu", None) as engine:
        loaded = {"load_seconds": time.perf_counter() - began, "load_bytes": meter.used() - before}
        return loaded | prefill_rows(engine, info.hidden_size, info.vocab_size, meter.used, lengths)


def measure_decode(bundle: Path, checkpoint: Path, device_name: str | None) -> dict[str, Any]:
    """Open the bundle's engine and time steps; roofs are by the measured bandwidth, and a device's data sheet."""
    manifest = Manifest.read(bundle)
    meter = Meter.of(manifest)
    bandwidth = meter.bandwidth()
    measured = Device("measured", 0, bandwidth, None, None, None, "a copy within the memory, measured here")
    devices = [measured, *([find_device(device_name)] if device_name is not None else [])]
    target = find_target(manifest.target)
    precision = target.precision(manifest.precision)
    model = Model.build(ErnieConfig.from_hf(checkpoint), ONNX["fp32"]).model
    engines = manifest.engines
    context = min(1024, (engines.max_seq_len if engines is not None else 1024) // 2)

    def rate_of(count: int) -> dict[str, Rate]:
        workload = Workload(context, count, ())
        return {device.name: estimate(model, target, precision, workload, device).decode for device in devices}

    sequences = [2**i for i in range((engines.max_batch_size if engines is not None else 2).bit_length())]
    with open_engine(bundle, manifest, "cpu", None) as engine:
        rows = decode_rows(engine, context, sequences, rate_of)
    return {"context": context, "bandwidth": bandwidth, "rows": rows, "devices": [asdict(device) for device in devices]}


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    if what == "prefill":
        found = measure_prefill(Path(folder))
    else:
        found = measure_decode(Path(folder), Path(rest[0]), rest[1] if len(rest) > 1 else None)
    print(json.dumps(found))
