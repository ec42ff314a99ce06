"""Part c of gpu.py: bundles on ONNX Runtime's CUDA provider, right and fast.

    python benchmarks/gpu_model.py --device cuda
    python benchmarks/gpu_model.py --device cpu --small         (a dry run: a tiny shape, on the host's memory)

Prints one JSON object a line, for each of:
- right: a tiny seeded model on the device against the CPU engine in float32, int4 against the same quantized values:
  error of the logits, and greedy tokens that agree;
- ours: the released shape with random weights: seconds to load and for the first calls, time to the first token of 256
  text and 1024 image tokens, of it to encode and to prefill (in the engine's chunks, in 512s), decode at 1, 8 and 32
  rows, the share of the memory's measured rate that the bytes of a step come to, GiB used after the first calls with
  one slot of 8,192 tokens and with 32 of the prompt's length, and by how much they grew since;
- transformers: the same, on the same card, by each way that it runs experts.
"""

import gc
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from gpu_engine import ROOT, Request, Work, configuration, decode, deviations, hollow_bundle, open_engine
from gpu_rows import emit

FULL = Work(256, (64, 64), (1, 8, 32), 64, 8192)
SMALL = Work(12, (4, 4), (1, 3), 3, 64)


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="A tiny shape, for a dry run.")
@click.option("--only", multiple=True, type=click.Choice(["right", "ours", "transformers", "ours-int4"]))
def main(device: str, small: bool, only: tuple[str, ...]) -> None:
    """Measure and print."""
    dense = "bf16" if device == "cuda" else "fp32"
    measures = {  # what is compared first, where time runs out
        "right": right,
        "ours": partial(ours, dense),
        "transformers": transformers,
        "ours-int4": partial(ours, "int4-fp16"),
    }
    bandwidth = ceilings(device, small)
    for name in only or measures:
        try:
            for row in measures[name](device, small, bandwidth):
                emit({"what": name, **row}, "model")
        except Exception as e:
            traceback.print_exc()
            emit({"what": name, "error": f"{type(e).__name__}: {e}"}, "model")
        gc.collect()


def ceilings(device: str, small: bool) -> float:
    """Measure what the card can do, before a model takes its memory; print it, and return the bandwidth."""
    import torch
    from gpu_timing import Ceilings

    dtype = torch.float32 if small or device == "cpu" else torch.bfloat16
    found = Ceilings.measured(device, dtype, small)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    if device == "cuda":
        torch.cuda.empty_cache()
    emit({"what": "ceilings", "card": name, "dtype": str(dtype), **asdict(found)}, "model")
    return found.bandwidth


def right(device: str, small: bool, bandwidth: float) -> Iterator[dict[str, Any]]:
    """A tiny seeded model by every precision of the device, against a CPU in float32.

    Of quantized weights the values are the same, but the CPU doesn't round activations to 8 bits here: CUDA doesn't.
    """
    from make_checkpoint import SHAPES, write_checkpoint

    from ernie_export.exporter.export import Progress, export
    from ernie_export.graphs.config import ErnieConfig
    from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine, Tap

    def answer(engine: Any) -> tuple[np.ndarray, list[int]]:
        cache = engine.new_cache(1, request.tokens + 40)
        logits = np.array(request.first_token(engine, cache, 0), np.float32)
        return logits, [int(step[0]) for step in decode(engine, cache, 1, 32)]

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_checkpoint(checkpoint, SHAPES["tiny"])
        request = Request(ErnieConfig.from_hf(checkpoint), Work(24, (8, 12), (1,), 1))
        for precision in ("fp16", *(("bf16",) if device == "cuda" else ()), "int4-fp16"):
            beside = "int4-fp16" if precision == "int4-fp16" else "fp32"
            bundles = {name: Path(folder) / name for name in (precision, beside)}
            manifests = {name: export(checkpoint, bundle, "onnx", name, Progress()) for name, bundle in bundles.items()}
            tap = Tap(unrounded_graphs(bundles[beside], manifests[beside]), lambda name, value: None)
            with OrtCpuEngine(bundles[beside], manifests[beside], 2, tap=tap) as engine:
                expected, wanted = answer(engine)
            with open_engine(bundles[precision], manifests[precision], device) as engine:
                found, tokens = answer(engine)
            yield {
                "precision": precision,
                "error": float(np.linalg.norm(found - expected) / np.linalg.norm(expected)),
                "tokens_agreed": next(
                    (i for i, (a, b) in enumerate(zip(wanted, tokens, strict=True)) if a != b), len(wanted)
                ),
                "tokens": len(wanted),
            }


