"""Random checkpoints of the PyTorch class, exported, and the summary that the parity tests print at the end.

Weights are drawn large enough that every expert, bias and position matters: a swapped expert group or axis changes the
outputs by tens of per cent. Router correction biases are never zero.
"""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision_operators  # noqa: F401
from onnx import load_model, save_model
from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration

from ernie_export.exporter.export import export
from ernie_export.exporter.targets.onnx import PortableTarget
from ernie_export.exporter.targets.target import ExportJob
from ernie_export.exporter.targets.tensorrt import DECODE_BODIES, DECODE_FEW_BODIES, TENSORRT_BODIES
from ernie_export.exporter.targets.trt_rtx import RTX_BODIES
from ernie_export.graphs.ops.bodies import OpBodies
from tests.fakes import plugin_bodies
from tests.mini import MEDIA_IDS, VOCABULARY
from tests.paths import MINI
from tests.progress import QUIET

torch.set_num_threads(1)
PROCESSOR_FILES = (
    "tokenizer.json tokenizer_config.json preprocessor_config.json video_preprocessor_config.json "
    "chat_template.jinja Roboto-Regular.ttf"
).split()
TARGETS = ("onnx", "onnx-portable")
# What TensorRT for RTX and TensorRT are given, where ONNX Runtime can run it: plugins' bodies are filled in.
# Those for TensorRT for RTX stay functions here: inlined, what nothing takes is dropped, the chosen experts too.
ROWS = replace(RTX_BODIES, inlined=False)


@dataclass(frozen=True, kw_only=True)
class LoweredTarget(PortableTarget):
    """The portable target with other bodies, and with those of `decode_bodies` in the decode graph."""

    decode_bodies: OpBodies

    def bodies(self, job: ExportJob) -> dict[str, OpBodies]:
        return super().bodies(job) | {"decode": self.decode_bodies}


LOWERED = {
    "rtx": LoweredTarget(op_bodies=ROWS, decode_bodies=ROWS),
    "trt": LoweredTarget(op_bodies=TENSORRT_BODIES, decode_bodies=DECODE_FEW_BODIES),
    "trt-many": LoweredTarget(op_bodies=TENSORRT_BODIES, decode_bodies=DECODE_BODIES),
}


@dataclass
class Summary:
    """What the parity tests found, printed after the run: worst relative errors by stage, ties by kind."""

    errors: dict[str, tuple[float, str]] = field(default_factory=dict)
    comparisons: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    notes: list[str] = field(default_factory=list)

    def error(self, stage: str, ours: np.ndarray, reference: np.ndarray, where: str) -> float:
        """Record and return ‖ours − reference‖ / ‖reference‖; shapes must agree."""
        assert ours.shape == reference.shape, f"{stage}: {ours.shape} against {reference.shape} ({where})"
        relative = float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))
        self.comparisons[stage] += 1
        if stage not in self.errors or not relative <= self.errors[stage][0]:
            self.errors[stage] = relative, where
        return relative


SUMMARY: pytest.StashKey[Summary] = pytest.StashKey()


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> Summary:
    if SUMMARY not in pytestconfig.stash:  # this conftest was loaded after pytest_configure
        pytestconfig.stash[SUMMARY] = Summary()
    return pytestconfig.stash[SUMMARY]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(SUMMARY, None)
    if found is None or not (found.errors or found.counts):
        return
    terminalreporter.section("parity with PyTorch")
    for stage, (error, where) in sorted(found.errors.items()):
        terminalreporter.line(f"{stage}: {found.comparisons[stage]} compared, largest error {error:.1e} ({where})")
    for name, count in sorted(found.counts.items()):
        terminalreporter.line(f"{name}: {count}")
    for note in found.notes:
        terminalreporter.line(f"note: {note}")


