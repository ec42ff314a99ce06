"""ONNX graphs over one data file: for ONNX Runtime's fused kernels, or in standard operators for any ONNX runtime."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ernie_export.common.errors import InvalidFile
from ernie_export.exporter.targets.target import ExportJob, Target
from ernie_export.graphs import precision
from ernie_export.graphs.config import ErnieConfig, TextConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.cached_attention import function as cached_attention
from ernie_export.graphs.ops.moe_dispatch import function as moe_dispatch
from ernie_export.graphs.ops.mrope import function as mrope
from ernie_export.graphs.ops.quantized_linear import function as quantized_linear
from ernie_export.graphs.ops.residual_norm import function as residual_norm
from ernie_export.graphs.ops.vision_attention import function as vision_attention
from ernie_export.graphs.precision import Precision

if TYPE_CHECKING:
    from ernie_export.graphs.checkpoint.reader import Checkpoint

FUSED_BODIES = OpBodies(
    "onnxruntime",
    (
        cached_attention.onnxruntime,
        moe_dispatch.onnxruntime,
        mrope.standard,
        quantized_linear.onnxruntime,
        residual_norm.onnxruntime,
        vision_attention.onnxruntime,
    ),
)
FUSED_BODIES_WITHOUT_MINIMUM = FUSED_BODIES.replacing(
    "onnxruntime-without-minimum", moe_dispatch.onnxruntime, moe_dispatch.onnxruntime_without_minimum
)
PORTABLE_BODIES = OpBodies(
    "portable",
    (
        cached_attention.portable,
        moe_dispatch.portable,
        mrope.standard,
        quantized_linear.portable,
        residual_norm.standard,
        vision_attention.portable,
    ),
)
HEAD_DIM_MULTIPLE = 8  # com.microsoft::GroupQueryAttention takes no other head size
# Multiples of what the CUDA provider's expert kernels sum over (its moe_qmoe.md, 4.2; moe_quantization.cc, 1.31.1):
# QMoE refuses a part of a tile of quantized weights, MoE rows that do not begin at a multiple of 16 bytes.
QUANTIZED_EXPERT_MULTIPLE = 64
EXPERT_MULTIPLE = 8


@dataclass(frozen=True, kw_only=True)
class OnnxRuntimeTarget(Target):
    """ONNX Runtime, with its fused kernels, on a CPU or on CUDA."""

    name: str = "onnx"
    summary: str = "ONNX Runtime's fused kernels."
    precisions: tuple[Precision, ...] = tuple(precision.ONNX.values())
    op_bodies: OpBodies = FUSED_BODIES

    def check(self, config: ErnieConfig) -> None:
        """Raise InvalidFile for a head size that the fused attention does not take."""
        if not self.takes(config):
            raise InvalidFile(
                "config.json",
                f"a multiple of {HEAD_DIM_MULTIPLE} for --target {self.name}",
                config.text.head_dim,
                key="text_config.head_dim",
                hint=f"--target {ONNX_PORTABLE.name} takes any",
            )

    def check_precision(self, config: ErnieConfig, precision: Precision) -> None:
        """Raise InvalidFile for widths that the CUDA provider's kernels for experts refuse."""
        text = config.text
        if "cuda" not in precision.devices or "sparse" not in text.layer_types:
            return
        if precision.decoder is not None:
            multiple = QUANTIZED_EXPERT_MULTIPLE
            other = "--precision int4 takes multiples of 16"
        elif "cpu" not in precision.devices:
            multiple = EXPERT_MULTIPLE
            other = "--precision fp16 takes any, on a CPU"
        else:
            return
        widths = {"hidden_size": text.hidden_size}
        widths |= {f"moe_intermediate_size[{i}]": width for i, width in enumerate(text.moe_intermediate_size)}
        for key, width in widths.items():
            if width % multiple:
                expected = f"a multiple of {multiple} for --precision {precision.name} (CUDA's kernels for experts)"
                raise InvalidFile("config.json", expected, width, key=f"text_config.{key}", hint=other)

    def bodies(self, job: ExportJob) -> dict[str, OpBodies]:
        """Return the bodies by graph: shorter ones where norm_min has no effect."""
        needed = norm_min_has_effect(job.checkpoint, job.config.text)
        return dict.fromkeys(job.graphs, self.op_bodies if needed else FUSED_BODIES_WITHOUT_MINIMUM)

    def takes(self, config: ErnieConfig) -> bool:
        """Return whether the fused attention takes the model's head size."""
        return config.text.head_dim % HEAD_DIM_MULTIPLE == 0


@dataclass(frozen=True, kw_only=True)
class PortableTarget(Target):
    """Standard operators only, for any ONNX runtime."""

    name: str = "onnx-portable"
    summary: str = "standard operators only, for any ONNX runtime."
    precisions: tuple[Precision, ...] = tuple(precision.PORTABLE.values())
    op_bodies: OpBodies = PORTABLE_BODIES

    def devices(self, precision: Precision) -> tuple[str, ...]:
        """Return the CPU: ONNX Runtime's CUDA provider lacks kernels for some of the standard operators."""
        return ("cpu",)


def norm_min_has_effect(checkpoint: "Checkpoint", text: TextConfig) -> bool:
    """Return whether the smallest divisor of routing weights can have an effect in any layer of a checkpoint.

    Raises InvalidFile for biases that are missing, of another shape, or cannot be read.
    """
    from ernie_export.graphs.ops.moe_dispatch.minimum import minimum_has_effect

    for layer, kind in enumerate(text.layer_types):
        if kind == "sparse":
            name = f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"
            checkpoint.require(name, (2, text.num_experts))
            for bias in checkpoint.read_rows(name, 0, 2):
                if minimum_has_effect(bias, text.experts_per_token, text.norm_min):
                    return True
    return False


ONNX = OnnxRuntimeTarget()
ONNX_PORTABLE = PortableTarget()


def target_for_cpu(config: ErnieConfig) -> Target:
    """Return the fastest target whose graphs of this model ONNX Runtime runs on a CPU."""
    return ONNX if ONNX.takes(config) else ONNX_PORTABLE