def unrounded_graphs(bundle: Path, manifest: Any) -> dict[str, bytes]:
    """Return the bundle's graphs, their products of quantized weights computed in float32."""
    import onnx

    from ernie_export.exporter.verify.float32_products import compute_in_float32

    graphs = {}
    for name, file in manifest.graphs.items():
        model = onnx.load(bundle / file, load_external_data=False)
        compute_in_float32(model)
        graphs[name] = model.SerializeToString()
    return graphs


def ours(precision: str, device: str, small: bool, bandwidth: float) -> Iterator[dict[str, Any]]:
    """The shape with random weights on the engine."""
    work = SMALL if small else FULL
    with tempfile.TemporaryDirectory() as folder:  # the data file is a hole, and no result
        config = configuration(Path(folder), small)
        request = Request(config, work)
        nbytes = {rows: step_bytes(config, precision, rows, request.tokens) for rows in work.rows}
        bundle = Path(folder) / precision
        bundle.mkdir()
        manifest = hollow_bundle(bundle, config, precision)
        started = time.perf_counter()
        free = device_memory(device)
        with open_engine(bundle, manifest, device, random=deviations(config, precision)) as engine:
            yield {"precision": precision, "load_seconds": time.perf_counter() - started}
            for slots, context in ((1, work.context), (max(work.rows), request.tokens + 3 * work.steps)):
                warm = clock(partial(engine.warm, slots, lambda fraction: None))
                cache = engine.new_cache(slots, context)
                held = (free - device_memory(device)) / 2**30
                yield {"precision": precision, "slots": slots, "context": context, "warm_seconds": warm, "gib": held}
            yield from measure_requests(engine, cache, request, work, precision, bandwidth, nbytes)
            yield {"precision": precision, "grown_gib": (free - device_memory(device)) / 2**30 - held}


def measure_requests(
    engine: Any, cache: Any, request: Request, work: Work, precision: str, bandwidth: float, nbytes: dict[int, float]
) -> Iterator[dict[str, Any]]:
    """Measure a first token, and decode steps; `nbytes` is what one of so many rows reads."""
    features = request.encode(engine)
    calls = {
        "encode": partial(request.encode, engine),
        "prefill": partial(request.prefill, engine, cache, 0, features),
        "prefill_by_512": partial(request.prefill, engine, cache, 0, features, 512),
        "ttft": partial(request.first_token, engine, cache, 0),
    }
    first: dict[str, Any] = {}
    for name, call in calls.items():
        first |= {f"{name}_cold": clock(call), name: min(clock(call) for _ in range(2))}
    largest = checked(request.first_token(engine, cache, 0))
    yield {"precision": precision, "tokens": request.tokens, "largest_logit": largest} | first
    for row in range(1, max(work.rows)):
        cache.copy_slot(0, row, request.tokens)
    for count in work.rows:
        cache.lengths[:] = request.tokens
        decode(engine, cache, count, 3)  # captures the step
        started = time.perf_counter()
        found = decode(engine, cache, count, work.steps)
        seconds = (time.perf_counter() - started) / work.steps
        different = len(np.unique(np.concatenate(found)))
        yield decoded(precision, count, seconds, nbytes[count], bandwidth) | {"distinct_tokens": different}


def checked(logits: np.ndarray) -> float:
    """Return the largest logit by magnitude; raise ValueError for logits that no measurement may be made on.

    Zeros, or what is no number, send every token to the same few experts: many rows would look far too fast.
    """
    if not np.isfinite(logits).all() or not logits.any() or np.ptp(logits) == 0:
        raise ValueError("logits of a model that computes nothing: no measurement")
    return float(np.abs(logits).max())


