"""Engines of TensorRT for RTX: the weights once in device memory, bound to every engine; the KV cache updated in place.

Every engine input that is a tensor of the bundle's data file is a weight: its address is given when the bundle is
loaded and never changes. All else is bound for each call. One stream runs everything, one call at a time.

Not yet run on a card: tests run the same calls on a stand-in for the library, over the host's memory.
"""

import json
import math
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import GRAPHS, Manifest
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.cuda import CacheStore, DeviceCache
from ernie_export.runtime.engines.find_gpu import find_cuda
from ernie_export.runtime.engines.memory import CudaMemory, Memory, data_file, read_file
from ernie_export.runtime.kv_cache import KVCache

ALIGNMENT = 256  # bytes, of every address that the library is given
CUDA_MAJOR = "13"  # what the library was built for


class CardMemory(Memory, Protocol):
    """A GPU's memory, with what else is asked of the GPU."""

    def compute_capability(self) -> str:
        """Such as 8.9."""
        ...

    def new_stream(self) -> int:
        """Handle of a stream that the memory's copies wait for."""
        ...


@dataclass(frozen=True)
class Tensor:
    """An array in device memory."""

    address: int
    shape: tuple[int, ...]


def find_card(bundle: Path, manifest: Manifest) -> tuple[Any, CudaMemory]:
    """The library and the first GPU's memory, for a bundle of target trt-rtx. Nothing is loaded yet.

    Raises UserError if the library is missing or not the one that built the engines, there is no driver or GPU, or it
    has too little free memory.
    """
    facts = manifest.engines
    assert facts is not None  # a bundle of this target has them
    try:
        import tensorrt_rtx_bindings as library
    except ModuleNotFoundError as e:
        raise UserError(f"{bundle}: expected {facts.library} (pip install .[trt-rtx]), found none") from e
    if library.__version__ != facts.version:
        expected = f"{facts.library} {facts.version}, which built its engines"
        raise UserError(f"{bundle}: expected {expected}, found {library.__version__} (export again, or install that)")
    memory = CudaMemory(find_cuda(f"{bundle}: target {manifest.target}", "trt-rtx", CUDA_MAJOR))
    memory.check_room(bundle, manifest)
    return library, memory


