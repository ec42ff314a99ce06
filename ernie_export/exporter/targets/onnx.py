"""The ONNX target: four graphs over one data file, for ONNX Runtime's fused kernels or for any ONNX runtime.

| graph | from | to |
| --- | --- | --- |
| vision | frames of one size | patch embeddings |
| resampler | patch embeddings | features of the decoder's width |
| decoder | prompt tokens and features | logits and KV cache |
| decode | one text token a row | logits and KV cache, without the vision experts |
"""

from ernie_export.common.errors import UserError
from ernie_export.graphs import decoder, resampler, vision
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import Precision

LOWERINGS = {"onnx": "onnxruntime", "onnx-portable": "portable", "trt-rtx": "rtx", "trt": "tensorrt"}


def check_target(config: ErnieConfig, target: str) -> None:
    """Refuse what the target's operators can't run; UserError names the key."""
    # com.microsoft::GroupQueryAttention takes no other head size.
    if target == "onnx" and config.text.head_dim % 8:
        raise UserError(
            f"text_config.head_dim: expected a multiple of 8 for --target onnx, found {config.text.head_dim} "
            "(--target onnx-portable takes any)"
        )


def cpu_target(config: ErnieConfig, target: str) -> str:
    """The target whose graphs ONNX Runtime runs on this machine, of a checkpoint that is exported to `target`."""
    if target in ("onnx", "onnx-portable"):
        return target
    return "onnx-portable" if config.text.head_dim % 8 else "onnx"


def build_graphs(config: ErnieConfig, precision: Precision) -> dict[str, GraphBuilder]:
    """Every graph of the bundle by name; weights are described, not read."""
    return {
        "vision": vision.build(config.vision, precision),
        "resampler": resampler.build(config, precision),
        "decoder": decoder.build(config, precision, vision=True),
        "decode": decoder.build(config, precision, vision=False),
    }
