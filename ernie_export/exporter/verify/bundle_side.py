"""The bundle's side of ernie-verify: the exported graphs, run with their inner values as outputs."""

from pathlib import Path
from typing import Self

import numpy as np
import onnx
import onnxruntime as ort

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines.ort_cpu import OnnxRuntimeEngine
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.kv_cache import KVCache
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Prepared


class Watched:
    """A bundle's graphs with further outputs; use it in a `with` block."""

    def __init__(self, bundle: Path, model: Model) -> None:
        self.model = model
        self.engine = WatchedEngine(bundle, model.manifest)

    def stages(self, prepared: Prepared, tokens: list[int]) -> dict[str, np.ndarray]:
        """Run a prompt, then read `tokens` one by one.

        Returns the stages' outputs by the names that verify.py compares, and as "all logits" those before each token.
        """
        engine, stages = self.engine, self.engine.stages
        stages.clear()
        merge = self.model.manifest.model.spatial_merge_size
        # The reference encodes all pictures and then all clips, whatever their order in the prompt.
        for medium in sorted(prepared.items, key=lambda item: item.kind):
            stages.setdefault("resampler", []).extend(encode_media(engine, [medium.pixels], [medium.grid], merge))
        prompt = self.model.prompt(prepared)
        cache = engine.new_cache(1, len(prompt.input_ids) + len(tokens))
        logits = [engine.prefill(cache, 0, prompt.chunk(0, len(prompt.input_ids))).full().copy()]
        # Before decoding, which runs the same graph where the weights are quantised.
        joined = {name: np.concatenate([rows(part) for part in parts]) for name, parts in stages.items()}
        for count, token in enumerate(tokens[:-1], 1):
            step = engine.decode(cache, np.array([token]), prompt.position_ids[:, -1:] + count)
            logits.append(step[0].full().copy())  # the engine writes its next logits to the same place
        every = np.stack(logits)
        return joined | {"logits": every[:1], "decode logits": every[1:2], "all logits": every}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()


class WatchedEngine(OnnxRuntimeEngine):
    """The engine, with inner values of the vision encoder and the decoder added to `stages` at each run."""

    def __init__(self, bundle: Path, manifest: Manifest) -> None:
        super().__init__(bundle, manifest, threads=None)
        self.stages: dict[str, list[np.ndarray]] = {}
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
            self.stages.setdefault(name, []).append(value)
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
            self.stages.setdefault(name, []).append(value.numpy())
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
        elif parts[0] == "model" and parts[-1] in ("MoEDispatch", "QuantizedMoEDispatch"):
            found[f"routing {number}"] = node.output[1]
    return found


def rows(array: np.ndarray) -> np.ndarray:
    """All leading axes in one."""
    return array.reshape(-1, array.shape[-1])