class TensorRTEngine:
    """See `Engine`."""

    def __init__(self, bundle: Path, manifest: Manifest, library: Any, memory: CardMemory) -> None:
        """`library`: tensorrt_rtx_bindings. Closes the memory with itself, or if it fails.

        Raises UserError if the GPU is not one that the engines were built for.
        """
        assert manifest.engines is not None
        self._facts, self._limits, self._memory = manifest.model, manifest.engines, memory
        self._stream = memory.new_stream()
        self._busy = threading.Lock()  # pictures are encoded in other threads than the one that decodes
        self._spare: list[CacheStore] = []
        self._buffers: dict[tuple[str, str], tuple[int, int]] = {}  # address and bytes
        try:
            self._runtime = library.Runtime(library.Logger(library.Logger.ERROR))
            self._engines = {name: self._load(library, bundle / manifest.graphs[name]) for name in GRAPHS}
            self._contexts = {name: self._new_context(library, name) for name in GRAPHS}
            self._weights = load_weights(memory, data_file(bundle, manifest))
            for name, context in self._contexts.items():
                for tensor in self._inputs(library, name) & self._weights.keys():
                    context.set_tensor_address(tensor, self._weights[tensor])
        except BaseException:
            memory.close()
            raise
        kind = self._engines["decode"].get_tensor_dtype("past_key.0")
        self._bits = {library.float32: 32, library.bfloat16: 16}[kind]
        self._capacity = int(self._engines["decode"].get_tensor_shape("past_key.0")[2])

    def _load(self, library: Any, path: Path) -> Any:
        """An engine, if the library says that it runs on this GPU."""
        plan = path.read_bytes()
        validity, reasons = self._runtime.get_engine_validity(plan)
        if validity == library.EngineValidity.INVALID:
            kinds = library.EngineInvalidityDiagnostics.__members__
            why = ", ".join(name for name, kind in kinds.items() if reasons & int(kind)) or "no reason given"
            expected = f"a GPU of compute capability {' or '.join(self._limits.compute_capabilities)}"
            raise UserError(f"{path}: expected {expected}, found {self._memory.compute_capability()} ({why})")
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise UserError(f"{path}: expected an engine of {self._limits.library}, found that it does not read it")
        return engine

    def _new_context(self, library: Any, name: str) -> Any:
        """A context; a decode step, which is the same again and again, is captured as a CUDA graph."""
        engine = self._engines[name]
        config = engine.create_runtime_config()
        if name == "decode":
            config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
        if context is None:
            raise UserError(f"GPU: expected room for the {name} engine's working memory, found that there is none")
        return context

    def _inputs(self, library: Any, name: str) -> set[str]:
        engine = self._engines[name]
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {tensor for tensor in names if engine.get_tensor_mode(tensor) == library.TensorIOMode.INPUT}

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
                self._spare.pop().free()
            store = CacheStore(self._memory, shape, self._bits // 8, 2 * facts.num_layers)
        else:
            self._spare.remove(store)
        cache = DeviceCache(store, self.new_cache)
        weakref.finalize(cache, self._spare.append, store)
        return cache

    def prefill(self, cache: KVCache, row: int, chunk: PromptChunk) -> np.ndarray:
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
        with self._busy:
            logits = self._decoder("decoder", arrays, cache, slice(row, row + 1))
        cache.lengths[row] += length
        return logits[0]

    def decode(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `Engine.decode`."""
        rows = len(tokens)
        arrays = {
            "input_ids": tokens[:, None],
            "position_ids": positions[:, :, None],
            "past_lengths": cache.lengths[:rows],
            "lengths": np.ones(rows, np.int64),
        }
        with self._busy:
            logits = self._decoder("decode", arrays, cache, slice(0, rows))
        cache.lengths[:rows] += 1
        return logits

    def _decoder(self, graph: str, arrays: Mapping[str, np.ndarray], cache: KVCache, rows: slice) -> np.ndarray:
        """Run a decoder graph over some rows of the cache, past and present in one place; returns logits."""
        assert isinstance(cache, DeviceCache)
        context, layers = self._contexts[graph], self._facts.num_layers
        shape = (rows.stop - rows.start, *cache.store.shape[1:])
        for buffer in range(2 * layers):
            name = f"{('key', 'value')[buffer // layers]}.{buffer % layers}"
            address = cache.store.row(buffer, rows.start)
            context.set_input_shape(f"past_{name}", shape)
            context.set_tensor_address(f"past_{name}", address)
            context.set_tensor_address(f"present_{name}", address)
        logits = self._run(graph, arrays, ["logits"])["logits"]
        size = math.prod(logits.shape)
        return np.frombuffer(self._memory.read(logits.address, 4 * size), np.float32).reshape(logits.shape)

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
        if not context.execute_async_v3(self._stream):
            raise RuntimeError(f"TensorRT could not run the {graph} engine")
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
        return array if self._bits == 32 else np.ascontiguousarray(array.view(np.uint16)[..., 1::2])

    def _fetch(self, tensor: Tensor) -> np.ndarray:
        """A tensor of the engines' type as float32."""
        size = math.prod(tensor.shape)
        block = self._memory.read(tensor.address, size * self._bits // 8)
        if self._bits == 32:
            return np.frombuffer(block, np.float32).reshape(tensor.shape)
        return (np.frombuffer(block, np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(tensor.shape)

    def close(self) -> None:
        """Free contexts, engines and device memory."""
        self._spare.clear()
        self._contexts.clear()
        self._engines.clear()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def load_weights(memory: Memory, path: Path) -> dict[str, int]:
    """Copy every tensor of the data file to the device; returns their addresses by name."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    spans = {name: entry["data_offsets"] for name, entry in header.items()}
    sizes = [-(-(end - begin) // ALIGNMENT) * ALIGNMENT for begin, end in spans.values()]
    address, addresses = memory.allocate(sum(sizes)), {}
    for (name, (begin, end)), size in zip(spans.items(), sizes, strict=True):
        read_file(memory, address, path, 8 + length + begin, end - begin)
        addresses[name] = address
        address += size
    return addresses
