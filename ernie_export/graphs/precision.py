"""How a bundle stores its weights and computes: the one place that says what a precision's name means."""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Precision:
    """`dtype`: of activations, the KV cache, and of every weight that is not quantised.

    Bits of the weights of linear layers and experts: `decoder` of its layers, `head` of the head, `vision` of the
    vision encoder and the resampler. None: not quantised. Routers (float32), norms, biases, the embedding table and the
    patch embedding are never quantised. `float8`: 8 bits are e4m3 numbers, not integers. `devices`: where ONNX Runtime
    has kernels for it: no bfloat16 on a CPU, and attention in 16 bits alone on CUDA.
    """

    name: str
    dtype: ir.DataType
    decoder: int | None = None
    head: int | None = None
    vision: int | None = None
    float8: bool = False
    devices: tuple[str, ...] = ("cpu",)


def _named(*precisions: Precision) -> dict[str, Precision]:
    return {precision.name: precision for precision in precisions}


# On a GPU the vision parts, 2% of the weights, stay as they are: they never take fewer than hundreds of rows, so that
# their products wait for the matrix units and not for memory, and the libraries' own kernels are the ones for that.
# int4 leaves 8 bits to what is 4% of the released model's weights: the head and the two vision parts.
ONNX = _named(
    Precision("fp32", ir.DataType.FLOAT),
    Precision("fp16", ir.DataType.FLOAT16, devices=("cpu", "cuda")),
    Precision("bf16", ir.DataType.BFLOAT16, devices=("cuda",)),
    Precision("int8", ir.DataType.FLOAT, decoder=8, head=8, vision=8),
    Precision("int4", ir.DataType.FLOAT, decoder=4, head=8, vision=8),
    Precision("int4-fp16", ir.DataType.FLOAT16, decoder=4, head=8, devices=("cpu", "cuda")),
)
TENSORRT = _named(
    Precision("bf16", ir.DataType.BFLOAT16),
    Precision("fp16", ir.DataType.FLOAT16),
    Precision("int8", ir.DataType.BFLOAT16, decoder=8, head=8),
    Precision("int4", ir.DataType.BFLOAT16, decoder=4, head=8),
    Precision("fp8", ir.DataType.BFLOAT16, decoder=8, head=8, float8=True),
)
# By target and name.
PRECISIONS = {
    "onnx": ONNX,
    "onnx-portable": ONNX,
    "trt": TENSORRT,
    "trt-rtx": _named(TENSORRT["bf16"]),
}
