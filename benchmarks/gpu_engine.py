"""What gpu_model.py and gpu_probe.py run: an engine of the runtime, filled from nothing, and one prompt for it.

The 54.8 GiB of weights are never on a disk: the graphs are built from the configuration, the data file is a hole of
the right size, and every tensor is filled on the device from one pool of random numbers.
"""

import math
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
SMALL_FILE = 2**26  # bytes
POOL = 2**24 + 9  # values; no multiple of a width, so that rows differ


@dataclass(frozen=True)
class Work:
    """text, image: prompt tokens. rows: of decode. steps: timed ones. context: of the one slot whose memory is read."""

    text: int
    image: tuple[int, int]  # patches, height and width
    rows: tuple[int, ...]
    steps: int
    context: int = 0


def configuration(folder: Path, small: bool) -> Any:
    """The configuration of the shape that is measured, as the exporter reads it."""
    from make_checkpoint import SHAPES, write_settings

    from ernie_export.graphs.config import ErnieConfig

    shape = SHAPES["tiny" if small else "full"]
    write_settings(folder, shape, shape["text"]["num_hidden_layers"])
    return ErnieConfig.from_hf(folder)


def hollow_bundle(folder: Path, config: Any, precision: str) -> Any:
    """A bundle's graphs, and its data file as a hole; returns the manifest."""
    from ernie_export.exporter.export import describe, tiled_weights
    from ernie_export.exporter.targets.onnx import ONNX
    from ernie_export.exporter.targets.target import DATA_FILE
    from ernie_export.exporter.weights import writer as weights
    from ernie_export.graphs.build import all_weights, build_graphs

    chosen = ONNX.precision(precision)
    graphs = build_graphs(config, chosen)
    layout = weights.plan(all_weights(graphs))
    for name, graph in graphs.items():
        graph.save(folder / f"{name}.onnx", ONNX.op_bodies, DATA_FILE, layout.offsets)
    with (folder / DATA_FILE).open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.nbytes)
    tiled = tiled_weights(layout.weights)
    return describe(folder, config, ONNX, chosen, data_digest="", tiled=tiled)


def deviations(config: Any, precision: str) -> dict[str, float]:
    """Return the standard deviation of each tensor's values, by name: sums over a weight's inputs keep their size.

    Values of a quantized weight are any of its range, so that its scales have to make up for their spread.
    """
    from ernie_export.exporter.targets.onnx import ONNX
    from ernie_export.graphs.build import all_weights, build_graphs
    from ernie_export.graphs.weight_spec import ScalesOf

    weights = {weight.name: weight for weight in all_weights(build_graphs(config, ONNX.precision(precision)))}
    found = {}
    for name, weight in weights.items():
        (piece, *_) = weight.pieces
        if isinstance(piece, ScalesOf):
            how = weights[piece.qweight].quantization
            spread = ((4**how.bits - 1) / 12) ** 0.5  # of whole numbers that are equally likely
            found[name] = (weight.shape[-1] * how.group) ** -0.5 / spread
        else:
            summed = weight.shape[0 if name.endswith(("gate.weight", "gate.weight_1")) else -1]
            found[name] = summed**-0.5 if len(weight.shape) > 1 else 0.0
    return found


def open_engine(folder: Path, manifest: Any, device: str, random: dict[str, float] | None = None) -> Any:
    """Open the CUDA engine on the device, or on the host's memory for a dry run.

    Args:
        folder: The bundle.
        manifest: Its manifest.
        device: "cuda" or "cpu".
        random: Deviations of random numbers to fill the tensors with; None for the file's own.
    """
    from ernie_export.runtime.engines.device.memory import CudaMemory, HostMemory
    from ernie_export.runtime.engines.device.weights import load_weights
    from ernie_export.runtime.engines.ort_cuda import OrtCudaEngine

    memory = CudaMemory.for_bundle(folder, manifest) if device == "cuda" else HostMemory()
    threads = 1 if device == "cpu" else None
    weights = load_weights if random is None else partial(random_weights, deviations=random)
    return OrtCudaEngine(folder, manifest, threads, memory, weights=weights)


