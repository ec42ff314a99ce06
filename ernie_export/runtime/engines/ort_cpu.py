"""The CPU engine: ONNX Runtime sessions over one memory-mapped weights file, the KV cache updated in place.

A session packs quantized weights anew for its kernels, in memory of its own: `decoder` then decodes too, in place of a
`decode` that would hold the text experts a second time. The manifest says which graph decodes.

Packing is nearly all that a start takes. What ONNX Runtime can save of it (session.save_external_prepacked_constant_
initializers) saves memory and no time: a load packs all the same, and compares what it finds in the file with that
(session_state.cc, PrepackConstantInitializedTensors). So packing takes all cores, and until the first image or video
comes, an engine may leave out what text does not read: the vision experts, the vision encoder and the resampler.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Self
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime as ort

from ernie_export.common.errors import Unavailable
from ernie_export.common.expert_layout import to_rows
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.ort_common import check_shape, session_options, translate_ort_errors
from ernie_export.runtime.engines.tiled import tiled_entries
from ernie_export.runtime.kv_cache import HostKVCache
from ernie_export.runtime.logits import DenseLogits, Logits

# Attention scores of one head, queries by keys: 16 MiB in float32. A longer prefill is cut.
MAX_SCORES = 2**22

# Inputs of the `decode` graph, besides the KV cache: those of `decoder` that text has.
TEXT_INPUTS = "input_ids", "position_ids", "past_lengths", "lengths"

# NumPy has no bfloat16: features in it pass through the host as float32, which holds every one of its values.
FLOATS: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(np.float32),
}


@dataclass(frozen=True)
class Tap:
    """Inner values of the graphs to read at each run.

    Attributes:
        graphs: Serialized graphs that replace the bundle's, by name. Each has the bundle's outputs and then further
            ones; external weights are those of the bundle.
        on_value: Called with the name and the array of each further output.
    """

    graphs: Mapping[str, bytes]
    on_value: Callable[[str, np.ndarray], None]


def rows_of_tiles(bundle: Path, manifest: Manifest) -> dict[str, ort.OrtValue]:
    """Return weights that lie as CUDA's kernels read them as rows, which a CPU reads, in memory of their own."""
    path = bundle / manifest.data_file
    rows = {}
    for entry in tiled_entries(manifest, read_header(path) if manifest.tiled else {}):
        tiles = np.memmap(path, np.uint8, "r", entry.offset, entry.shape)
        rows[entry.name] = ort.OrtValue.ortvalue_from_numpy(to_rows(tiles))
    return rows


def cpu_options(threads: int | None) -> ort.SessionOptions:
    """Return options of a session whose weights all of its threads pack: ONNX Runtime 1.32 has it, 1.31 ignores it."""
    options = session_options(threads)
    options.add_session_config_entry("session.prepack.enable_parallel", "1")
    return options


