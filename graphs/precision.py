"""How a bundle stores its weights and computes: the one place that says what a precision's name means."""

from dataclasses import dataclass

import onnx_ir as ir


@dataclass(frozen=True)
class Precision:
    """`dtype`: of activations, the KV cache, and of every weight that is not quantised.

    `decoder`: bits of the decoder's linear layers and experts. `others`: bits of the linear layers of the vision
    encoder and the resampler, and of the head. None: not quantised. Routers (float32), norms, biases, the embedding
    table and the patch embedding are never quantised. `float8`: 8 bits are e4m3 numbers, not integers.
    """

    name: str
    dtype: ir.DataType
    decoder: int | None = None
    others: int | None = None
    float8: bool = False


# int4 leaves 8 bits to what is 4% of the released model's weights: the head and the two vision parts.
PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", ir.DataType.FLOAT),
        Precision("fp16", ir.DataType.FLOAT16),
        Precision("bf16", ir.DataType.BFLOAT16),
        Precision("int8", ir.DataType.FLOAT, decoder=8, others=8),
        Precision("int4", ir.DataType.FLOAT, decoder=4, others=8),
    )
}
