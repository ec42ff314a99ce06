"""A model's sizes by part, from its configuration alone.

Exact: graphs are built and the data file is laid out, without data.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.exporter.export import DATA_FILE, LIMITS
from ernie_export.exporter.processor_files import PROCESSOR_FILES, video_font
from ernie_export.exporter.targets import onnx
from ernie_export.exporter.weights import writer as weights
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
    "dense layers": (".mlp.gate_proj.", ".mlp.up_proj.", ".mlp.down_proj."),
    "norms": ("norm.weight",),
    "embedding": ("embed_tokens.",),
    "head": ("lm_head.",),
}
EVERY_TOKEN = ("shared experts", "attention", "dense layers", "norms")


@dataclass(frozen=True)
class Model:
    """The weights of a configuration by part, each counted once however many graphs read it."""

    config: ErnieConfig
    weights: dict[str, list[Weight]]

    @staticmethod
    def build(config: ErnieConfig, precision: Precision, target: str | None = None) -> tuple["Model", int, int]:
        """The model as it is exported, with the exact bytes of its data file and of its ONNX files.

        Those are of `target`; without one, and of targets that compile engines, none are made or counted.
        """
        graphs = onnx.build_graphs(config, precision)
        layout = weights.plan(list({name: w for g in graphs.values() for name, w in g.weights.items()}.values()))
        graph_files = 0
        if target is not None and target not in LIMITS:
            with TemporaryDirectory() as folder:
                for name, graph in graphs.items():
                    graph.save(Path(folder) / name, onnx.LOWERINGS[target], DATA_FILE, layout.offsets)
                graph_files = sum(path.stat().st_size for path in Path(folder).iterdir())
        parts: dict[str, list[Weight]] = {part: [] for part in PARTS}
        for weight in layout.weights:
            parts[part_of(weight.name)].append(weight)
        return Model(config, parts), layout.nbytes, graph_files

    def parameters(self) -> dict[str, int]:
        """Parameters of each part; of a model whose weights are not in codes."""
        return {part: sum(math.prod(w.shape) for w in found) for part, found in self.weights.items()}

    def active(self) -> dict[str, float]:
        """Parameters that multiply one token: text, text with the head, vision."""
        count, text = self.parameters(), self.config.text
        common = sum(count[part] for part in EVERY_TOKEN) + count["routers"] / 2
        share = text.experts_per_token / text.num_experts
        head = count["embedding" if self.config.tie_word_embeddings else "head"]
        by_text = common + share * count["text experts"]
        vision = common + share * count["vision experts"]
        return {"text": by_text, "text with head": by_text + head, "vision": vision}

    def stored(self) -> dict[str, int]:
        """Bytes of each part."""
        return {part: sum(w.nbytes for w in found) for part, found in self.weights.items()}


def part_of(name: str) -> str:
    """The part that a weight belongs to; ValueError for a name that fits none."""
    for part, marks in PARTS.items():
        if any(mark in name for mark in marks):
            return part
    raise ValueError(f"{name}: no part of the plan")


def processor_bytes(folder: Path) -> int:
    """Bytes of the files that an export copies, as far as they are there."""
    names = {name for name in PROCESSOR_FILES if (folder / name).is_file()}
    for name in ("video_preprocessor_config.json", "processor_config.json"):
        font = video_font(folder / name)
        if font is not None and Path(font).name == font and (folder / font).is_file():
            names.add(font)
    return sum((folder / name).stat().st_size for name in names)
