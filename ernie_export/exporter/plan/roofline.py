"""Estimate what a workload takes of a device: memory, what fits, and roofline rates of prefill and decode.

KV cache, FLOP of the matrix products and bytes of weights are exact. Activations are estimated (fused attention, which
stores no scores). Rates are upper bounds: they count no kernel, launch or host time, everything is read once,
intermediate results never leave the chip, and each token's experts are chosen evenly and independently of other tokens.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from ernie_export.common.provider_memory import provider_memory
from ernie_export.exporter.plan.devices import Device, Work
from ernie_export.exporter.plan.sizes import EVERY_TOKEN, Model
from ernie_export.exporter.plan.workload import Workload
from ernie_export.exporter.targets.options import TargetOptions
from ernie_export.exporter.targets.target import Target
from ernie_export.graphs.precision import Precision

# The field of `Device` with the rate of products in a type; quantized weights are converted to it first.
ARITHMETIC = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Rate:
    """The least work of prefill or decode, and the bounds on a device's time and speed.

    Attributes:
        flops: FLOP.
        bytes: Bytes read from and written to memory.
        seconds: Shortest time; None where the device's rates are not known.
        tokens_per_second: Highest speed; None likewise.
    """

    flops: float
    bytes: float
    seconds: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Estimate:
    """What one precision of a model takes; sizes in bytes.

    Attributes:
        precision: Its name.
        data_file: The file of weights.
        graph_files: The ONNX files.
        weights: The weights by part.
        kv_cache: Keys and values of all sequences.
        kv_per_token: Keys and values of one token.
        activations: Activations, estimated.
        engine_memory: What ONNX Runtime's CUDA provider takes besides, and the KV cache's spare slot; 0 where the
            bundle is not for it, or without a GPU.
        duplicate_weights: Weights that more than one compiled engine holds, but for one copy of each.
        device_memory: Weights, duplicates of them, KV cache, activations and engine memory.
        fits: Whether the device's memory holds them; None without a device.
        longest_context: Most tokens a sequence may have at this batch size and with these images, 0 if the device
            cannot hold any; None without a device.
        prefill: Work of every sequence's context, to the first token's logits.
        decode: Work of one step of all sequences.
    """

    precision: str
    data_file: int
    graph_files: int
    weights: dict[str, int]
    kv_cache: int
    kv_per_token: int
    activations: int
    engine_memory: int
    duplicate_weights: int
    device_memory: int
    fits: bool | None
    longest_context: int | None
    prefill: Rate
    decode: Rate


def estimate(
    model: Model,
    target: Target,
    precision: Precision,
    workload: Workload,
    device: Device | None,
    options: TargetOptions | None = None,
) -> Estimate:
    """Estimate one precision of a model.

    Args:
        model: The model in floating point, which counts parameters.
        target: Export target whose files are counted.
        precision: The precision.
        workload: The workload.
        device: Device that runs it; None for sizes and work alone.
        options: The target's own options; None for their defaults.
    """
    exported = Model.build(model.config, precision, target, options)
    on_cuda = device is not None and device.is_gpu and "cuda" in target.devices(precision)
    provider = provider_memory(exported.model.nbytes()) if on_cuda and not target.compiles_engines else 0
    converts = device is None or device.is_gpu
    cost = Cost(model, precision, exported.model.stored(), provider, exported.duplicate_weights, converts)
    return Estimate(
        precision=precision.name,
        data_file=exported.data_file,
        graph_files=exported.graph_files,
        weights=cost.stored,
        kv_cache=cost.kv_cache(workload),
        kv_per_token=cost.kv_per_token,
        activations=cost.activations(workload),
        engine_memory=cost.engine_memory(workload),
        duplicate_weights=cost.duplicate_weights,
        device_memory=cost.device_memory(workload),
        fits=None if device is None else cost.device_memory(workload) <= device.memory,
        longest_context=None if device is None else cost.longest_context(workload, device.memory),
        prefill=rate(cost.prefill(workload), workload.batch * workload.context, device),
        decode=rate([cost.decode(workload)], workload.batch, device, by_bandwidth=True),
    )


@dataclass(frozen=True)
class Cost:
    """Memory and work of one precision of a model.

    Attributes:
        model: The model in floating point, which counts parameters.
        precision: The precision.
        stored: Bytes of each part in this precision.
        provider: Bytes that ONNX Runtime's CUDA provider takes besides; 0 for other engines.
        duplicate_weights: Bytes of weights that are held more than once.
        converts_weights: Whether quantized weights become floating-point numbers before a product, as on GPUs.
    """

    model: Model
    precision: Precision
    stored: dict[str, int]
    provider: int = 0
    duplicate_weights: int = 0
    converts_weights: bool = True

    @property
    def kv_per_token(self) -> int:
        """Bytes of one token's keys and values in every layer."""
        text = self.model.config.text
        return 2 * text.num_layers * text.num_kv_heads * text.head_dim * self._itemsize

    def kv_cache(self, workload: Workload) -> int:
        """Return the bytes of all sequences' keys and values."""
        return workload.batch * workload.context * self.kv_per_token

    def activations(self, workload: Workload) -> int:
        """Estimate the bytes alive at once where prefill is widest: residual, its norm and the widest sublayer."""
        # Images of one size share a call, and are done before the decoder begins.
        return max([self._decoder_activations(workload), *self._vision_activations(workload)])

    def engine_memory(self, workload: Workload) -> int:
        """Return the bytes of the provider, and of the slot that its KV cache has to swap slots with."""
        return self.provider + self.kv_cache(workload) // workload.batch if self.provider else 0

    def device_memory(self, workload: Workload) -> int:
        """Return the bytes of weights, duplicates of them, KV cache, activations and engine memory."""
        needed = self.kv_cache(workload) + self.activations(workload) + self.engine_memory(workload)
        return sum(self.stored.values()) + self.duplicate_weights + needed

    def longest_context(self, workload: Workload, memory: int) -> int:
        """Return the most tokens of a sequence that `memory` bytes hold, at this batch size and with these images.

        0 if not even the images fit.
        """
        shortest = max(workload.vision_tokens, 1)
        low = shortest - 1
        high = self.model.config.text.max_positions
        while low < high:  # device_memory() grows with the context
            middle = (low + high + 1) // 2
            if self.device_memory(replace(workload, context=middle)) <= memory:
                low = middle
            else:
                high = middle - 1
        return low if low >= shortest else 0

    def prefill(self, workload: Workload) -> list[Work]:
        """Return the work of encoder, resampler and decoder over all sequences' contexts, to the first logits."""
        text = self.model.config.text
        active = self.model.active()
        by_vision = workload.vision_tokens
        by_text = workload.context - by_vision
        pairs = workload.context * (workload.context + 1) / 2
        causal = 4 * text.num_heads * text.head_dim * text.num_layers * pairs
        head = active["text with head"] - active["text"]
        linear = 2 * (active["text"] * by_text + active["vision"] * by_vision + head)
        read = self.kv_cache(workload) + self._common_bytes()
        for experts, tokens in (("text", by_text), ("vision", by_vision)):
            read += self._touched(tokens * workload.batch) * self.stored[f"{experts} experts"]
            read += self.stored["routers"] / 2 * (tokens > 0)
        decoder = self._work(workload.batch * (linear + causal), read)
        return [*self._vision_work(workload), decoder]

    def decode(self, workload: Workload) -> Work:
        """Return the work of one step of all sequences at the end of their context, which uses text experts alone."""
        text = self.model.config.text
        scores = 4 * text.num_heads * text.head_dim * text.num_layers * workload.context
        read = self._common_bytes() + self.stored["routers"] / 2 + self.kv_cache(workload)
        read += self._touched(workload.batch) * self.stored["text experts"]
        return self._work(workload.batch * (2 * self.model.active()["text with head"] + scores), read)

    @property
    def _itemsize(self) -> int:
        """Bytes of one element of activations."""
        return int(self.precision.dtype.numpy().itemsize)

    def _work(self, flops: float, nbytes: float) -> Work:
        return Work(flops, nbytes, self._arithmetic(self.precision.decoder))

    def _arithmetic(self, bits: int | None) -> str:
        """Return the field of `Device` with the rate of products with weights of `bits`; None for no quantization."""
        by_float_type = ARITHMETIC[self.precision.float_type]
        return by_float_type if bits is None or self.converts_weights else f"int{bits}"

    def _decoder_activations(self, workload: Workload) -> int:
        text = self.model.config.text
        projected = 2 * (text.num_heads + 2 * text.num_kv_heads) * text.head_dim  # before and after rotation
        widths = [projected]
        if "dense" in text.layer_types:
            widths.append(3 * text.intermediate_size)
        if "sparse" in text.layer_types:  # gate, up and their product, of the shared and of every chosen expert
            chosen = text.experts_per_token + text.num_shared_experts
            widths.append(chosen * 3 * max(text.moe_intermediate_size))
        hidden = workload.batch * workload.context * (2 * text.hidden_size + max(widths)) * self._itemsize
        logits = 4 * workload.batch * text.vocab_size
        return hidden + logits

    def _vision_activations(self, workload: Workload) -> list[int]:
        """Return the bytes of the encoder's call for each size of images."""
        vision = self.model.config.vision
        pixels = vision.in_channels * vision.patch_size**2
        width = 2 * vision.hidden_size + max(6 * vision.hidden_size, 3 * vision.intermediate_size)
        by_size = Counter(image.patches for image in workload.images)
        return [
            workload.batch * count * patches * (4 * pixels + width * self._itemsize)
            for patches, count in by_size.items()
        ]

    def _vision_work(self, workload: Workload) -> list[Work]:
        if not workload.images:
            return []
        vision = self.model.config.vision
        parameters = self.model.parameters()
        patches = [image.patches for image in workload.images]
        tokens = sum(image.tokens for image in workload.images)
        scores = 4 * vision.hidden_size * vision.depth * sum(n * n for n in patches)
        encoder = workload.batch * (2 * parameters["vision encoder"] * sum(patches) + scores)
        resampler = workload.batch * 2 * parameters["resampler"] * tokens
        return [
            Work(encoder, self.stored["vision encoder"], self._arithmetic(self.precision.vision)),
            Work(resampler, self.stored["resampler"], self._arithmetic(self.precision.vision)),
        ]

    def _touched(self, tokens: int) -> float:
        """Return the fraction of the experts that at least one of `tokens` tokens chooses, on average."""
        text = self.model.config.text
        unchosen: float = (1 - text.experts_per_token / text.num_experts) ** tokens
        return 1 - unchosen

    def _common_bytes(self) -> float:
        """Return the bytes that any token reads: all but experts, routers and an embedding that is no head."""
        head = self.stored["head"] or self.stored["embedding"]
        return math.fsum(self.stored[part] for part in EVERY_TOKEN) + head


def rate(work: list[Work], tokens: int, device: Device | None, *, by_bandwidth: bool = False) -> Rate:
    """Sum work that is done one after another, and bound its time on a device.

    Args:
        work: The work.
        tokens: Tokens that it handles.
        device: The device; None for no bound.
        by_bandwidth: Whether the bytes alone give a bound where the arithmetic's rate is not known.
    """
    seconds = None if device is None else device.seconds(work, by_bandwidth)
    return Rate(
        flops=math.fsum(part.flops for part in work),
        bytes=math.fsum(part.nbytes for part in work),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
    )
