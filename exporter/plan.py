"""A model's sizes by part, from its configuration alone.

Exact: parameters, and the files of a precision that can be exported (its graphs are built and its data file laid out,
without data). A precision that cannot be exported yet is computed by `RULES`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ernie_export.exporter import weights
from ernie_export.exporter.export import DATA_FILE
from ernie_export.exporter.processors import PROCESSOR_FILES, video_font
from ernie_export.exporter.targets import onnx
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.weights import Weight

# Peak resident memory of ernie-export by its own last line: 88 to 106 MiB measured in floating point, 154 MiB
# quantising on two cores; whatever the checkpoint's size, since weights pass through in blocks.
EXPORT_MEMORY = 154 * 2**20


@dataclass(frozen=True)
class Rule:
    """How a precision stores weights: `matrix_bits` for matrices of `QUANTISED` parts, `plain` bytes for the rest.

    `scale` bytes go with every `group` elements along a row (0: with every row), rows padded to whole groups. Routers
    are float32 in every precision, as the graphs declare them. `plain` is also an activation's size; `arithmetic` and
    `vision_arithmetic` name the rate of `Device` that decoder and vision encoder run at (int8 and int4 hold weights
    alone: they are widened to fp16 before the multiplication).
    """

    plain: int
    matrix_bits: int
    group: int
    scale: int
    arithmetic: str
    vision_arithmetic: str


RULES = {
    "fp32": Rule(4, 32, 0, 0, "fp32", "fp32"),
    "bf16": Rule(2, 16, 0, 0, "bf16", "bf16"),
    "fp16": Rule(2, 16, 0, 0, "fp16", "fp16"),
    "fp8": Rule(2, 8, 0, 4, "fp8", "fp16"),
    "int8": Rule(4, 8, 128, 4, "fp16", "fp16"),
    "int4": Rule(4, 4, 128, 4, "fp16", "fp16"),
}
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
QUANTISED = {"text experts", "vision experts", "shared experts", "attention", "dense layers"}
EVERY_TOKEN = ("shared experts", "attention", "dense layers", "norms")


@dataclass(frozen=True)
class Model:
    """The weights of a configuration by part, each counted once however many graphs read it."""

    config: ErnieConfig
    weights: dict[str, list[Weight]]

    @staticmethod
    def build(config: ErnieConfig, precision: str = "fp32") -> tuple["Model", int, int]:
        """The model in an exportable precision, with the exact bytes of its data file and of its graph files."""
        graphs = onnx.build_graphs(config, precision)
        layout = weights.plan(list({name: w for g in graphs.values() for name, w in g.weights.items()}.values()))
        with TemporaryDirectory() as folder:
            for name, graph in graphs.items():
                graph.save(Path(folder) / name, onnx.LOWERINGS["onnx"], DATA_FILE, layout.offsets)
            graph_files = sum(path.stat().st_size for path in Path(folder).iterdir())
        parts: dict[str, list[Weight]] = {part: [] for part in PARTS}
        for weight in layout.weights:
            parts[part_of(weight.name)].append(weight)
        return Model(config, parts), layout.nbytes, graph_files

    def parameters(self) -> dict[str, int]:
        """Parameters of each part."""
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

    def stored(self, rule: Rule) -> dict[str, int]:
        """Bytes of each part under `rule`."""
        return {part: sum(stored_bytes(w, part, rule) for w in found) for part, found in self.weights.items()}


def part_of(name: str) -> str:
    """The part that a weight belongs to; ValueError for a name that fits none."""
    for part, marks in PARTS.items():
        if any(mark in name for mark in marks):
            return part
    raise ValueError(f"{name}: no part of the plan")


def stored_bytes(weight: Weight, part: str, rule: Rule) -> int:
    """Bytes of one weight under `rule`."""
    count = math.prod(weight.shape)
    if part == "routers":
        return 4 * count
    if part not in QUANTISED or len(weight.shape) < 2 or not rule.scale:
        return rule.plain * count
    width = weight.shape[-1]
    group = rule.group or width
    groups = count // width * -(-width // group)
    return groups * (group * rule.matrix_bits // 8 + rule.scale)


def processor_bytes(folder: Path) -> int:
    """Bytes of the files that an export copies, as far as they are there."""
    names = {name for name in PROCESSOR_FILES if (folder / name).is_file()}
    for name in ("video_preprocessor_config.json", "processor_config.json"):
        font = video_font(folder / name)
        if font is not None and Path(font).name == font and (folder / font).is_file():
            names.add(font)
    return sum((folder / name).stat().st_size for name in names)