def transformers(device: str, small: bool, bandwidth: float) -> Iterator[dict[str, Any]]:
    """The same work by the PyTorch class, greedy, by the shortest loop that it allows."""
    import torch

    try:
        import torchvision  # noqa: F401
    except ImportError:  # which the class asks for at its import and never calls here
        sys.path.insert(0, str(ROOT / "tools"))
        import torchvision_operators  # noqa: F401
    from transformers import AutoConfig, Ernie4_5_VLMoeForConditionalGeneration

    torch.set_grad_enabled(False)
    work, dtype = (SMALL, torch.float32) if small else (FULL, torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        ours_config = configuration(Path(folder), small)
        hf_config = AutoConfig.from_pretrained(folder)
    request = Request(ours_config, work)
    before = torch.cuda.memory_allocated() if device == "cuda" else 0
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = Ernie4_5_VLMoeForConditionalGeneration._from_config(hf_config, dtype=dtype).eval()
    torch.set_default_dtype(torch.float32)
    for parameter in model.parameters():
        parameter.normal_(0, parameter.shape[-1] ** -0.5) if parameter.ndim > 1 else parameter.fill_(1)
    tensors = {name: torch.from_numpy(array).to(device) for name, array in request.arrays.items()}
    tensors["pixel_values"] = tensors["pixel_values"].to(dtype)
    for experts in ("grouped_mm", "eager"):
        model.set_experts_implementation(experts)

        def prefill(rows: int) -> Any:
            model.model.rope_deltas = None
            inputs = {
                name: tensor.expand(rows, -1) if tensor.ndim == 2 and len(tensor) == 1 else tensor
                for name, tensor in tensors.items()
            }
            if rows > 1:  # the picture's part is the same for every row, and not what decode is about
                inputs = {"input_ids": torch.full((rows, request.tokens), 11, device=device)}
            output = model(**inputs, use_cache=True, logits_to_keep=1)
            return output.past_key_values, output.logits[:, -1].argmax(-1).tolist()[0]

        def step(cache: Any, tokens: Any, position: int) -> Any:
            positions = torch.full((3, len(tokens), 1), position, device=device)
            output = model(input_ids=tokens[:, None], past_key_values=cache, position_ids=positions, use_cache=True)
            return output.logits[:, -1].argmax(-1)

        times = [clock(partial(prefill, 1)) for _ in range(3)]
        yield {"by": experts, "dtype": str(dtype), "ttft_cold": times[0], "ttft": min(times)}
        for count in work.rows:
            cache, _ = prefill(count)
            tokens = torch.arange(10, 10 + count, device=device)
            for number in range(3):
                tokens = step(cache, tokens, request.tokens + number)
            started = time.perf_counter()
            for number in range(work.steps):
                tokens = step(cache, tokens, request.tokens + 3 + number)
                tokens.tolist()  # the host sees each token, as it has to in order to stream or to stop
            seconds = (time.perf_counter() - started) / work.steps
            used = torch.cuda.max_memory_allocated() - before if device == "cuda" else 0
            nbytes = step_bytes(ours_config, "bf16", count, request.tokens)
            yield decoded(experts, count, seconds, nbytes, bandwidth) | {"gib": used / 2**30}
            del cache


def step_bytes(config: Any, precision: str, rows: int, context: int) -> float:
    """Bytes that a decode step of so many rows must read (see ernie-plan)."""
    from ernie_export.exporter.plan.roofline import Cost
    from ernie_export.exporter.plan.sizes import Model
    from ernie_export.exporter.plan.workload import Workload
    from ernie_export.graphs.precision import ONNX

    counted = Model.build(config, ONNX["fp32"]).model
    stored = Model.build(config, ONNX[precision]).model.stored()
    return Cost(counted, ONNX[precision], stored).decode(Workload(context, rows, ())).nbytes


def decoded(name: str, rows: int, seconds: float, nbytes: float, bandwidth: float) -> dict[str, Any]:
    """One line about decode."""
    return {
        "by": name,
        "rows": rows,
        "step_seconds": seconds,
        "tokens_per_second": rows / seconds,
        "bytes": nbytes,
        "of_roof": nbytes / bandwidth / seconds,
    }


def device_memory(device: str) -> int:
    """Bytes free on the device; 0 where it is the host."""
    import torch

    return torch.cuda.mem_get_info()[0] if device == "cuda" else 0


def clock(call: Callable[[], Any]) -> float:
    """Seconds of one call that returns when its answer is on the host."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
