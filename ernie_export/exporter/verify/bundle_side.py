"""The bundle's side of ernie-verify: the exported graphs, run with their inner values as outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import onnx

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine, Tap
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Prepared


class TracedEngine:
    """The engine of a bundle that keeps inner values of its graphs; use it in a `with` block."""

    def __init__(self, bundle: Path, model: Model) -> None:
        """Open the engine beside the model's own."""
        self.model = model
        self._stages: dict[str, list[np.ndarray]] = {}
        self._names: dict[str, str] = {}  # of the value in its graph -> of the stage
        tap = Tap(self._traced_graphs(bundle, model.manifest), self._keep)
        self.engine = OrtCpuEngine(bundle, model.manifest, threads=None, tap=tap)

    def _traced_graphs(self, bundle: Path, manifest: Manifest) -> Mapping[str, bytes]:
        """Return the vision encoder's and the decoder's graphs with inner values as further outputs."""
        graphs = {}
        for name in ("vision", "decoder"):
            graph = onnx.load(bundle / manifest.graphs[name], load_external_data=False)
            values = inner_values(graph)
            graph.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values.values())
            self._names |= {value: stage for stage, value in values.items()}
            graphs[name] = graph.SerializeToString()
        return graphs

    def _keep(self, name: str, value: np.ndarray) -> None:
        self._stages.setdefault(self._names[name], []).append(value)

    def stages(self, prepared: Prepared, tokens: list[int]) -> dict[str, np.ndarray]:
        """Run a prompt, then read `tokens` one by one.

        Returns the stages' outputs by the names that verify.py compares, and as "all logits" those before each token.
        """
        self._stages.clear()
        merge = self.model.manifest.model.spatial_merge_size
        # The reference encodes all images and then all videos, whatever their order in the prompt.
        for item in sorted(prepared.items, key=lambda item: item.kind):
            features = encode_media(self.engine, [item.pixels], [item.grid], merge)
            self._stages.setdefault("resampler", []).extend(features)
        prompt = self.model.prompt(prepared)
        cache = self.engine.new_cache(1, len(prompt.input_ids) + len(tokens))
        # An engine writes its next logits to the same memory: hence the copies.
        logits = [self.engine.prefill(cache, 0, prompt.chunk(0, len(prompt.input_ids))).full().copy()]
        # Before decoding, which runs the same graph where the weights are quantized.
        stages = {name: np.concatenate([rows(part) for part in parts]) for name, parts in self._stages.items()}
        for count, token in enumerate(tokens[:-1], 1):
            (step,) = self.engine.decode(cache, np.array([token]), prompt.position_ids[:, -1:] + count)
            logits.append(step.full().copy())
        every = np.stack(logits)
        return stages | {"logits": every[:1], "decode logits": every[1:2], "all logits": every}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()


def inner_values(model: onnx.ModelProto) -> dict[str, str]:
    """Return what to compare: the stage's name in verify.py -> the value's name in the graph, by the nodes' paths."""
    values = {}
    for node in model.graph.node:
        parts = node.name.strip("/").split("/")
        number = parts[1].rsplit(".", 1)[-1] if len(parts) > 2 else ""
        if parts[0] == "vision_model" and parts[1].startswith("blocks.") and parts[2:] == ["mlp", "Add"]:
            values[f"vision block {number}"] = node.output[0]
        elif parts[0] == "vision_model" and parts[1] == "ln":
            values["vision encoder"] = node.output[0]
        elif parts[0] == "model" and parts[-1] == "after_attention":
            values[f"layer {number} attention"] = node.output[0]
        elif parts[0] == "model" and parts[-1] == "after_mlp":
            values[f"layer {number}"] = node.output[0]
        elif parts[0] == "model" and parts[-1] in ("MoEDispatch", "QuantizedMoEDispatch"):
            values[f"routing {number}"] = node.output[1]
    return values


def rows(array: np.ndarray) -> np.ndarray:
    """Return an array with all leading axes in one."""
    return array.reshape(-1, array.shape[-1])
