"""The CUDA engine: ONNX Runtime's CUDA provider with weights, KV cache, inputs and logits in device memory.

Weights are copied to the device once and given to every session as initializers of the caller's, so the graphs share
them. A decode step binds addresses that never change for its number of sequences, so that ONNX Runtime captures it as
a CUDA graph once and replays it: the host writes a few numbers, starts the graph, and reads the top-k logits.

Everything is bound by device name and address. With `HostMemory` the same code runs on a machine without a GPU.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime as ort

from ernie_export.common import bfloat16
from ernie_export.common.expert_layout import to_rows
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.runtime.engines import PrefillChunks, PromptChunk
from ernie_export.runtime.engines.device.find_gpu import PROVIDER
from ernie_export.runtime.engines.device.kv_cache import DeviceKVCache, KVCacheLayout, KVCachePool, KVCacheStore
from ernie_export.runtime.engines.device.memory import Memory
from ernie_export.runtime.engines.device.step import Step
from ernie_export.runtime.engines.device.weights import DeviceWeight, load_weights
from ernie_export.runtime.engines.ort_common import session_options, translate_ort_errors
from ernie_export.runtime.engines.tiled import tiled_entries
from ernie_export.runtime.logits import DenseLogits, Logits

# ONNX's numbers for the types that safetensors names.
ONNX_TYPES = {"F32": 1, "U8": 2, "I8": 3, "I32": 6, "I64": 7, "BOOL": 9, "F16": 10, "BF16": 16}
FLOAT_TYPES = {"tensor(float)": "F32", "tensor(float16)": "F16", "tensor(bfloat16)": "BF16"}
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
LENGTH_STEP = 256  # tokens: caches of similar length share buffers and captured graphs
# Rows that experts get in one call, at most. From 64 tokens on, a call reads nearly all experts of a layer, 27 times
# 2 GB in 16 bits, and up to about 2,900 tokens that is what it waits for on an H100: 1,000 take no longer than 128.
# A group of experts gets a row besides its own tokens (see moe_dispatch), and the provider chooses kernels by powers of
# two of rows: chunks are one token short of such.
MAX_EXPERT_ROWS = 2048
CHUNKS = PrefillChunks(alone=MAX_EXPERT_ROWS - 1, while_decoding=MAX_EXPERT_ROWS // 2 - 1)
TOPK_GRAPH = Path(__file__).with_name("topk.onnx")  # see tools/make_topk.py


@dataclass
class Bound:
    """What is bound to the addresses of one cache store.

    Attributes:
        bindings: By graph, first slot and the slot after the last.
        steps: Captured decode steps by their number of sequences, each with ONNX Runtime's number for its graph.
    """

    bindings: dict[tuple[str, int, int], ort.IOBinding] = field(default_factory=dict)
    steps: dict[int, tuple[Step, int]] = field(default_factory=dict)


class OrtCudaEngine:
    """The engine of ONNX Runtime's CUDA provider."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        threads: int | None,
        memory: Memory,
        weights: Callable[[Memory, Path], dict[str, DeviceWeight]] = load_weights,
    ) -> None:
        """Copy the weights to the device and open a session for each graph.

        Args:
            bundle: Folder of the bundle.
            manifest: Its manifest.
            threads: Cores for one operator; None leaves the choice to ONNX Runtime (all physical cores).
            memory: The GPU's (`CudaMemory.for_bundle`); `HostMemory()` runs the same calls on the host. It is closed
                with the engine, or if opening fails.
            weights: What brings the data file's tensors to the device.

        Raises:
            UserError: If a file is malformed or there is too little memory.
        """
        # More rows were never run by `warm`: kernels would be tried, and memory taken, while a request waits.
        self.max_prefill_chunk = min(manifest.model.max_positions, CHUNKS.alone)
        self.prefill_chunks = CHUNKS
        self._info = manifest.model
        self._memory = memory
        self._threads = threads
        self._paths = {name: bundle / manifest.graphs[name] for name in GRAPHS}
        # The provider keeps captured graphs and library handles by thread: whoever calls, one thread of ours runs.
        self._thread = ThreadPoolExecutor(1, "cuda")
        self._captured = 0  # graphs so far
        self._bound_stores: dict[int, Bound] = {}  # by address
        try:
            self._topk = ort.InferenceSession(TOPK_GRAPH, session_options(threads), providers=self._providers("topk"))
            # The sessions use the weights, and don't keep them.
            self._weights = self._share(self._laid_out(weights(memory, bundle / manifest.data_file), manifest))
            self._sessions = {name: self._open_session(name) for name in GRAPHS}
            with translate_ort_errors(self._paths["resampler"]):
                self._dtype = FLOAT_TYPES[self._sessions["resampler"].get_outputs()[0].type]
        except BaseException:
            self._thread.shutdown()
            memory.close()
            raise
        top_k = int(self._topk.get_modelmeta().custom_metadata_map["top_k"])
        self._top_k = min(top_k, self._info.vocab_size)
        layout = KVCacheLayout(
            num_layers=self._info.num_layers,
            num_kv_heads=self._info.num_kv_heads,
            head_dim=self._info.head_dim,
            item_bytes=ITEM_BYTES[self._dtype],
        )
        self._caches = KVCachePool(memory, layout, self._free_bound)

    def _open_session(self, graph: str) -> ort.InferenceSession:
        """Return a session over the weights in device memory."""
        options = session_options(self._threads)
        for name, value in self._weights.items():
            options.add_initializer(name, value)
        with translate_ort_errors(self._paths[graph]):
            return ort.InferenceSession(self._paths[graph], options, providers=self._providers(graph))

    def _providers(self, graph: str) -> list[str | tuple[str, dict[str, str]]]:
        if self._memory.device == "cpu":
            return ["CPUExecutionProvider"]
        options = {
            # TF32 rounds the router's float32 products to 10 bits, and other experts would be chosen.
            "use_tf32": "0",
            # By just what is asked for: `warm` asks for the most first, which then serves all that comes. Powers of two
            # would leave up to half of a 24 GB GPU's last gigabytes unused.
            "arena_extend_strategy": "kSameAsRequested",
            "enable_cuda_graph": "1" if graph in ("decode", "topk") else "0",
        }
        return [(PROVIDER, options), "CPUExecutionProvider"]

    def _laid_out(self, weights: dict[str, DeviceWeight], manifest: Manifest) -> dict[str, DeviceWeight]:
        """Lay tiled weights out as rows where a CPU reads them; on a GPU its kernels read tiles."""
        for entry in tiled_entries(manifest, {name: weight.entry for name, weight in weights.items()}):
            if self._memory.device == "cpu":
                address = weights[entry.name].address
                tiles = np.frombuffer(self._memory.read(address, entry.nbytes), np.uint8)
                self._memory.write(address, to_rows(tiles.reshape(entry.shape)))
        return weights

    def _share(self, weights: dict[str, DeviceWeight]) -> dict[str, ort.OrtValue]:
        """Return the weights as tensors that own no memory."""
        tensors = {}
        for name, weight in weights.items():
            # A bound output is the one tensor over given memory that the Python interface makes.
            binding = self._topk.io_binding()
            dtype = ONNX_TYPES[weight.entry.dtype]
            binding.bind_output("ids", self._memory.device, 0, dtype, list(weight.entry.shape), weight.address)
            (tensors[name],) = binding.get_outputs()
        return tensors

    def warm(self, max_num_seqs: int, on_progress: Callable[[float], None]) -> None:
        """Run every size of call once, the largest first.

        For each power of two of rows, the provider's operators for experts time their kernels at the first call, in
        every layer: seconds, in which all requests would wait. The memory that they take for it is kept and serves all
        smaller sizes (moe_gemm_profiler.cc, 1.31.1).
        """
        rows = powers_of_two(min(MAX_EXPERT_ROWS, self._info.max_positions + 1))
        calls = [(count - 1, token_type) for count in rows if count > 1 for token_type in (0, 1)]
        counts = powers_of_two(max_num_seqs)
        total = 1 + len(calls) + len(counts)
        self._warm_encoder()
        on_progress(1 / total)
        cache = self.new_cache(1, calls[0][0])
        for done, (tokens, token_type) in enumerate(calls, 2):
            cache.lengths[:] = 0
            self.prefill(cache, 0, self._blank_chunk(tokens, token_type))
            on_progress(done / total)
        del cache  # makes way for one that the scheduler's first takes over, with the graphs that are captured here
        cache = self.new_cache(max_num_seqs, 1)
        for done, count in enumerate(counts, 2 + len(calls)):
            cache.lengths[:] = 0
            self.decode(cache, np.zeros(count, np.int64), np.zeros((3, count), np.int64))
            on_progress(done / total)

    def _warm_encoder(self) -> None:
        """Encode the smallest image: libraries make their handles at the first call."""
        side = self._info.spatial_merge_size
        pixels = np.zeros((1, side**2, self._info.in_channels * self._info.patch_size**2), np.float32)
        coordinates = np.argwhere(np.ones((side, side)))
        self.encode(pixels, coordinates, np.zeros((2, 1), np.int64))

    def _blank_chunk(self, tokens: int, token_type: int) -> PromptChunk:
        """Return a chunk of so many tokens 0, all of one type."""
        return PromptChunk(
            input_ids=np.zeros(tokens, np.int64),
            token_types=np.full(tokens, token_type),
            feature_index=np.zeros(tokens, np.int64),
            position_ids=np.tile(np.arange(tokens), (3, 1)),
            features=np.zeros((0, self._info.hidden_size), np.float32),
        )

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Run the vision encoder and the resampler. What lies between them stays on the device."""
        return self._thread.submit(self._encode, pixel_values, coordinates, pairs).result()

    def _run(self, graph: str, binding: ort.IOBinding) -> None:
        with translate_ort_errors(self._paths[graph]):
            self._sessions[graph].run_with_iobinding(binding)

    def _encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        vision = self._sessions["vision"].io_binding()
        vision.bind_cpu_input("pixel_values", pixel_values)
        vision.bind_cpu_input("coordinates", coordinates)
        vision.bind_output("hidden", self._memory.device)
        self._run("vision", vision)
        resampler = self._sessions["resampler"].io_binding()
        resampler.bind_ortvalue_input("hidden", vision.get_outputs()[0])
        first, second = (np.ascontiguousarray(frames) for frames in pairs)
        resampler.bind_cpu_input("first", first)
        resampler.bind_cpu_input("second", second)
        resampler.bind_output("features", self._memory.device)
        self._run("resampler", resampler)
        (features,) = resampler.get_outputs()
        return self._to_numpy(features)

    def new_cache(self, num_slots: int, max_seq_len: int) -> DeviceKVCache:
        """Return an empty cache whose length is rounded up to a multiple of LENGTH_STEP."""
        rounded = -(-max_seq_len // LENGTH_STEP) * LENGTH_STEP
        return self._caches.new_cache(num_slots, rounded, self.new_cache)

    def prefill(self, cache: DeviceKVCache, slot: int, chunk: PromptChunk) -> Logits:
        """Append the chunk to the slot; returns the logits after its last token, on the host."""
        return self._thread.submit(self._prefill, cache, slot, chunk).result()

    def _prefill(self, cache: DeviceKVCache, slot: int, chunk: PromptChunk) -> Logits:
        inputs = chunk.decoder_inputs(int(cache.lengths[slot]))
        binding = self._bound("decoder", cache.store, slot, slot + 1)
        binding.bind_ortvalue_input("features", self._from_numpy(chunk.features))
        for name, array in inputs.items():  # which have to last until the run: they are bound by address
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")
        self._run("decoder", binding)
        cache.lengths[slot] += len(chunk.input_ids)
        return DenseLogits(binding.get_outputs()[-1].numpy()[0])

    def decode(self, cache: DeviceKVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """Append one token to each of the first slots; the logits stay on the device, but for the highest."""
        return self._thread.submit(self._decode, cache, tokens, positions).result()

    def _decode(self, cache: DeviceKVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        count = len(tokens)
        bound = self._bound_stores.setdefault(cache.store.address, Bound())
        if count not in bound.steps:
            bound.steps[count] = self._new_step(cache.store, count)
        step, graph_id = bound.steps[count]
        step.write(tokens, positions, cache.lengths[:count])
        for session, graph in ((self._sessions["decode"], "decode"), (self._topk, "topk")):
            options = ort.RunOptions()
            options.add_run_config_entry("gpu_graph_id", str(graph_id))
            with translate_ort_errors(self._paths["decode"]):
                session.run_with_iobinding(bound.bindings[graph, 0, count], options)
        cache.lengths[:count] += 1
        return step.logits()

    def _new_step(self, store: KVCacheStore, count: int) -> tuple[Step, int]:
        """Bind a decode step of `count` sequences to addresses of its own; its first run is captured.

        Returns the step, and the number under which ONNX Runtime keeps the captured graph.
        """
        step = Step.allocate(self._memory, count, self._info.vocab_size, self._top_k)
        device = self._memory.device
        decode = self._bound("decode", store, 0, count)
        for name, tensor in step.inputs.items():
            decode.bind_input(name, device, 0, np.int64, tensor.shape, tensor.address)
        logits = step.outputs["logits"]
        decode.bind_output("logits", device, 0, np.float32, logits.shape, logits.address)
        topk = self._topk.io_binding()
        topk.bind_input("logits", device, 0, np.float32, logits.shape, logits.address)
        for name, dtype in (("ids", np.int64), ("values", np.float32), ("total", np.float32)):
            output = step.outputs[name]
            topk.bind_output(name, device, 0, dtype, output.shape, output.address)
        self._bound_stores[store.address].bindings["topk", 0, count] = topk
        self._captured += 1
        return step, self._captured

    def _bound(self, graph: str, store: KVCacheStore, start: int, stop: int) -> ort.IOBinding:
        """Return a binding with each buffer of the store as past and present alike, kept as long as the store.

        Args:
            graph: The graph's name.
            store: The cache's memory.
            start: First slot.
            stop: The slot after the last.
        """
        bindings = self._bound_stores.setdefault(store.address, Bound()).bindings
        binding = bindings.get((graph, start, stop))
        if binding is None:
            binding = bindings[graph, start, stop] = self._sessions[graph].io_binding()
            num_layers = self._info.num_layers
            shape = (stop - start, *store.shape[1:])
            for buffer in range(2 * num_layers):
                name = f"{'key' if buffer < num_layers else 'value'}.{buffer % num_layers}"
                where = (self._memory.device, 0, ONNX_TYPES[self._dtype], shape, store.slot_address(buffer, start))
                binding.bind_input(f"past_{name}", *where)
                binding.bind_output(f"present_{name}", *where)
        return binding

    def _free_bound(self, store: KVCacheStore) -> None:
        """Free what is bound to a store's addresses."""
        bound = self._bound_stores.pop(store.address, Bound())
        bound.bindings.clear()
        for step, _ in bound.steps.values():
            step.free()

    def _from_numpy(self, features: np.ndarray) -> ort.OrtValue:
        """Return features in the graphs' dtype."""
        if self._dtype == "BF16":
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bfloat16.to_bits(features), ONNX_TYPES["BF16"])
        dtype = np.float16 if self._dtype == "F16" else np.float32
        return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(features, dtype))

    def _to_numpy(self, value: ort.OrtValue) -> np.ndarray:
        if self._dtype != "BF16":
            features: np.ndarray = value.numpy()
            return features
        block = self._memory.read(value.data_ptr(), value.tensor_size_in_bytes())
        return bfloat16.from_bits(np.frombuffer(block, np.uint16)).reshape(value.shape())

    def close(self) -> None:
        """Free the sessions, then the device memory."""
        self._thread.shutdown()
        self._caches.clear()
        self._bound_stores.clear()
        self._sessions.clear()
        self._weights.clear()
        self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def powers_of_two(largest: int) -> list[int]:
    """Return `largest`, then the powers of two below it in descending order."""
    return [largest, *(2**power for power in range((largest - 1).bit_length() - 1, -1, -1))]
