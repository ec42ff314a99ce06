"""ONNX Runtime's CUDA provider: weights, KV cache, inputs and logits in device memory, decode steps as CUDA graphs.

Weights are copied to the device once and given to every session as initializers of the caller's, so the graphs share
them. A decode step binds addresses that never change for its number of rows, so that ONNX Runtime captures it once and
replays it: the host writes a few numbers, starts the graph, and reads each row's best candidates.

Everything is bound by device name and address. With `HostMemory` the same code runs on a machine without a GPU.
"""

import json
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.device.find_gpu import PROVIDER
from ernie_export.runtime.engines.device.memory import Memory, read_file
from ernie_export.runtime.engines.device.step import BEST, Step
from ernie_export.runtime.engines.ort_cpu import OnnxRuntimeEngine, blamed
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.logits import DenseLogits, Logits

# ONNX's numbers for the types that safetensors names, and for those of the graphs' inputs.
ONNX_TYPES = {"F32": 1, "U8": 2, "I8": 3, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "BF16": 16}
FLOAT_TYPES = {"tensor(float)": ("F32", 4), "tensor(float16)": ("F16", 2), "tensor(bfloat16)": ("BF16", 2)}
CAPACITY_STEP = 256  # caches of like capacity share buffers and captured graphs
CANDIDATES = Path(__file__).with_name("candidates.onnx")  # see tools/make_candidates.py


class DeviceCache(KVCache):
    """A KV cache in device memory: as `KVCache`, but with addresses in place of arrays."""

    def __init__(self, store: "CacheStore", make: Callable[[int, int], "DeviceCache"]) -> None:
        """`make`: a new cache of so many rows and tokens."""
        self.store = store
        self.rows, _, self.capacity, _ = store.shape
        self.lengths = np.zeros(self.rows, np.int64)
        self.token_bytes = store.count * store.row_bytes // self.capacity
        self._make = make

    def copy_row(self, source: int, target: int, length: int) -> None:
        """See `KVCache.copy_row`. On a device it is as quick to copy the whole row, which lies in one piece."""
        self.store.copy_rows([(target, source)])
        self.lengths[target] = length

    def swap_rows(self, one: int, other: int) -> None:
        """See `KVCache.swap_rows`."""
        spare = self.rows  # the store keeps a row more than the cache has
        self.store.copy_rows([(spare, one), (one, other), (other, spare)])
        self.lengths[[one, other]] = self.lengths[[other, one]]

    def resized(self, kept: list[int], rows: int, capacity: int) -> "DeviceCache":
        """See `KVCache.resized`; the two are both there for a moment."""
        resized = self._make(rows, capacity)
        lengths = np.minimum(self.lengths[kept], capacity)
        self.store.copy_tokens(resized.store, list(zip(kept, lengths.tolist(), strict=True)))
        resized.lengths[: len(kept)] = lengths
        self.lengths[:] = 0
        return resized


