"""The bundle's side of ernie-verify: what an engine computes, and on a CPU the graphs' inner values too."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from ernie_export.common.image_sizes import MAX_IMAGE_PIXELS
from ernie_export.common.manifest import Manifest
from ernie_export.exporter.verify.float32_products import compute_in_float32
from ernie_export.exporter.verify.probe_names import DECODE
from ernie_export.runtime.engines.ort_cpu import Tap
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.pipeline import Model, load
from ernie_export.runtime.preprocess import Prepared
from ernie_export.runtime.sequence import Prompt

ENGINE_VALUES = {"hidden": "vision encoder"}  # what engines of TensorRT can be tapped for -> the stage's name
TAPPED = ("vision", "resampler", "decoder", "decode")  # graphs


@dataclass(frozen=True)
class Answered:
    """What a bundle computes of one conversation.

    Attributes:
        probes: Compared values by the names of verify.py; those of decode steps have all steps one after another.
        tokens: The greedy answer, without tokens that stand for media.
        logits: float32 (tokens, V) before each token.
    """

    probes: dict[str, np.ndarray]
    tokens: list[int]
    logits: np.ndarray


@dataclass
class Tracer:
    """Collects the values of tapped graphs by stage.

    Attributes:
        names: The stage's name of each graph value.
        prefix: What the names begin with from now on.
        values: What came since the last `take`.
    """

    names: dict[str, str] = field(default_factory=dict)
    prefix: str = ""
    values: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def keep(self, name: str, value: np.ndarray) -> None:
        """Add a graph's value."""
        self.values.setdefault(self.prefix + self.names[name], []).append(value)

    def take(self) -> dict[str, np.ndarray]:
        """Return the values in rows, those of one name one after another, and begin anew."""
        taken = {name: np.concatenate([rows(part) for part in parts]) for name, parts in self.values.items()}
        self.values.clear()
        self.prefix = ""
        return taken


class BundleSide:
    """A loaded bundle, whose inner values are read where its engine has them."""

    def __init__(self, model: Model, tracer: Tracer | None) -> None:
        """Take a loaded model, and the tracer that its engine fills, if it does."""
        self.model = model
        self._tracer = tracer or Tracer()
        info = model.manifest.model
        self._media = [info.image_token_id, info.video_token_id]

    @classmethod
    @contextmanager
    def open(cls, bundle: Path, device: str, max_image_pixels: int = MAX_IMAGE_PIXELS) -> "Iterator[BundleSide]":
        """Load a bundle on a device, its large files hashed; close it at the end.

        Engines of TensorRT give the vision encoder's output besides what they give any caller.
        """
        tracer = Tracer(dict(ENGINE_VALUES)) if Manifest.read(bundle).engines is not None else None
        tap = Tap({}, tracer.keep) if tracer is not None else None
        with load(bundle, check=True, device=device, max_image_pixels=max_image_pixels, tap=tap) as model:
            yield cls(model, tracer)

    @classmethod
    @contextmanager
    def open_traced(cls, bundle: Path) -> "Iterator[BundleSide]":
        """Load a bundle on the CPU with inner values as outputs, products computed in float32; close it at the end."""
        tracer = Tracer()
        tap = Tap(traced_graphs(bundle, Manifest.read(bundle), tracer), tracer.keep)
        with load(bundle, tap=tap) as model:
            yield cls(model, tracer)

    def answer(self, prepared: Prepared, count: int) -> Answered:
        """Read a prompt and answer with `count` greedy tokens, whatever ends an answer."""
        return self.read(prepared, [], count)

    def read(self, prepared: Prepared, tokens: list[int], count: int) -> Answered:
        """Read a prompt and `tokens`, then answer with greedy ones until there are `count`."""
        engine = self.model.engine
        merge = self.model.manifest.model.spatial_merge_size
        tokens = list(tokens)
        self._tracer.take()
        # The reference encodes all images and then all videos, whatever their order in the prompt.
        encoded = sorted(prepared.items, key=lambda item: item.kind)
        features = [encode_media(engine, [item.pixels], [item.grid], merge)[0] for item in encoded]
        probes = self._tracer.take() | ({"resampler": np.concatenate(features)} if features else {})
        prompt = self.model.prompt(prepared)
        self._tracer.take()
        cache = engine.new_cache(1, len(prompt.input_ids) + count)
        logits = [self._prefill(cache, prompt)]
        probes |= self._tracer.take()
        self._tracer.prefix = DECODE
        for place in range(1, count):
            tokens += [self._best(logits[-1])] if len(tokens) < place else []
            positions = prompt.position_ids[:, -1:] + place
            (step,) = engine.decode(cache, np.array([tokens[place - 1]]), positions)
            logits.append(step.full().copy())
        tokens += [self._best(logits[-1])] if len(tokens) < count else []
        every = np.stack(logits)
        probes |= self._tracer.take() | {"logits": every[:1], f"{DECODE}logits": every[1:]}
        return Answered(probes, tokens, every)

    def _prefill(self, cache: object, prompt: Prompt) -> np.ndarray:
        """Return a copy of the logits after the prompt: an engine writes its next ones to the same memory."""
        engine = self.model.engine
        length = len(prompt.input_ids)
        for start in range(0, length, engine.max_prefill_chunk):
            end = min(start + engine.max_prefill_chunk, length)
            logits = engine.prefill(cache, 0, prompt.chunk(start, end))
        return logits.full().copy()

    def _best(self, logits: np.ndarray) -> int:
        allowed = logits.copy()
        allowed[self._media] = -np.inf
        return int(allowed.argmax())


def traced_graphs(bundle: Path, manifest: Manifest, tracer: Tracer) -> dict[str, bytes]:
    """Return graphs of a bundle with inner values as further outputs, and add their names to the tracer's."""
    graphs = {}
    for name in TAPPED:
        graph = onnx.load(bundle / manifest.graphs[name], load_external_data=False)
        values = inner_values(graph)
        graph.graph.output.extend(onnx.ValueInfoProto(name=value) for value in values.values())
        tracer.names |= {value: stage for stage, value in values.items()}
        compute_in_float32(graph)
        graphs[name] = graph.SerializeToString()
    return graphs


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
