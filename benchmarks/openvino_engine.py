"""OpenVINO on our exported graphs, as a peer in the benchmarks: the engine protocol over a bundle of onnx-portable.

OpenVINO 2026.4 reads no functions of a model's own, and no TensorScatter (opset 24): the functions are inlined, and
TensorScatter becomes ScatterElements. Graphs of the target onnx it cannot run at all (com.microsoft.MoE).
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
import onnx.parser

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.kv_cache import HostKVCache
from ernie_export.runtime.logits import DenseLogits, Logits

SCATTER = onnx.parser.parse_function("""
<domain: "benchmark", opset_import: ["": 24]>
TensorScatter (past, update, starts) => (present) {
    shape = Shape (update)
    first = Constant <value_ints = [0]> ()
    length_1d = Shape <start = 2, end = 3> (update)
    length = Squeeze (length_1d, first)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    new = Range (zero, length, one)
    row_axes = Constant <value_ints = [0, 1, 3]> ()
    new_4d = Unsqueeze (new, row_axes)
    column_axes = Constant <value_ints = [1, 2, 3]> ()
    starts_4d = Unsqueeze (starts, column_axes)
    places = Add (starts_4d, new_4d)
    indices = Expand (places, shape)
    present = ScatterElements <axis = 2> (past, indices, update)
}
""")


def readable(path: Path) -> onnx.ModelProto:
    """A graph of a bundle with nothing in it but operators that OpenVINO knows; weights stay in their file."""
    model = onnx.load(path, load_external_data=False)
    for function in model.functions:
        for node in function.node:
            if node.op_type == "TensorScatter":
                node.domain = SCATTER.domain
                del node.attribute[:]  # the axis is 2 in all of our graphs
                function.opset_import.append(onnx.helper.make_opsetid(SCATTER.domain, 1))
    model.functions.append(SCATTER)
    model.opset_import.append(onnx.helper.make_opsetid(SCATTER.domain, 1))
    return onnx.inliner.inline_local_functions(model)


class OpenVinoEngine:
    """An engine (`ernie_export.runtime.engines.Engine`) of OpenVINO; one sequence at a time."""

    def __init__(self, bundle: Path, manifest: Manifest, threads: int) -> None:
        import openvino

        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self.info = manifest.model
        self.max_prefill_chunk = manifest.model.max_positions
        self.requests: dict[str, list[Any]] = {}
        with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
            (Path(folder) / "weights.safetensors").hardlink_to(bundle / "weights.safetensors")
            for name, file in manifest.graphs.items():
                onnx.save(readable(bundle / file), Path(folder) / file)
                model = core.compile_model(Path(folder) / file, "CPU", config)
                # Two take turns: one's outputs are the other's inputs, and the cache is never copied from step to step.
                self.requests[name] = [model.create_infer_request() for _ in range(2)]

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Run the vision encoder and the resampler."""
        vision = self.requests["vision"][0]
        resampler = self.requests["resampler"][0]
        hidden = vision.infer({"pixel_values": pixel_values, "coordinates": coordinates})["hidden"]
        return resampler.infer({"hidden": hidden, "first": pairs[0], "second": pairs[1]})["features"]

    def new_cache(self, num_slots: int, max_seq_len: int) -> HostKVCache:
        """Return an empty cache, which the engine then uses in place."""
        cache = HostKVCache(
            num_layers=self.info.num_layers,
            num_slots=num_slots,
            num_kv_heads=self.info.num_kv_heads,
            max_seq_len=max_seq_len,
            head_dim=self.info.head_dim,
            dtype=np.dtype(np.float32),
        )
        self.past = {
            f"past_{part}.{layer}": buffer
            for part, buffers in (("key", cache.keys), ("value", cache.values))
            for layer, buffer in enumerate(buffers)
        }
        return cache

    def prefill(self, cache: HostKVCache, slot: int, chunk: PromptChunk) -> Logits:
        """Append the chunk; returns the logits after its last token."""
        arrays = {
            "input_ids": chunk.input_ids[None],
            "feature_index": chunk.feature_index[None],
            "features": chunk.features,
            "token_types": chunk.token_types[None],
            "position_ids": chunk.position_ids[:, None],
        }
        return DenseLogits(self.run("decoder", arrays, cache, len(chunk.input_ids))[0])

    def decode(self, cache: HostKVCache, tokens: np.ndarray, positions: np.ndarray) -> list[Logits]:
        """Append one token."""
        inputs = {"input_ids": tokens[:, None], "position_ids": positions[:, :, None]}
        return [DenseLogits(row) for row in self.run("decode", inputs, cache, 1)]

    def run(self, graph: str, arrays: dict[str, np.ndarray], cache: HostKVCache, length: int) -> np.ndarray:
        """Append `length` tokens; returns logits (1, vocabulary)."""
        lengths = {"past_lengths": cache.lengths.copy(), "lengths": np.array([length])}
        requests = self.requests[graph]
        requests.reverse()
        outputs = requests[0].infer(arrays | lengths | self.past, share_inputs=True)
        cache.lengths += length
        names = {name: name.replace("past", "present") for name in self.past}
        self.past = {name: requests[0].get_tensor(present) for name, present in names.items()}
        return outputs["logits"]

    def close(self) -> None:
        """Free the requests."""
        self.requests.clear()

    def __enter__(self) -> "OpenVinoEngine":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