class OrtCpuEngine:
    """The engine of ONNX Runtime's CPU provider."""

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        threads: int | None,
        tap: Tap | None = None,
        max_scores: int = MAX_SCORES,
        media: bool = True,
    ) -> None:
        """Open the graphs.

        Args:
            bundle: Folder of the bundle.
            manifest: Its manifest.
            threads: Cores for one operator; None leaves the choice to ONNX Runtime (all physical cores).
            tap: Inner values to read.
            max_scores: Most attention scores of one head; a prefill that would form more is cut.
            media: Whether to open all graphs; False opens `decode` alone, which knows text, and the others when the
                first image or video comes.

        Raises:
            Unavailable: If ONNX Runtime's CPU provider has no kernels for the bundle's precision.
            InvalidFile: If a graph cannot be opened.
        """
        if "cpu" not in manifest.devices:
            expected = f"--device {' or '.join(manifest.devices)}"
            found = f"cpu, where ONNX Runtime has no kernels for {manifest.precision}"
            raise Unavailable(f"{bundle}: expected {expected}, found {found}")
        self.max_prefill_chunk = manifest.model.max_positions
        self._info = manifest.model
        self._tap = tap
        self._max_scores = max_scores
        self._threads = threads
        self._paths = {name: bundle / manifest.graphs[name] for name in GRAPHS}
        self._rows = rows_of_tiles(bundle, manifest)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._opening = Lock()  # media are encoded by other threads than the one that runs the decoder
        self._bindings: WeakKeyDictionary[HostKVCache, dict[tuple[str, int, int], ort.IOBinding]] = WeakKeyDictionary()
        self._media_decode_graph = manifest.cpu_decode_graph
        self._prefill_graph = "decoder" if media else "decode"
        self._decode_graph = manifest.cpu_decode_graph if media else "decode"
        for name in GRAPHS:
            if name in (self._prefill_graph, self._decode_graph) or (media and name in ("vision", "resampler")):
                self._session(name)
        with translate_ort_errors(self._paths[self._prefill_graph]):
            inputs = {value.name: value.type for value in self._session(self._prefill_graph).get_inputs()}
            self.dtype = FLOATS[inputs["past_key.0"]]

    @property
    def open_graphs(self) -> set[str]:
        """Return the names of the graphs that are open."""
        return set(self._sessions)

    def _session(self, graph: str) -> ort.InferenceSession:
        """Return the session of a graph, opened if it is not yet: a decode step waits for no other graph's opening."""
        if (session := self._sessions.get(graph)) is not None:
            return session
        with self._opening:
            if graph not in self._sessions:
                self._sessions[graph] = self._open_session(graph)
            return self._sessions[graph]

    def _open_session(self, graph: str) -> ort.InferenceSession:
        path = self._paths[graph]
        options = cpu_options(self._threads)
        for name, value in self._rows.items():
            options.add_initializer(name, value)
        model: Path | bytes = path
        if self._tap is not None and graph in self._tap.graphs:
            model = self._tap.graphs[graph]
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        with translate_ort_errors(path):
            return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _take_media(self) -> None:
        """Go over to the graphs that know images and videos; close `decode` first where `decoder` takes its place."""
        self._prefill_graph = "decoder"
        self._decode_graph = self._media_decode_graph
        if self._decode_graph != "decode":
            for bindings in self._bindings.values():
                for key in [key for key in bindings if key[0] == "decode"]:
                    del bindings[key]
            with self._opening:
                self._sessions.pop("decode", None)

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Run the vision encoder and the resampler; see `Encoder.encode`."""
        frames = {"pixel_values": pixel_values, "coordinates": coordinates}
        tapped = self._tapped("vision")
        with translate_ort_errors(self._paths["vision"]):
            hidden, *values = self._session("vision").run(["hidden", *tapped], frames)
        self._emit(tapped, values)
        paired = {"hidden": hidden, "first": pairs[0], "second": pairs[1]}
        features: np.ndarray
        with translate_ort_errors(self._paths["resampler"]):
            (features,) = self._session("resampler").run(["features"], paired)
            check_shape(features, (None, None, self._info.hidden_size))
        return features

    def new_cache(self, num_slots: int, max_seq_len: int) -> HostKVCache:
        """Return an empty cache of just this shape."""
        return HostKVCache(
            num_layers=self._info.num_layers,
            num_slots=num_slots,
            num_kv_heads=self._info.num_kv_heads,
            max_seq_len=max_seq_len,
            head_dim=self._info.head_dim,
            dtype=self.dtype,
        )

    def prefill(self, cache: HostKVCache, slot: int, chunk: PromptChunk) -> Logits:
        """Append the chunk to the slot; returns the logits after its last token."""
        if self._prefill_graph == "decode" and (chunk.token_types.any() or chunk.feature_index.any()):
            self._take_media()
        step = max(self._max_scores // cache.max_seq_len, 1)
        for start in range(0, len(chunk.input_ids), step):
            part = chunk.part(start, start + step)
            inputs = part.decoder_inputs(int(cache.lengths[slot]))
            if self._prefill_graph == "decode":
                inputs = {name: inputs[name] for name in TEXT_INPUTS}
            else:
                inputs["features"] = part.features.astype(self.dtype, copy=False)
            logits = self._run(self._prefill_graph, inputs, cache, slice(slot, slot + 1))
            cache.lengths[slot] += len(part.input_ids)
        return DenseLogits(logits[0])

    def decode(self, cache: HostKVCache, tokens: np.ndarray, positions: np.ndarray) -> Sequence[Logits]:
        """Append one token to each of the first slots, by the graph that the manifest names."""
        count = len(tokens)
        inputs = {
            "input_ids": tokens[:, None],
            "position_ids": positions[:, :, None],
            "past_lengths": cache.lengths[:count],
            "lengths": np.ones(count, np.int64),
        }
        if self._decode_graph == "decoder":
            inputs["feature_index"] = inputs["token_types"] = np.zeros((count, 1), np.int64)
            inputs["features"] = np.empty((0, self._info.hidden_size), self.dtype)
        logits = self._run(self._decode_graph, inputs, cache, slice(0, count))
        cache.lengths[:count] += 1
        return [DenseLogits(values) for values in logits]

    def _run(self, graph: str, inputs: Mapping[str, np.ndarray], cache: HostKVCache, slots: slice) -> np.ndarray:
        """Run a decoder graph over some slots of the cache, which it updates in place.

        Args:
            graph: Name of the graph.
            inputs: Its inputs but for the cache.
            cache: The cache.
            slots: Consecutive slots of it, one for each sequence.

        Returns:
            Logits (sequences, vocabulary) float32.
        """
        tapped = self._tapped(graph)
        with translate_ort_errors(self._paths[graph]):
            binding = self._bound(graph, cache, slots)
            for name, array in inputs.items():
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for name in tapped:
                binding.bind_output(name, "cpu")
            self._session(graph).run_with_iobinding(binding)
            outputs = binding.get_outputs()
            logits: np.ndarray = outputs[0].numpy()
            check_shape(logits, (slots.stop - slots.start, self._info.vocab_size))
        self._emit(tapped, [value.numpy() for value in outputs[len(outputs) - len(tapped) :]])
        return logits

    def _bound(self, graph: str, cache: HostKVCache, slots: slice) -> ort.IOBinding:
        """Return a binding with the logits as first output, and each cache buffer as past and present alike.

        Bindings are kept as long as their cache: from one decode step to the next the buffers stay where they are, and
        binding them anew takes as long as a layer.
        """
        known = self._bindings.setdefault(cache, {})
        binding = known.get((graph, slots.start, slots.stop))
        if binding is None:
            binding = known[graph, slots.start, slots.stop] = self._session(graph).io_binding()
            binding.bind_output("logits", "cpu")
            for part, buffers in (("key", cache.keys), ("value", cache.values)):
                for layer, buffer in enumerate(buffers):
                    view = buffer[slots]
                    where = ("cpu", 0, view.dtype, view.shape, view.ctypes.data)
                    binding.bind_input(f"past_{part}.{layer}", *where)
                    binding.bind_output(f"present_{part}.{layer}", *where)
        return binding

    def _tapped(self, graph: str) -> list[str]:
        """Return the names of the graph's outputs beyond those of the bundle."""
        if self._tap is None or graph not in self._tap.graphs:
            return []
        names = [output.name for output in self._session(graph).get_outputs()]
        return [name for name in names if name not in ("hidden", "logits") and not name.startswith("present_")]

    def _emit(self, names: Sequence[str], values: Sequence[np.ndarray]) -> None:
        if self._tap is not None:
            for name, value in zip(names, values, strict=True):
                self._tap.on_value(name, value)

    def close(self) -> None:
        """Free the sessions and with them the mapping of the weights."""
        self._bindings.clear()
        self._sessions.clear()
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
