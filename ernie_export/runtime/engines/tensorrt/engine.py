"""Engines of TensorRT and of TensorRT for RTX: the weights once in device memory, bound to every engine; the KV cache
updated in place; decode steps as CUDA graphs.

Every engine input that is a tensor of the bundle's data file is a weight: its address is given when the bundle is
loaded and never changes. All else is bound for each call, or once for each number of rows that decode together. One
stream runs everything, one call at a time. Where the decode engine finds each row's candidates, the host reads those;
a row of logits leaves the device only if a sampler asks.

Not yet run on a card: tests run the same calls on a stand-in for the libraries, over the host's memory.
"""

import json
import math
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.device.memory import ALIGNMENT, CudaMemory, Memory
from ernie_export.runtime.engines.device.step import Step, offsets
from ernie_export.runtime.engines.ort_cuda import CacheStore, DeviceCache
from ernie_export.runtime.engines.tensorrt.library import opened
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.logits import DenseLogits, Logits

# Outputs of a decode engine that finds candidates -> a step's.
CANDIDATES = {"candidate_ids": "ids", "candidate_values": "values", "logit_total": "total"}
FLOATS = {"float32": 4, "bfloat16": 2, "float16": 2}  # bytes


@dataclass(frozen=True)
class Tensor:
    """An array in device memory."""

    address: int
    shape: tuple[int, ...]


@dataclass
class Decoding:
    """A decode step and what runs it; graph: the captured step, once it has run."""

    step: Step
    context: Any
    graph: Any = None


