"""Compute a model's sizes by part, from its configuration alone.

They are exact: graphs are built and the data file is laid out, without data.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.exporter.targets.options import TargetOptions
from ernie_export.exporter.targets.target import DATA_FILE, Target
from ernie_export.exporter.weights import writer
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import Precision
from ernie_export.graphs.weight_spec import Weight

# Peak resident memory of ernie-export by its own last line: 88 to 106 MiB measured in floating point, 154 MiB
# quantising on two cores; whatever the checkpoint's size, since weights pass through in blocks.
EXPORT_MEMORY = 154 * 2**20


# What marks a weight's name as belonging to a part; the first that fits counts.
PARTS = {
    "vision encoder": (".vision_model.",),
    "resampler": (".resampler_model.",),
    "text experts": (".experts.text.",),
    "vision experts": (".experts.vision.",),
    "shared experts": (".shared_experts.",),
    "attention": (".self_attn.",),
    "routers": (".mlp.gate.", ".moe_statics."),
    "dense layers": (".mlp.gate_up_proj.", ".mlp.down_proj."),
    "norms": ("norm.weight",),
    "embedding": ("embed_tokens.",),
    "head": ("lm_head.",),
}
EVERY_TOKEN = ("shared experts", "attention", "dense layers", "norms")


@dataclass(frozen=True)
class ExportedSizes:
    """What an export writes.

    Attributes:
        model: The weights by part.
        data_file: Bytes of the data file.
        graph_files: Bytes of the ONNX files.
        duplicate_weights: Bytes of the weights that more than one engine holds, but for one copy of each.
    """

    model: "Model"
    data_file: int
    graph_files: int
    duplicate_weights: int


@dataclass(frozen=True)
class Model:
    """The weights of a configuration by part, each counted once however many graphs read it."""

    config: ErnieConfig
    weights: dict[str, list[Weight]]

    @staticmethod
    def build(
        config: ErnieConfig,
        precision: Precision,
        target: Target | None = None,
        options: TargetOptions | None = None,
    ) -> ExportedSizes:
        """Build the model as it is exported.

        Args:
            config: The model's configuration.
            precision: Precision of the weights.
            target: Target whose ONNX files are counted; none are without one, nor for targets that compile engines.
            options: The target's own options; None for their defaults.
        """
        graphs = build_graphs(config, precision)
        layout = writer.plan(all_weights(graphs))
        graph_files = 0
        if target is not None and not target.compiles_engines:
            with TemporaryDirectory() as folder:
                for name, graph in graphs.items():
                    graph.save(Path(folder) / name, target.op_bodies, DATA_FILE, layout.offsets)
                graph_files = sum(path.stat().st_size for path in Path(folder).iterdir())
        parts: dict[str, list[Weight]] = {part: [] for part in PARTS}
        for weight in layout.weights:
            parts[part_of(weight.name)].append(weight)
        duplicates = 0
        binding = target and target.weight_binding(layout.weights, target.check_options(options))
        if binding:
            holders = Counter(name for graph in graphs.values() for name in graph.weights)
            constants = frozenset(binding.constants)
            duplicates = sum(w.nbytes * (holders[w.name] - 1) for w in layout.weights if w.name in constants)
        return ExportedSizes(Model(config, parts), layout.nbytes, graph_files, duplicates)

    def parameters(self) -> dict[str, int]:
        """Return the parameters of each part of a model whose weights are not quantized."""
        return {part: sum(math.prod(w.shape) for w in weights) for part, weights in self.weights.items()}

    def active(self) -> dict[str, float]:
        """Return the parameters that multiply one token: "text", "text with head", "vision"."""
        count = self.parameters()
        text = self.config.text
        common = sum(count[part] for part in EVERY_TOKEN) + count["routers"] / 2
        chosen = text.experts_per_token / text.num_experts
        head = count["embedding" if self.config.tie_word_embeddings else "head"]
        by_text = common + chosen * count["text experts"]
        by_vision = common + chosen * count["vision experts"]
        return {"text": by_text, "text with head": by_text + head, "vision": by_vision}

    def nbytes(self) -> dict[str, int]:
        """Return the bytes of each weight by name."""
        return {weight.name: weight.nbytes for weights in self.weights.values() for weight in weights}

    def stored(self) -> dict[str, int]:
        """Return the bytes of each part."""
        return {part: sum(w.nbytes for w in weights) for part, weights in self.weights.items()}


def part_of(name: str) -> str:
    """Return the part that a weight belongs to. Raises ValueError for a name that fits none."""
    for part, marks in PARTS.items():
        if any(mark in name for mark in marks):
            return part
    raise ValueError(f"{name}: no part of the plan")