@dataclass
class CacheStore:
    """The memory of one cache at a time, and what is bound to its addresses.

    shape: (rows, kv heads, capacity, head size) of each of `count` buffers: keys of every layer, then values of every
    layer. Each buffer has one row more, to move rows with.
    """

    memory: Memory
    shape: tuple[int, int, int, int]
    item_bytes: int
    count: int
    bindings: dict[tuple[str, int, int], ort.IOBinding] = field(default_factory=dict)
    steps: dict[int, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.row_bytes = int(np.prod(self.shape[1:])) * self.item_bytes
        self.address = self.memory.allocate(self.count * (self.shape[0] + 1) * self.row_bytes)

    def row(self, buffer: int, row: int) -> int:
        """Address of one row of a buffer."""
        return self.address + (buffer * (self.shape[0] + 1) + row) * self.row_bytes

    def copy_rows(self, moves: list[tuple[int, int]]) -> None:
        """Copy rows in every buffer, in order: (target, source) of each."""
        buffers = range(self.count)
        self.memory.copy((self.row(b, to), self.row(b, from_), self.row_bytes) for b in buffers for to, from_ in moves)

    def copy_tokens(self, target: "CacheStore", rows: list[tuple[int, int]]) -> None:
        """Copy the first tokens of rows of this store to the first rows of another: (row, tokens) of each."""
        _, heads, capacity, size = self.shape
        token, pieces = size * self.item_bytes, []
        for buffer in range(self.count):
            for place, (row, length) in enumerate(rows):
                for head in range(heads):
                    to = target.row(buffer, place) + head * target.shape[2] * token
                    pieces.append((to, self.row(buffer, row) + head * capacity * token, length * token))
        self.memory.copy(pieces)

    def free(self) -> None:
        """Give the memory back; steps and bindings go first."""
        self.bindings.clear()
        for step in self.steps.values():
            step.free()
        self.steps.clear()
        self.memory.free(self.address)


class CudaEngine(OnnxRuntimeEngine):
    """See `Engine`."""

    def __init__(self, bundle: Path, manifest: Manifest, threads: int | None, memory: Memory) -> None:
        """`memory`: a GPU's (`CudaMemory.for_bundle`); `HostMemory()` runs the same calls on the host.

        Closes the memory with itself, or if it fails.
        """
        self._memory = memory
        # The provider keeps captured graphs and library handles by thread: whoever calls, one thread of ours runs.
        self._thread = ThreadPoolExecutor(1, "cuda")
        self._spare: list[CacheStore] = []
        self._graphs = 0
        try:
            super().__init__(bundle, manifest, threads)
        except BaseException:
            self._thread.shutdown()
            memory.close()
            raise
        kind, self._item_bytes = FLOAT_TYPES[self._sessions["resampler"].get_outputs()[0].type]
        self._float = ONNX_TYPES[kind]
        self._best = min(BEST, self._facts.vocab_size)

    def _open_sessions(self, bundle: Path, manifest: Manifest, threads: int | None) -> dict[str, ort.InferenceSession]:
        """A session a graph, all over one copy of the weights in device memory."""
        best = ort.InferenceSession(CANDIDATES, self._options(threads), providers=self._providers("candidates"))
        weights = self._load_weights(bundle / manifest.data_file, best)
        sessions = {"candidates": best}
        for name in GRAPHS:
            options = self._options(threads)
            for tensor, value in weights.items():
                options.add_initializer(tensor, value)
            with blamed(self._paths[name]):
                sessions[name] = ort.InferenceSession(self._paths[name], options, providers=self._providers(name))
        self._weights = weights  # the sessions use them, and don't keep them
        return sessions

    def _providers(self, graph: str) -> list[str | tuple[str, dict[str, str]]]:
        if self._memory.device == "cpu":
            return ["CPUExecutionProvider"]
        options = {
            # TF32 rounds the router's float32 products to 10 bits, and other experts would be chosen.
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "1" if graph in ("decode", "candidates") else "0",
        }
        return [(PROVIDER, options), "CPUExecutionProvider"]

    def _load_weights(self, path: Path, session: ort.InferenceSession) -> dict[str, ort.OrtValue]:
        """Copy the data file to the device; returns its tensors, which own no memory."""
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = self._memory.allocate(path.stat().st_size - 8 - length)
        self._fill(start, path, 8 + length, header)
        tensors = {}
        for name, entry in header.items():
            # A bound output is the one tensor over given memory that the Python interface makes.
            binding = session.io_binding()
            address = start + entry["data_offsets"][0]
            kind = ONNX_TYPES[entry["dtype"]]
            binding.bind_output("ids", self._memory.device, 0, kind, entry["shape"], address)
            (tensors[name],) = binding.get_outputs()
        return tensors

    def _fill(self, address: int, path: Path, start: int, header: dict[str, Any]) -> None:
        """Bring the tensors that `header` places to `address` on: the file's bytes from `start` on."""
        read_file(self._memory, address, path, start)

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """See `Engine.encode`. The encoder's output stays on the device."""
        return self._thread.submit(self._encode, pixel_values, coordinates, pairs).result()

    def _encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        vision = self._sessions["vision"].io_binding()
        for name, array in {"pixel_values": pixel_values, "coordinates": coordinates}.items():
            vision.bind_cpu_input(name, array)
        vision.bind_output("hidden", self._memory.device)
        self._sessions["vision"].run_with_iobinding(vision)
        merge = self._sessions["resampler"].io_binding()
        merge.bind_ortvalue_input("hidden", vision.get_outputs()[0])
        first, second = (np.ascontiguousarray(part) for part in pairs)
        merge.bind_cpu_input("first", first)
        merge.bind_cpu_input("second", second)
        merge.bind_output("features", self._memory.device)
        self._sessions["resampler"].run_with_iobinding(merge)
        (features,) = merge.get_outputs()
        return self._to_numpy(features)

    def new_cache(self, rows: int, capacity: int) -> DeviceCache:
        """See `Engine.new_cache`. Takes up the memory of a cache that is no longer used, if it fits exactly."""
        facts = self._facts
        whole = -(-capacity // CAPACITY_STEP) * CAPACITY_STEP
        shape = (rows, facts.num_kv_heads, whole, facts.head_dim)
        store = next((spare for spare in self._spare if spare.shape == shape), None)
        if store is None:
            while self._spare:
                self._spare.pop().free()
            store = CacheStore(self._memory, shape, self._item_bytes, 2 * facts.num_layers)
        else:
            self._spare.remove(store)
        cache = DeviceCache(store, self.new_cache)
        weakref.finalize(cache, self._spare.append, store)
        return cache

    def prefill(self, cache: KVCache, row: int, chunk: PromptChunk) -> Logits:
        """See `Engine.prefill`."""
        return self._thread.submit(self._prefill, cache, row, chunk).result()

    def _prefill(self, cache: KVCache, row: int, chunk: PromptChunk) -> Logits:
        assert isinstance(cache, DeviceCache)
        length = len(chunk.input_ids)
        arrays = {name: np.ascontiguousarray(a) for name, a in self._prompt_arrays(cache, row, chunk).items()}
        binding = self._bound_cache("decoder", cache.store, row, row + 1)
        binding.bind_ortvalue_input("features", self._from_numpy(arrays.pop("features")))
        for name, array in arrays.items():  # which have to last until the run: they are bound by address
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")
        self._sessions["decoder"].run_with_iobinding(binding)
        cache.lengths[row] += length
        return DenseLogits(binding.get_outputs()[-1].numpy()[0])

    def decode(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """See `Engine.decode`. A row's logits stay on the device; they are its until the next call."""
        return self._thread.submit(self._decode, cache, tokens, positions).result()

    def _decode(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        assert isinstance(cache, DeviceCache)
        rows = len(tokens)
        step = cache.store.steps.get(rows) or self._capture_step(cache.store, rows)
        step.write(tokens, positions, cache.lengths[:rows])
        for graph in ("decode", "candidates"):
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(step.graph))
            self._sessions[graph].run_with_iobinding(cache.store.bindings[graph, 0, rows], options)
        cache.lengths[:rows] += 1
        return step.topk_logits()

    def _capture_step(self, store: CacheStore, rows: int) -> Step:
        """Bind a decode step of so many rows to addresses of its own; its first run is captured."""
        self._graphs += 1  # the number under which ONNX Runtime keeps the captured graph
        step = Step.allocate(self._memory, rows, self._facts.vocab_size, self._best, self._graphs)
        store.steps[rows] = step
        device = self._memory.device
        decode = self._bound_cache("decode", store, 0, rows)
        for name, (address, shape) in step.inputs.items():
            decode.bind_input(name, device, 0, np.int64, shape, address)
        address, shape = step.outputs["logits"]
        decode.bind_output("logits", device, 0, np.float32, shape, address)
        best = store.bindings["candidates", 0, rows] = self._sessions["candidates"].io_binding()
        best.bind_input("logits", device, 0, np.float32, shape, address)
        for name, dtype in (("ids", np.int64), ("values", np.float32), ("total", np.float32)):
            address, shape = step.outputs[name]
            best.bind_output(name, device, 0, dtype, shape, address)
        return step

    def _bound_cache(self, graph: str, store: CacheStore, start: int, stop: int) -> ort.IOBinding:
        """A binding with rows start to stop of every buffer as past and present alike, kept with the cache's memory."""
        binding = store.bindings.get((graph, start, stop))
        if binding is None:
            binding = store.bindings[graph, start, stop] = self._sessions[graph].io_binding()
            layers, shape = self._facts.num_layers, (stop - start, *store.shape[1:])
            for index in range(2 * layers):
                part, layer = ("key", "value")[index // layers], index % layers
                place = (self._memory.device, 0, self._float, shape, store.row(index, start))
                binding.bind_input(f"past_{part}.{layer}", *place)
                binding.bind_output(f"present_{part}.{layer}", *place)
        return binding

    def _from_numpy(self, array: np.ndarray) -> ort.OrtValue:
        """Floats in the graphs' dtype. NumPy has no bfloat16: its bits are the upper half of a float32's."""
        if self._float != ONNX_TYPES["BF16"]:
            return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, self.dtype))
        halves = np.ascontiguousarray(np.ascontiguousarray(array, np.float32).view(np.uint16)[..., 1::2])
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(halves, self._float)

    def _to_numpy(self, value: ort.OrtValue) -> np.ndarray:
        if self._float != ONNX_TYPES["BF16"]:
            return value.numpy()
        halves = np.frombuffer(self._memory.read(value.data_ptr(), value.tensor_size_in_bytes()), np.uint16)
        return (halves.astype(np.uint32) << 16).view(np.float32).reshape(value.shape())

    def close(self) -> None:
        """Free the sessions, then the device memory."""
        self._thread.shutdown()
        self._spare.clear()
        super().close()
        self._weights.clear()
        self._memory.close()