def random_weights(memory: Any, path: Path, deviations: dict[str, float]) -> Any:
    """Allocate the tensors of a data file and fill them with random numbers.

    A small file gets them as well: where a CPU has no kernels in 16 bits, ONNX Runtime casts initializers while it
    opens a graph, and takes them from the file.
    """
    from ernie_export.runtime.engines.device.weights import allocate_weights

    weights = allocate_weights(memory, path)
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    for name, weight in weights.items():
        shape = weight.entry.shape
        deviation = np.float32(deviations[name])
        if name.endswith("_scales"):  # positive, and near their size
            floats = deviation * (1 + pool[: math.prod(shape)] / 10)
        else:
            floats = pool[: math.prod(shape)] * deviation + np.float32(len(shape) == 1 and ".bias" not in name)
        values = stored(floats, weight.entry.dtype)
        for start in range(0, weight.entry.nbytes, values.nbytes):
            part = values.view(np.uint8)[: min(values.nbytes, weight.entry.nbytes - start)]
            memory.write(weight.address + start, part)
    if path.stat().st_size < SMALL_FILE:
        with path.open("r+b") as file:
            for weight in weights.values():
                file.seek(weight.entry.offset)
                file.write(memory.read(weight.address, weight.entry.nbytes))
    return weights


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return floats as a data file stores them; quantized weights are any bytes of them."""
    from ernie_export.common import bfloat16

    if dtype == "U8":
        return np.ascontiguousarray(values.view(np.uint8)[::4])
    if dtype == "BF16":
        return bfloat16.to_bits(values)
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype])


class Request:
    """One prompt, a picture before its text, as either side takes it."""

    def __init__(self, config: Any, work: Work) -> None:
        from contestants import prompt

        ids = {name: getattr(config, f"{name}_token_id") for name in ("image", "image_start", "image_end")}
        self.arrays = prompt(work.text, work.image, ids)
        self.tokens = self.arrays["input_ids"].shape[1]

    def first_token(self, engine: Any, cache: Any, row: int) -> np.ndarray:
        """Encode the image and prefill in chunks of the engine's own length; returns the logits."""
        return self.prefill(engine, cache, row, self.encode(engine))

    def encode(self, engine: Any) -> np.ndarray:
        """Return the image's features, a row for each of its tokens."""
        height, width = self.arrays["image_grid_thw"][0, 1:].tolist()
        down, across, below, beside = np.indices((height // 2, width // 2, 2, 2))  # blocks of 2 by 2 patches
        grid = np.stack([2 * down + below, 2 * across + beside], axis=-1).reshape(-1, 2)
        features = engine.encode(self.arrays["pixel_values"][None], grid, np.zeros((2, 1), np.int64))
        return features.reshape(-1, features.shape[-1])

    def prefill(
        self, engine: Any, cache: Any, row: int, features: np.ndarray, chunk_tokens: int | None = None
    ) -> np.ndarray:
        """Prefill in chunks, by default of the engine's own length; returns the logits."""
        from ernie_export.runtime.engines import ChoosesChunks, PrefillChunks, PromptChunk

        is_feature = self.arrays["mm_token_type_ids"][0] != 0
        index = np.where(is_feature, np.cumsum(is_feature), 0)
        positions = np.tile(np.arange(self.tokens), (3, 1))
        cache.lengths[row] = 0
        own = engine.prefill_chunks if isinstance(engine, ChoosesChunks) else PrefillChunks()
        step = min(chunk_tokens or own.alone, engine.max_prefill_chunk)
        for start in range(0, self.tokens, step):
            part = slice(start, start + step)
            types = self.arrays["moe_mm_token_type_ids"][0, part]
            chunk = PromptChunk(self.arrays["input_ids"][0, part], types, index[part], positions[:, part], features)
            logits = engine.prefill(cache, row, chunk).full()
        return logits


def decode(engine: Any, cache: Any, rows: int, steps: int) -> list[np.ndarray]:
    """Greedy steps, from different tokens in every row; returns each step's tokens."""
    tokens = np.arange(10, 10 + rows)
    found = []
    for _ in range(steps):
        logits = engine.decode(cache, tokens, np.tile(cache.lengths[:rows], (3, 1)))
        tokens = np.array([row.full().argmax() if (best := row.topk()) is None else best.ids[0] for row in logits])
        found.append(tokens)
    return found