class TensorRTEngine:
    """See `Engine`."""

    def __init__(self, bundle: Path, manifest: Manifest, library: Any, memory: CudaMemory) -> None:
        """`library`: the Python module that `find_card` found. Closes the memory with itself, or if it fails.

        Raises UserError if the library does not take an engine, or there is too little memory.
        """
        assert manifest.engines is not None
        self._facts, self._limits, self._memory = manifest.model, manifest.engines, memory
        self._busy = threading.Lock()  # pictures are encoded in other threads than the one that decodes
        self._spare: list[CacheStore] = []
        self._decoding: dict[tuple[int, int], Decoding] = {}  # by the cache's address and the number of rows
        self._buffers: dict[tuple[str, str], tuple[int, int]] = {}  # address and bytes
        try:
            self._library = opened(library, manifest.engines, memory)
            self._engines = {name: self._library.load(bundle / manifest.graphs[name]) for name in GRAPHS}
            self._weights = load_weights(memory, bundle / manifest.data_file)
            self._contexts = {name: self._new_context(name) for name in GRAPHS}
        except BaseException:
            memory.close()
            raise
        decode = self._engines["decode"]
        kind = decode.get_tensor_dtype("past_key.0")
        self._float = next(name for name in FLOATS if getattr(library, name) == kind)
        self._capacity = int(decode.get_tensor_shape("past_key.0")[2])
        self._best = manifest.engines.top_k

    def _new_context(self, name: str) -> Any:
        """A context with the weights bound."""
        context = self._library.new_context(self._engines[name], name)
        for tensor in self._tensors(name) & self._weights.keys():
            context.set_tensor_address(tensor, self._weights[tensor])
        return context

    def _tensors(self, name: str) -> set[str]:
        """Names of an engine's inputs and outputs."""
        engine = self._engines[name]
        return {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """See `Engine.encode`. Pair by pair, since the engines were built for that; float32.

        Raises UserError for a picture larger than the engines were built for.
        """
        tokens = pixel_values.shape[1] // self._facts.spatial_merge_size**2
        if tokens > self._limits.max_image_tokens:
            most = f"{self._limits.max_image_tokens} tokens (--max-image-tokens of ernie-export)"
            raise UserError(f"picture: expected at most {most}, found {tokens}")
        features = []
        with self._busy:
            for first, second in pairs.T.tolist():
                frames = pixel_values[[first] if first == second else [first, second]]
                inputs = {"pixel_values": frames, "coordinates": coordinates}
                hidden = self._run("vision", inputs, ["hidden"])["hidden"]
                ends = {"first": np.array([0]), "second": np.array([len(frames) - 1])}
                merged = self._run("resampler", {"hidden": hidden, **ends}, ["features"])["features"]
                features.append(self._fetch(merged))
        return np.concatenate(features)

    def new_cache(self, rows: int, capacity: int) -> DeviceCache:
        """See `Engine.new_cache`. The capacity is always that which the engines were built for.

        Takes up the memory of a cache that is no longer used.
        """
        facts = self._facts
        shape = (rows, facts.num_kv_heads, self._capacity, facts.head_dim)
        store = next((spare for spare in self._spare if spare.shape == shape), None)
        if store is None:
            while self._spare:
                self._free(self._spare.pop())
            store = CacheStore(self._memory, shape, FLOATS[self._float], 2 * facts.num_layers)
        else:
            self._spare.remove(store)
        cache = DeviceCache(store, self.new_cache)
        weakref.finalize(cache, self._spare.append, store)
        return cache

    def prefill(self, cache: KVCache, row: int, chunk: PromptChunk) -> Logits:
        """See `Engine.prefill`."""
        length = len(chunk.input_ids)
        features = chunk.features if len(chunk.features) else np.zeros((1, self._facts.hidden_size), np.float32)
        arrays = {
            "input_ids": chunk.input_ids[None],
            "feature_index": chunk.feature_index[None],
            "features": self._as_stored(features),
            "token_types": chunk.token_types[None],
            "position_ids": chunk.position_ids[:, None],
            "past_lengths": cache.lengths[row : row + 1],
            "lengths": np.array([length]),
        }
        assert isinstance(cache, DeviceCache)
        with self._busy:
            self._bind_cache(self._contexts["decoder"], cache.store, row, row + 1)
            logits = self._run("decoder", arrays, ["logits"])["logits"]
            values = np.frombuffer(self._memory.read(logits.address, 4 * math.prod(logits.shape)), np.float32)
        cache.lengths[row] += length
        return DenseLogits(values)

    def decode(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """See `Engine.decode`."""
        assert isinstance(cache, DeviceCache)
        rows = len(tokens)
        with self._busy:
            decoding = self._decoding.get((cache.store.address, rows)) or self._new_decoding(cache.store, rows)
            step = decoding.step
            step.write(tokens, positions, cache.lengths[:rows])
            if decoding.graph is not None:
                self._memory.launch(decoding.graph)
            else:
                self._enqueue("decode", decoding.context)
            logits = step.topk_logits() if step.best else step.dense_logits()
            if self._library.captures and decoding.graph is None:  # a context has to run once before
                decoding.graph = self._memory.capture(lambda: self._enqueue("decode", decoding.context))
        cache.lengths[:rows] += 1
        return logits

    def _new_decoding(self, store: CacheStore, rows: int) -> Decoding:
        """A step of the cache's first rows, bound to addresses that it keeps."""
        captures = self._library.captures
        if not captures:  # one context serves every number of rows, bound to one at a time
            for place in list(self._decoding):
                self._decoding.pop(place).step.free()
        context = self._new_context("decode") if captures else self._contexts["decode"]
        step = Step.allocate(self._memory, rows, self._facts.vocab_size, self._best)
        self._bind_cache(context, store, 0, rows)
        for name, (address, shape) in step.inputs.items():
            context.set_input_shape(name, shape)
            context.set_tensor_address(name, address)
        for name, output in {"logits": "logits", **(CANDIDATES if step.best else {})}.items():
            context.set_tensor_address(name, step.outputs[output][0])
        decoding = self._decoding[store.address, rows] = Decoding(step, context)
        return decoding

    def _free(self, store: CacheStore) -> None:
        """Give back a cache's memory, and what was bound to it."""
        for address, rows in list(self._decoding):
            if address == store.address:
                decoding = self._decoding.pop((address, rows))
                if decoding.graph is not None:
                    self._memory.drop(decoding.graph)
                decoding.step.free()
        store.free()

    def _bind_cache(self, context: Any, store: CacheStore, start: int, stop: int) -> None:
        """Rows start to stop of every buffer as past and present alike."""
        layers = self._facts.num_layers
        for buffer in range(2 * layers):
            name, address = f"{('key', 'value')[buffer // layers]}.{buffer % layers}", store.row(buffer, start)
            context.set_input_shape(f"past_{name}", (stop - start, *store.shape[1:]))
            context.set_tensor_address(f"past_{name}", address)
            context.set_tensor_address(f"present_{name}", address)

    def _enqueue(self, graph: str, context: Any) -> None:
        if not context.execute_async_v3(self._memory.stream):
            raise RuntimeError(f"TensorRT could not run the {graph} engine")

    def _run(self, graph: str, inputs: Mapping[str, np.ndarray | Tensor], outputs: list[str]) -> dict[str, Tensor]:
        """Copy the inputs that are arrays, run, and return the outputs, which are valid until the graph's next run."""
        context, results = self._contexts[graph], {}
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                array = np.ascontiguousarray(value)
                value = Tensor(self._buffer(graph, name, array.nbytes), array.shape)
                self._memory.write(value.address, array)
            context.set_input_shape(name, value.shape)
            context.set_tensor_address(name, value.address)
        for name in outputs:
            shape = tuple(context.get_tensor_shape(name))
            results[name] = Tensor(self._buffer(graph, name, 4 * math.prod(shape)), shape)
            context.set_tensor_address(name, results[name].address)
        self._enqueue(graph, context)
        return results

    def _buffer(self, graph: str, name: str, nbytes: int) -> int:
        """Memory for one input or output, kept from call to call; a larger one where it is too small."""
        address, size = self._buffers.get((graph, name), (0, 0))
        if size < nbytes:
            if size:
                self._memory.free(address)
            address, size = self._buffers[graph, name] = self._memory.allocate(nbytes), nbytes
        return address

    def _as_stored(self, array: np.ndarray) -> np.ndarray:
        """float32 in the engines' type. NumPy has no bfloat16: its bits are the upper half of a float32's."""
        array = np.ascontiguousarray(array, np.float32)
        if self._float == "bfloat16":
            return np.ascontiguousarray(array.view(np.uint16)[..., 1::2])
        return array.astype(self._float)

    def _fetch(self, tensor: Tensor) -> np.ndarray:
        """A tensor of the engines' type as float32."""
        block = self._memory.read(tensor.address, math.prod(tensor.shape) * FLOATS[self._float])
        if self._float == "bfloat16":
            values = (np.frombuffer(block, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(block, self._float).astype(np.float32)
        return values.reshape(tensor.shape)

    def close(self) -> None:
        """Free contexts, engines and device memory."""
        self._spare.clear()
        self._decoding.clear()
        self._contexts.clear()
        self._engines.clear()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_weights(memory: Memory, path: Path) -> dict[str, int]:
    """Copy the data file's tensors to the device in one piece; returns their addresses by name, all of them aligned.

    The exporter orders tensors so that few, and small ones, begin elsewhere: those are copied to places of their own.
    """
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        nbytes = path.stat().st_size - 8 - length
        start = memory.allocate(nbytes)
        memory.fill(start, file, nbytes)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    addresses = {name: start + begin for name, (begin, _) in spans.items()}
    stray = [name for name, address in addresses.items() if address % ALIGNMENT]
    places = offsets([spans[name][1] - spans[name][0] for name in stray])
    if stray:
        extra, pieces = memory.allocate(places[-1]), []
        for name, place in zip(stray, places, strict=False):
            pieces.append((extra + place, addresses[name], spans[name][1] - spans[name][0]))
            addresses[name] = extra + place
        memory.copy(pieces)
    return addresses
