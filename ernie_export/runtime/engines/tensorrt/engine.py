"""Engines of TensorRT and of TensorRT for RTX.

The weights lie once in device memory, bound to every engine; the KV cache is updated in place; decode steps are CUDA
graphs.

Every engine input that is a tensor of the bundle's data file is a weight: its address is given when the bundle is
loaded and never changes. The manifest names the few tensors that engines hold instead, which are not loaded. All else
is bound for each call, or once for each number of sequences that decode together. One stream runs everything, one call
at a time. Where the decode engine finds the top-k logits, the host reads those; all logits of a sequence leave the
device only if a sampler needs them.

Not yet run on a GPU: tests run the same calls on fakes of the libraries, over the host's memory.
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from ernie_export.common import bfloat16
from ernie_export.common.errors import InvalidMedia
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.common.manifest_sections import EngineInfo, ModelInfo
from ernie_export.runtime.engines import PrefillChunks, PromptChunk
from ernie_export.runtime.engines.device.kv_cache import DeviceKVCache, KVCacheLayout, KVCachePool, KVCacheStore
from ernie_export.runtime.engines.device.step import DeviceTensor, Step
from ernie_export.runtime.engines.device.weights import aligned_addresses, load_weights
from ernie_export.runtime.engines.tensorrt.checks import check_caches, check_weights, tensor_names
from ernie_export.runtime.engines.tensorrt.context import EngineContext
from ernie_export.runtime.engines.tensorrt.library import TensorRT
from ernie_export.runtime.logits import DenseLogits, Logits

# Outputs of a decode engine that finds the top-k logits -> a step's.
TOPK_OUTPUTS = {"candidate_ids": "ids", "candidate_values": "values", "logit_total": "total"}
PREFILL_BUCKETS = (64, 128, 256, 512)  # tokens that a chunk is padded to, below the longest
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass
class DecodeGraph:
    """A decode step and what runs it.

    Attributes:
        step: The step's buffers.
        context: The context that is bound to them.
        graph: The captured step, once it has run.
    """

    step: Step
    context: EngineContext
    graph: Any = None


class TensorRTEngine:
    """The engine of TensorRT's libraries."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        library: TensorRT,
        on_value: Callable[[str, np.ndarray], None] | None = None,
    ) -> None:
        """Load the engines and copy the weights to the device.

        Args:
            bundle: Folder of the bundle.
            manifest: Its manifest.
            library: As `open_tensorrt` returns it. Its memory is closed with the engine, or if loading fails.
            on_value: Called with "hidden" and the vision encoder's output for each image or pair of frames, which
                otherwise stays on the device.

        Raises:
            UserError: If the library does not take an engine, a file is malformed, or there is too little memory.
        """
        self._library = library
        self._memory = library.memory
        self._info: ModelInfo = manifest.model
        self._on_value = on_value
        self._busy = threading.Lock()  # images are encoded in other threads than the one that decodes
        self._decode_graphs: dict[tuple[int, int], DecodeGraph] = {}  # by the cache's address and number of sequences
        self._buffers: dict[tuple[str, str], DeviceTensor] = {}  # by graph and tensor; shape (bytes,)
        # Of steps whose cache is gone, by number of sequences.
        self._spare_contexts: dict[int, list[EngineContext]] = {}
        try:
            self._engine_info = _engine_info(manifest)
            self._engines = {name: library.load(bundle / manifest.graphs[name]) for name in GRAPHS}
            constants = frozenset(self._engine_info.weights.constants)
            weights = load_weights(self._memory, bundle / manifest.data_file, without=constants)
            self._weights = aligned_addresses(self._memory, weights)
            check_weights(self._engines, self._weights.keys(), bundle, manifest)
            check_caches(self._engines, bundle, manifest)
            self._contexts = {name: self._new_context(name) for name in ("vision", "resampler")}
            chunk = self._engine_info.prefill_chunk
            buckets = [*(size for size in PREFILL_BUCKETS if size < chunk), chunk]
            self._prefill_contexts = {size: self._new_context("decoder") for size in buckets}
        except BaseException:
            self._memory.close()
            raise
        # Experts are read whole for a chunk of 128 tokens or of 512: running sequences wait little longer for these.
        self.prefill_chunks = PrefillChunks(alone=chunk, while_decoding=min(chunk, PREFILL_BUCKETS[-1]))
        self.max_prefill_chunk = chunk
        decode = self._engines["decode"]
        dtype = decode.get_tensor_dtype("past_key.0")
        self._dtype = next(name for name in ITEM_BYTES if getattr(library.module, name) == dtype)
        self._max_seq_len = int(decode.get_tensor_shape("past_key.0")[2])
        layout = KVCacheLayout(
            num_layers=self._info.num_layers,
            num_kv_heads=self._info.num_kv_heads,
            head_dim=self._info.head_dim,
            item_bytes=ITEM_BYTES[self._dtype],
        )
        self._caches = KVCachePool(self._memory, layout, self._free_bound)

    def _new_context(self, name: str) -> EngineContext:
        """Return a context with the weights bound."""
        context = EngineContext(name, self._library.new_context(self._engines[name], name))
        for tensor in tensor_names(self._engines[name]) & self._weights.keys():
            context.set_address(tensor, self._weights[tensor])
        return context

    @property
    def shape_changes(self) -> int:
        """How often a prefill or decode context changed a shape that it was given; see `EngineContext`."""
        spare = [context for contexts in self._spare_contexts.values() for context in contexts]
        decoding = [decode_graph.context for decode_graph in self._decode_graphs.values()]
        return sum(context.shape_changes for context in (*self._prefill_contexts.values(), *decoding, *spare))

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Run the vision encoder and the resampler pair by pair, since the engines were built for that.

        Raises InvalidMedia for an image larger than the engines were built for.
        """
        tokens = pixel_values.shape[1] // self._info.spatial_merge_size**2
        if tokens > self._engine_info.max_image_tokens:
            most = f"{self._engine_info.max_image_tokens} tokens (--max-image-tokens of ernie-export)"
            raise InvalidMedia("image", f"at most {most}", tokens)
        features = []
        with self._busy:
            for first, second in pairs.T.tolist():
                frames = pixel_values[[first] if first == second else [first, second]]
                inputs = {"pixel_values": frames, "coordinates": coordinates}
                hidden = self._run(self._contexts["vision"], inputs, ["hidden"])["hidden"]
                if self._on_value is not None:
                    self._on_value("hidden", self._fetch(hidden))
                ends = {"first": np.array([0]), "second": np.array([len(frames) - 1])}
                merged = self._run(self._contexts["resampler"], {"hidden": hidden, **ends}, ["features"])["features"]
                features.append(self._fetch(merged))
        return np.concatenate(features)

    def new_cache(self, num_slots: int, max_seq_len: int) -> DeviceKVCache:
        """Return an empty cache. Its length is always that which the engines were built for."""
        return self._caches.new_cache(num_slots, self._max_seq_len, self.new_cache)

    def prefill(self, cache: DeviceKVCache, slot: int, chunk: PromptChunk) -> Logits:
        """Append the chunk to the slot; returns the logits after its last token, on the host.

        It is padded to one of a few lengths, each of which has a context of its own, so that no context's shapes ever
        change. Padding writes to the cache behind the chunk, where the next tokens will: the cache is longer than a
        conversation by the shortest of these lengths, and a chunk near its end goes in parts that fit.
        """
        length = len(chunk.input_ids)
        start = 0
        with self._busy:
            features = self._write_features(chunk.features)
            while start < length:
                past = int(cache.lengths[slot])
                size = self._bucket(length - start, past)
                part = chunk.part(start, min(start + size, length))
                context = self._prefill_contexts[size]
                self._bind_cache(context, cache.store, slot, slot + 1)
                inputs = padded(part.decoder_inputs(past), size) | {"features": features}
                logits = self._run(context, inputs, ["logits"])["logits"]
                cache.lengths[slot] += len(part.input_ids)
                start += size
            values = np.frombuffer(self._memory.read(logits.address, 4 * math.prod(logits.shape)), np.float32)
        return DenseLogits(values)

    def _bucket(self, tokens: int, past: int) -> int:
        """Return the length that `tokens` are padded to after `past`; less than they are near the cache's end."""
        fitting = [size for size in self._prefill_contexts if past + size <= self._max_seq_len]
        return next((size for size in fitting if size >= tokens), fitting[-1])

    def _write_features(self, features: np.ndarray) -> DeviceTensor:
        """Copy a chunk's features to the device, which has memory for as many as it may have tokens."""
        shape = (self._engine_info.prefill_chunk, self._info.hidden_size)
        address = self._buffer("decoder", "features", math.prod(shape) * ITEM_BYTES[self._dtype])
        if len(features):
            self._memory.write(address, self._to_device_dtype(features))
        return DeviceTensor(address, shape)

    def decode(self, cache: DeviceKVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """Append one token to each of the first slots; the logits stay on the device, but for the highest."""
        count = len(tokens)
        with self._busy:
            key = (cache.store.address, count)
            decode_graph = self._decode_graphs.get(key) or self._new_decode_graph(cache.store, count)
            decode_graph.step.write(tokens, positions, cache.lengths[:count])
            if decode_graph.graph is not None:
                self._memory.launch(decode_graph.graph)
            else:
                decode_graph.context.enqueue(self._memory.stream)
            logits = decode_graph.step.logits()
            if self._library.captures_steps and decode_graph.graph is None:  # a context has to run once before
                decode_graph.graph = self._memory.capture(lambda: decode_graph.context.enqueue(self._memory.stream))
        cache.lengths[:count] += 1
        return logits

    def _new_decode_graph(self, store: KVCacheStore, count: int) -> DecodeGraph:
        """Return a step of the cache's first `count` slots, bound to addresses that it keeps."""
        spare = self._spare_contexts.setdefault(count, [])
        context = spare.pop() if spare else self._new_context("decode")
        step = Step.allocate(self._memory, count, self._info.vocab_size, self._engine_info.top_k)
        self._bind_cache(context, store, 0, count)
        for name, tensor in step.inputs.items():
            context.set_shape(name, tensor.shape)
            context.set_address(name, tensor.address)
        context.set_address("logits", step.outputs["logits"].address)
        if step.top_k:
            for name, output in TOPK_OUTPUTS.items():
                context.set_address(name, step.outputs[output].address)
        decode_graph = self._decode_graphs[store.address, count] = DecodeGraph(step, context)
        return decode_graph

    def _free_bound(self, store: KVCacheStore) -> None:
        """Free what is bound to a store's addresses; contexts are kept for other stores."""
        for address, count in list(self._decode_graphs):
            if address == store.address:
                decode_graph = self._decode_graphs.pop((address, count))
                if decode_graph.graph is not None:
                    self._memory.drop(decode_graph.graph)
                decode_graph.step.free()
                self._spare_contexts[count].append(decode_graph.context)

    def _bind_cache(self, context: EngineContext, store: KVCacheStore, start: int, stop: int) -> None:
        """Bind slots start to stop of every buffer as past and present alike."""
        num_layers = self._info.num_layers
        for buffer in range(2 * num_layers):
            name = f"{'key' if buffer < num_layers else 'value'}.{buffer % num_layers}"
            address = store.slot_address(buffer, start)
            context.set_shape(f"past_{name}", (stop - start, *store.shape[1:]))
            context.set_address(f"past_{name}", address)
            context.set_address(f"present_{name}", address)

    def _run(
        self, context: EngineContext, inputs: Mapping[str, np.ndarray | DeviceTensor], outputs: list[str]
    ) -> dict[str, DeviceTensor]:
        """Copy the inputs that are arrays to the device and run a graph.

        Args:
            context: A context of the graph's engine.
            inputs: What is bound to its inputs.
            outputs: Names of the outputs to return.

        Returns:
            The outputs, valid until the graph's next run.
        """
        graph = context.graph
        results = {}
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                value = self._copy_to_device(graph, name, value)
            context.set_shape(name, value.shape)
            context.set_address(name, value.address)
        for name in outputs:
            shape = context.shape(name)
            results[name] = DeviceTensor(self._buffer(graph, name, 4 * math.prod(shape)), shape)
            context.set_address(name, results[name].address)
        context.enqueue(self._memory.stream)
        return results

    def _copy_to_device(self, graph: str, name: str, array: np.ndarray) -> DeviceTensor:
        array = np.ascontiguousarray(array)
        tensor = DeviceTensor(self._buffer(graph, name, array.nbytes), array.shape)
        self._memory.write(tensor.address, array)
        return tensor

    def _buffer(self, graph: str, name: str, nbytes: int) -> int:
        """Return memory for one input or output, kept from call to call and replaced where it is too small."""
        buffer = self._buffers.get((graph, name))
        if buffer is None or buffer.shape[0] < nbytes:
            if buffer is not None:
                self._memory.free(buffer.address)
            buffer = self._buffers[graph, name] = DeviceTensor(self._memory.allocate(nbytes), (nbytes,))
        return buffer.address

    def _to_device_dtype(self, array: np.ndarray) -> np.ndarray:
        """Return features in the engines' dtype; bfloat16 as bits."""
        if self._dtype == "bfloat16":
            return bfloat16.to_bits(array)
        return np.ascontiguousarray(array, self._dtype)

    def _fetch(self, tensor: DeviceTensor) -> np.ndarray:
        """Copy a tensor of the engines' dtype from the device, as float32."""
        block = self._memory.read(tensor.address, math.prod(tensor.shape) * ITEM_BYTES[self._dtype])
        if self._dtype == "bfloat16":
            values = bfloat16.from_bits(np.frombuffer(block, np.uint16))
        else:
            values = np.frombuffer(block, self._dtype).astype(np.float32)
        return values.reshape(tensor.shape)

    def close(self) -> None:
        """Free contexts, engines and device memory."""
        self._caches.clear()
        self._decode_graphs.clear()
        self._spare_contexts.clear()
        self._contexts.clear()
        self._prefill_contexts.clear()
        self._engines.clear()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def padded(inputs: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """Return a decoder's inputs for `size` tokens, zeros behind those that there are."""
    result = dict(inputs)
    for name in ("input_ids", "feature_index", "token_types", "position_ids"):
        tokens = inputs[name]
        result[name] = np.zeros((*tokens.shape[:-1], size), tokens.dtype)
        result[name][..., : tokens.shape[-1]] = tokens
    return result


def _engine_info(manifest: Manifest) -> EngineInfo:
    if manifest.engines is None:
        raise ValueError(f"a bundle of target {manifest.target} has no engines")
    return manifest.engines
