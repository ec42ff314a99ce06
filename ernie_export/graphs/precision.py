"""How a bundle stores its weights and computes: one object for each precision, the one place that says what it means.

Commands list precisions in their --help, so this module imports neither onnx nor onnx_ir before a dtype is needed.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

FloatType = Literal["float32", "float16", "bfloat16"]
DATA_TYPES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16"}  # their names in onnx_ir.DataType
CALIBRATED_BITS = 4  # more bits leave nothing to gain from rounding weights for their inputs


@dataclass(frozen=True)
class Tolerance:
    """How far a bundle may part from PyTorch in float32, for ernie-verify.

    Attributes:
        error: Relative error of an inner value of the graphs on a CPU, where products of quantized weights take
            activations as they are, beside a reference that computes with the bundle's own weights.
        kl: Mean Kullback-Leibler divergence of the next-token distributions, in nats, beside the checkpoint's weights.
        every_token: Whether the error is that of the worst token, and no token or routing choice may differ beyond
            rounding. Otherwise it is that of the median one: lower precisions move some routing choices.
        same_tokens: Whether the next tokens of the bundle as it is may differ by rounding alone.
        encoder: The error of the vision encoder and the resampler where it is another.
        device_error: The error of image features and logits on another device, of the median token.
    """

    error: float
    kl: float
    every_token: bool = False
    same_tokens: bool = False
    encoder: float | None = None
    device_error: float = 1e-1

    def limit(self, probe: str) -> float:
        """Return the error that is allowed of a probe, by its name."""
        is_encoder = probe.startswith(("vision", "resampler"))
        return self.encoder if is_encoder and self.encoder is not None else self.error

    def on_device(self) -> "Tolerance":
        """Return the tolerance where the engine gives no inner values."""
        return replace(self, error=self.device_error, encoder=None, every_token=False, same_tokens=False)

    def limited(self, error: float | None) -> "Tolerance":
        """Return the tolerance with another relative error everywhere, or itself for None."""
        return self if error is None else replace(self, error=error, encoder=None)


@dataclass(frozen=True)
class Precision:
    """A way to store weights and to compute.

    Routers (float32), norms, biases, the embedding table and the patch embedding are never quantized.

    Attributes:
        name: Name on the command line and in the manifest.
        float_type: Type of activations, the KV cache, and every weight that is not quantized.
        tolerance: What ernie-verify allows it.
        decoder: Bits of the weights of the decoder's linear layers and experts; None if they are not quantized.
        head: Bits of the head's weights, likewise.
        vision: Bits of the weights of the vision encoder and the resampler, likewise.
        float8: Whether 8 bits are e4m3 numbers, not integers.
        expert_tiles: Whether experts' weights, of 4 bits, lie as CUDA's kernels read them (common/expert_layout.py).
        devices: Devices that ONNX Runtime has kernels for: no bfloat16 on a CPU, and attention in 16 bits only on CUDA.
    """

    name: str
    float_type: FloatType
    tolerance: Tolerance
    decoder: int | None = None
    head: int | None = None
    vision: int | None = None
    float8: bool = False
    expert_tiles: bool = False
    devices: tuple[str, ...] = ("cpu",)

    @property
    def dtype(self) -> "ir.DataType":
        """Return `float_type` as the graphs declare it."""
        import onnx_ir as ir

        return ir.DataType[DATA_TYPES[self.float_type]]

    @property
    def rounds_weights(self) -> bool:
        """Return whether weights are stored in fewer bits than float32."""
        return self.float_type != "float32" or self.decoder is not None

    @property
    def decodes_with_prefill_graph(self) -> bool:
        """Return whether ONNX Runtime's CPU engine decodes with the prefill graph.

        It packs quantized weights in memory of its own, so that a second session would hold them twice.
        """
        return self.decoder is not None

    @property
    def takes_calibration(self) -> bool:
        """Return whether the decoder's weights can be rounded for the inputs of a user's own conversations."""
        return self.decoder == CALIBRATED_BITS


def by_name(*precisions: Precision) -> dict[str, Precision]:
    """Return the precisions by name, in order."""
    return {precision.name: precision for precision in precisions}


# A float32 sum over a few thousand terms rounds at about 1e-6, and the released model has 28 layers of them.
EXACT = Tolerance(error=1e-4, kl=1e-6, every_token=True, same_tokens=True, device_error=1e-2)
# The median token of the small checkpoint is off by 4e-4 in float16. With 8 bits ONNX Runtime's experts round
# activations whatever they are asked, by 5e-3; with 4 bits they do not.
HALF = Tolerance(error=5e-3, kl=1e-3, device_error=1e-2)
BRAIN = Tolerance(error=5e-2, kl=3e-2, device_error=5e-2)
EIGHT_BITS = Tolerance(error=3e-2, kl=1e-2, encoder=1e-4)
FOUR_BITS = Tolerance(error=1e-4, kl=2e-1, every_token=True)
FOUR_BITS_HALF = Tolerance(error=1e-2, kl=2e-1)
FLOAT8 = Tolerance(error=1e-1, kl=1e-1)

# On a GPU the vision parts, 2% of the weights, stay as they are: they never take fewer than hundreds of rows, so that
# their products wait for the matrix units and not for memory, and the libraries' own kernels are the ones for that.
# int4 leaves 8 bits to what is 4% of the released model's weights: the head and the two vision parts.
ONNX = by_name(
    Precision("fp32", "float32", EXACT),
    Precision("fp16", "float16", HALF, devices=("cpu", "cuda")),
    Precision("bf16", "bfloat16", BRAIN, devices=("cuda",)),
    Precision("int8", "float32", EIGHT_BITS, decoder=8, head=8, vision=8),
    Precision("int4", "float32", FOUR_BITS, decoder=4, head=8, vision=8),
    Precision("int4-fp16", "float16", FOUR_BITS_HALF, decoder=4, head=8, expert_tiles=True, devices=("cpu", "cuda")),
)
# The same for standard operators, which read rows.
PORTABLE = ONNX | by_name(Precision("int4-fp16", "float16", FOUR_BITS_HALF, decoder=4, head=8))
TENSORRT = by_name(
    Precision("bf16", "bfloat16", BRAIN, devices=("cuda",)),
    Precision("fp16", "float16", HALF, devices=("cuda",)),
    Precision("int8", "bfloat16", EIGHT_BITS, decoder=8, head=8, devices=("cuda",)),
    Precision("int4", "bfloat16", FOUR_BITS, decoder=4, head=8, devices=("cuda",)),
    Precision("fp8", "bfloat16", FLOAT8, decoder=8, head=8, float8=True, devices=("cuda",)),
)