def random_config(seed: int, text: dict[str, Any], vision: dict[str, Any], **top: Any) -> Ernie4_5_VLMoeConfig:
    """A small configuration drawn from `seed`; what a test gives overrides what was drawn."""
    rng = np.random.default_rng(seed)
    pick = lambda *values: values[int(rng.integers(len(values)))]  # noqa: E731
    kv_heads = pick(1, 2, 3)
    heads = kv_heads * pick(1, 2, 4)
    experts = int(rng.integers(3, 9))
    layers = int(rng.integers(2, 5))
    drawn_text = {
        "vocab_size": VOCABULARY,
        "hidden_size": heads * pick(16, 24),
        "intermediate_size": pick(40, 72),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "moe_num_experts": experts,
        "moe_k": int(rng.integers(1, min(experts, 4) + 1)),
        "moe_intermediate_size": [pick(16, 24, 40), pick(8, 16, 48)],
        "moe_num_shared_experts": pick(0, 1, 2),
        "use_bias": pick(False, True),
        "rms_norm_eps": pick(1e-5, 1e-6),
        "max_position_embeddings": 4096,
        "eos_token_id": 2,
    }
    drawn_text |= text
    head_dim = drawn_text.get("head_dim", drawn_text["hidden_size"] // drawn_text["num_attention_heads"])
    third = max(round(head_dim / 2 * 0.34), 1)
    section = [third, third, head_dim // 2 - 2 * third]
    rope = {"rope_type": "default", "rope_theta": pick(10000.0, 500000.0), "mrope_section": section}
    drawn_text.setdefault("rope_parameters", rope)
    vision_heads = pick(1, 2, 3)
    drawn_vision = {
        "depth": int(rng.integers(1, 4)),
        "hidden_size": vision_heads * pick(8, 12, 20),
        "num_heads": vision_heads,
        "intermediate_size": pick(24, 56),
        "patch_size": 14,
    }
    drawn_vision |= vision
    drawn = MEDIA_IDS | {"tie_word_embeddings": pick(False, True)} | top
    return Ernie4_5_VLMoeConfig(text_config=drawn_text, vision_config=drawn_vision, **drawn)


def fill(model: Ernie4_5_VLMoeForConditionalGeneration, seed: int) -> None:
    """Draw every weight: matrices that keep their input's size, norms about 1, biases that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("ln.weight"):
                std = 0.2
                mean = 1.0
            elif parameter.ndim == 1 or "e_score_correction_bias" in name:
                std = 0.15
                mean = 0.0
            elif "embed_tokens" in name:
                std = 0.3
                mean = 0.0
            else:
                std = 1.3 / math.sqrt(parameter.shape[-1])
                mean = 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + mean)


@dataclass(frozen=True)
class Exported:
    """A checkpoint folder, the PyTorch model that it loads as (fp32, `eager` experts), and bundles by target."""

    folder: Path
    reference: Ernie4_5_VLMoeForConditionalGeneration
    bundles: dict[str, Path]


def fit_processors(checkpoint: Path, vision: Any) -> None:
    """Give the processors the model's patches: the export refuses others."""
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        settings = json.loads((checkpoint / name).read_text())
        settings |= {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        (checkpoint / name).write_text(json.dumps(settings))


def fill_plugins(bundle: Path) -> None:
    """Give the graphs of a bundle the functions of their plugins."""
    for graph in ("decoder.onnx", "decode.onnx"):
        model = load_model(bundle / graph, load_external_data=False)
        plugin_bodies.fill(model)
        save_model(model, bundle / graph)


@pytest.fixture(scope="session")
def make_exported() -> Callable[..., Exported]:
    """make_exported(folder, seed, text, vision, targets=..., dtype=..., change=..., **top level keys).

    targets: those of ernie-export in ONNX, and those of LOWERED.
    """

    def make(
        folder: Path,
        seed: int,
        text: dict[str, Any] | None = None,
        vision: dict[str, Any] | None = None,
        targets: tuple[str, ...] = TARGETS,
        dtype: torch.dtype = torch.float32,
        change: Callable[[Any], None] = lambda model: None,
        **top: Any,
    ) -> Exported:
        model = Ernie4_5_VLMoeForConditionalGeneration(random_config(seed, text or {}, vision or {}, **top))
        fill(model, seed)
        change(model)
        checkpoint = folder / "checkpoint"
        model.to(dtype).save_pretrained(checkpoint, max_shard_size="200KB")
        for name in PROCESSOR_FILES:
            shutil.copyfile(MINI / name, checkpoint / name)
        fit_processors(checkpoint, model.config.vision_config)
        bundles = {target: folder / target for target in targets}
        for target, bundle in bundles.items():
            export(checkpoint, bundle, LOWERED.get(target, target), "fp32", QUIET)
            if target.startswith("trt"):
                fill_plugins(bundle)
        # Read back: what is compared is the checkpoint on the disk, rounded to bf16 where it was saved so.
        reference = Ernie4_5_VLMoeForConditionalGeneration.from_pretrained(
            checkpoint, dtype=torch.float32, experts_implementation="eager"
        ).eval()
        return Exported(checkpoint, reference, bundles)

    return make
