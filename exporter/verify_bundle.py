"""The bundle's side of ernie-verify: the exported graphs, run with their inner values as outputs."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from ernie_export.graphs.manifest import Manifest
from ernie_export.runtime.engines.onnxruntime import OnnxRuntimeEngine
from ernie_export.runtime.generation import Batch, Prompt, Sequence
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Prepared
from ernie_export.runtime.sampling import Sampler, SamplingParams
from ernie_export.runtime.text_stream import TextStream
from ernie_export.runtime.vision_features import encode_media


class Watched:
    """A bundle's graphs with further outputs. The engine's own sessions serve what needs none."""

    def __init__(self, bundle: Path, model: Model) -> None:
        self.model = model
        self.bundle = bundle
        self.manifest: Manifest = model.manifest

    def stages(self, prepared: Prepared, first_token: int) -> dict[str, np.ndarray]:
        """Run a prompt and one decode step; returns the stages' outputs by the names that verify.py compares."""
        stages: dict[str, list[np.ndarray]] = {}
        engine = WatchedEngine(self.bundle, self.manifest, stages)
        with engine:
            # The reference encodes all pictures and then all clips, whatever their order in the prompt.
            for medium in sorted(prepared.items, key=lambda item: item.kind):
                merge = self.manifest.model.spatial_merge_size
                stages.setdefault("resampler", []).extend(encode_media(engine, [medium.pixels], [medium.grid], merge))
            prompt = self.model.prompt(prepared)
            cache = engine.new_cache(1, len(prompt.input_ids) + 1)
            logits = engine.prefill(cache, 0, prompt.chunk(0, len(prompt.input_ids)))
            step = engine.decode(cache, np.array([first_token]), prompt.position_ids[:, -1:] + 1)
        joined = {name: np.concatenate([rows(part) for part in parts]) for name, parts in stages.items()}
        return joined | {"logits": logits[None], "decode logits": step}

    def generate(self, prepared: Prepared, count: int) -> list[int]:
        """`count` greedy tokens, whether or not one of them ends the answer."""
        prompt: Prompt = self.model.prompt(prepared)
        eos = self.manifest.model.eos_token_ids
        sampler = Sampler(SamplingParams(max_new_tokens=count, min_new_tokens=count), eos, prompt.input_ids)
        sequence = Sequence(prompt, sampler, TextStream(lambda ids: ""), frozenset(), count)
        batch = Batch(self.model.engine, 1, sequence.capacity())
        batch.add(sequence)
        while batch.running:
            batch.step()
        return sequence.tokens


class WatchedEngine(OnnxRuntimeEngine):
    """The engine, with inner values of the vision encoder and the decoder added to `stages` at each run."""

    def __init__(self, bundle: Path, manifest: Manifest, stages: dict[str, list[np.ndarray]]) -> None:
        super().__init__(bundle, manifest, threads=None)
        self._stages = stages
        self._watched: dict[str, dict[str, str]] = {}
        for graph in ("vision", "decoder"):
            model = onnx.load(bundle / manifest.graphs[graph], load_external_data=False)
            self._watched[graph] = inner_values(model)
            model.graph.output.extend(onnx.ValueInfoProto(name=value) for value in self._watched[graph].values())
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(bundle))
            self._sessions[graph] = ort.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )

    def encode(self, pixel_values: np.ndarray, coordinates: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """See `Engine.encode`."""
        names = self._watched["vision"]
        frames = {"pixel_values": pixel_values, "coordinates": coordinates}
        for name, value in zip(names, self._sessions["vision"].run(list(names.values()), frames), strict=True):
            self._stages.setdefault(name, []).append(value)
        return super().encode(pixel_values, coordinates, pairs)

    def _run(self, graph: str, arrays: dict[str, np.ndarray], cache: KVCache, rows: slice) -> np.ndarray:
        """As the engine's, keeping the inner values of prefill."""
        names = self._watched.get(graph, {})
        binding = self._bound(graph, cache, rows)
        for value in names.values():
            binding.bind_output(value, "cpu")
        logits = super()._run(graph, arrays, cache, rows)
        outputs = binding.get_outputs()
        for name, value in zip(names, outputs[len(outputs) - len(names) :], strict=True):
            self._stages.setdefault(name, []).append(value.numpy())
        return logits


def inner_values(model: onnx.ModelProto) -> dict[str, str]:
    """What to watch: verify.py's name of a stage to the value's name in the graph, read off the nodes' paths."""
    found = {}
    for node in model.graph.node:
        parts = node.name.strip("/").split("/")
        number = parts[1].rsplit(".", 1)[-1] if len(parts) > 2 else ""
        if parts[0] == "vision_model" and parts[1].startswith("blocks.") and parts[2:] == ["mlp", "Add"]:
            found[f"vision block {number}"] = node.output[0]
        elif parts[0] == "vision_model" and parts[1] == "ln":
            found["vision encoder"] = node.output[0]
        elif parts[0] == "model" and parts[-1] == "after_mlp":
            found[f"layer {number}"] = node.output[0]
        elif parts[0] == "model" and parts[-1] == "MoEDispatch":
            found[f"routing {number}"] = node.output[1]
    return found


def rows(array: np.ndarray) -> np.ndarray:
    """All leading axes in one."""
    return array.reshape(-1, array.shape[-1])
