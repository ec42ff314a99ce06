"""The ONNX Runtime engine: sessions over one memory-mapped weights file, the KV cache updated in place.

A session packs quantised weights anew for its kernels, in memory of its own: `decoder` then decodes too, in place of a
`decode` that would hold the text experts a second time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.logits import DenseLogits, Logits

# Scores that attention forms for a head at a time, queries by places in the cache: 16 MiB.
SCORES = 2**22

# NumPy has no bfloat16: features in it pass through the host as float32, which holds every one of its values.
FLOATS: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(np.float32),
}


class OnnxRuntimeEngine:
    """See `Engine`. Prefill runs `decoder` (both expert banks), decode runs `decode` (text experts only) where open."""

    def __init__(self, bundle: Path, manifest: Manifest, threads: int | None) -> None:
        """`threads`: cores for one operator; None leaves the choice to ONNX Runtime (all physical cores)."""
        self._facts = manifest.model
        self._paths = {name: bundle / manifest.graphs[name] for name in GRAPHS}
        self._sessions = self._open_sessions(bundle, manifest, threads)
        self._bindings: WeakKeyDictionary[KVCache, dict[tuple[str, int, int], ort.IOBinding]] = WeakKeyDictionary()
        with blamed(self._paths["resampler"]):
            self.dtype = FLOATS[self._sessions["resampler"].get_outputs()[0].type]

    def _open_sessions(self, bundle: Path, manifest: Manifest, threads: int | None) -> dict[str, ort.InferenceSession]:
        """A session for each graph that this engine runs."""
        if "cpu" not in manifest.devices:
            expected = f"--device {' or '.join(manifest.devices)}"
            found = f"cpu, where ONNX Runtime has no kernels for {manifest.precision}"
            raise UserError(f"{bundle}: expected {expected}, found {found}")
        options = self._options(threads)
        sessions = {}
        for name in GRAPHS:
            if name != "decode" or manifest.cpu_decode_graph == "decode":
                with blamed(self._paths[name]):
                    path = self._paths[name]
                    sessions[name] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return sessions

    @staticmethod
    def _options(threads: int | None) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: its warnings are about shapes it infers, not about the results
        if threads is not None:
            options.intra_op_num_threads = threads
        return options

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """See `Engine.encode`."""
        frames = {"pixel_values": pixel_values, "coordinates": coordinates}
        with blamed(self._paths["vision"]):
            (hidden,) = self._sessions["vision"].run(["hidden"], frames)
        paired = {"hidden": hidden, "first": pairs[0], "second": pairs[1]}
        with blamed(self._paths["resampler"]):
            (features,) = self._sessions["resampler"].run(["features"], paired)
            expect(features, (None, None, self._facts.hidden_size))
        return features

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """See `Engine.new_cache`."""
        facts = self._facts
        return KVCache(facts.num_layers, rows, facts.num_kv_heads, capacity, facts.head_dim, self.dtype)

    def prefill(self, cache: KVCache, row: int, chunk: PromptChunk) -> Logits:
        """See `Engine.prefill`."""
        step = max(SCORES // cache.capacity, 1)
        for start in range(0, len(chunk.input_ids), step):
            part = chunk.part(start, start + step)
            logits = self._run("decoder", self._prompt_arrays(cache, row, part), cache, slice(row, row + 1))
            cache.lengths[row] += len(part.input_ids)
        return DenseLogits(logits[0])

    def _prompt_arrays(self, cache: KVCache, row: int, chunk: PromptChunk) -> dict[str, np.ndarray]:
        """The decoder graph's inputs, without the cache's buffers."""
        return {
            "input_ids": chunk.input_ids[None],
            "feature_index": chunk.feature_index[None],
            "features": chunk.features.astype(self.dtype, copy=False),
            "token_types": chunk.token_types[None],
            "position_ids": chunk.position_ids[:, None],
            "past_lengths": cache.lengths[row : row + 1],
            "lengths": np.array([len(chunk.input_ids)]),
        }

    def decode(self, cache: KVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """See `Engine.decode`."""
        rows = len(tokens)
        arrays = {
            "input_ids": tokens[:, None],
            "position_ids": positions[:, :, None],
            "past_lengths": cache.lengths[:rows],
            "lengths": np.ones(rows, np.int64),
        }
        graph = "decode"
        if graph not in self._sessions:
            graph, zeros = "decoder", np.zeros((rows, 1), np.int64)
            none = np.empty((0, self._facts.hidden_size), self.dtype)
            arrays |= {"feature_index": zeros, "token_types": zeros, "features": none}
        logits = self._run(graph, arrays, cache, slice(0, rows))
        cache.lengths[:rows] += 1
        return [DenseLogits(row) for row in logits]

    def _run(self, graph: str, arrays: dict[str, np.ndarray], cache: KVCache, rows: slice) -> np.ndarray:
        """Run a decoder graph over some rows of the cache, which it updates in place; returns logits."""
        with blamed(self._paths[graph]):
            binding = self._bound(graph, cache, rows)
            for name, array in arrays.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            self._sessions[graph].run_with_iobinding(binding)
            logits = binding.get_outputs()[0].numpy()
            expect(logits, (rows.stop - rows.start, self._facts.vocab_size))
        return logits

    def _bound(self, graph: str, cache: KVCache, rows: slice) -> ort.IOBinding:
        """Logits as the first output, and each cache buffer as past and present alike.

        Bindings are kept as long as their cache: from one decode step to the next the buffers stay where they are, and
        binding them anew takes as long as a layer.
        """
        known = self._bindings.setdefault(cache, {})
        binding = known.get((graph, rows.start, rows.stop))
        if binding is None:
            binding = known[graph, rows.start, rows.stop] = self._sessions[graph].io_binding()
            binding.bind_output("logits", "cpu")
            for part, buffers in (("key", cache.keys), ("value", cache.values)):
                for layer, buffer in enumerate(buffers):
                    view = buffer[rows]
                    place = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
                    binding.bind_input(f"past_{part}.{layer}", *place)
                    binding.bind_output(f"present_{part}.{layer}", *place)
        return binding

    def close(self) -> None:
        """Free the sessions and with them the mapping of the weights."""
        self._bindings.clear()
        self._sessions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """Turn what ONNX Runtime and its bindings raise into a UserError: a graph that is not what a bundle should have."""
    try:
        yield
    except Exception as e:  # ONNX Runtime's own are no common class
        found = f"{type(e).__name__}: {e}"
        raise UserError(f"{path}: expected a graph of this bundle's model that ONNX Runtime runs, found {found}") from e


def expect(array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """ValueError unless `array` has this shape; None stands for any size."""
    if len(array.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ValueError(f"an output of shape {array.shape} in place of {shape}")
