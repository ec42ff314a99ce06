"""What a workload takes of a device: memory, what fits, and roofline rates of prefill and decode.

Exact: the KV cache, FLOP of the matrix products, bytes of weights. Estimated: activations (fused attention, which holds
no scores). Rates are upper bounds: no kernel, launch or host time, everything read once, intermediate results never
leave the chip, and each token's experts chosen evenly and apart from other tokens'.
"""

import math
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from ernie_export.exporter.plan.devices import Device
from ernie_export.exporter.plan.sizes import EVERY_TOKEN, Model
from ernie_export.exporter.plan.workload import Workload
from ernie_export.graphs.precision import Precision

Stage = tuple[float, float, str]  # FLOP, bytes, and the arithmetic that they run in
# The field of `Device` with the rate of products in a dtype: weights in codes are widened to it first.
ARITHMETIC = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}


@dataclass(frozen=True)
class Rate:
    """Least work of one phase, in FLOP and bytes moved; bounds in seconds and tokens/s where the device's are known."""

    flops: float
    bytes: float
    seconds: float | None
    tokens_per_second: float | None


@dataclass(frozen=True)
class Estimate:
    """One precision; sizes in bytes. What needs a device is None without one."""

    precision: str
    data_file: int
    graph_files: int
    weights: dict[str, int]
    kv_cache: int
    kv_per_token: int
    activations: int
    device_memory: int
    fits: bool | None
    longest_context: int | None  # tokens a row, at this batch and with these pictures; 0: none
    prefill: Rate
    decode: Rate


def estimate(model: Model, target: str, precision: Precision, workload: Workload, device: Device | None) -> Estimate:
    """One precision of `model`, which counts parameters and is in none."""
    exported = Model.build(model.config, precision, target)
    stored = exported.model.stored()

    def total(context: int) -> int:
        changed = Workload(context, workload.batch, workload.images)
        return sum(stored.values()) + kv_cache(model, precision, changed) + activations(model, precision, changed)

    fits, longest = None, None
    if device is not None:
        fits = total(workload.context) <= device.memory
        low, high = max(workload.vision_tokens, 1) - 1, model.config.text.max_positions
        while low < high:  # total() grows with the context
            middle = (low + high + 1) // 2
            low, high = (middle, high) if total(middle) <= device.memory else (low, middle - 1)
        longest = low if low >= max(workload.vision_tokens, 1) else 0
    return Estimate(
        precision=precision.name,
        data_file=exported.data_file,
        graph_files=exported.graph_files,
        weights=stored,
        kv_cache=kv_cache(model, precision, workload),
        kv_per_token=kv_per_token(model, precision),
        activations=activations(model, precision, workload),
        device_memory=total(workload.context),
        fits=fits,
        longest_context=longest,
        prefill=rate(prefill(model, precision, stored, workload), workload.batch * workload.context, device, False),
        decode=rate([decode(model, precision, stored, workload)], workload.batch, device, True),
    )


def kv_per_token(model: Model, precision: Precision) -> int:
    """Bytes of one token's keys and values in every layer."""
    text = model.config.text
    return 2 * text.num_layers * text.num_kv_heads * text.head_dim * precision.dtype.numpy().itemsize


def kv_cache(model: Model, precision: Precision, workload: Workload) -> int:
    """Bytes of all rows' keys and values."""
    return workload.batch * workload.context * kv_per_token(model, precision)


def activations(model: Model, precision: Precision, workload: Workload) -> int:
    """Bytes alive at once at the widest place of prefill: residual, its norm and the widest sublayer; an estimate."""
    text, vision = model.config.text, model.config.vision
    projected = 2 * (text.num_heads + 2 * text.num_kv_heads) * text.head_dim  # before and after rotation
    widths = [projected] + [3 * text.intermediate_size] * ("dense" in text.layer_types)
    if "sparse" in text.layer_types:  # gate, up and their product, of the shared and of every chosen expert
        chosen = text.experts_per_token + text.num_shared_experts
        widths.append(chosen * 3 * max(text.moe_intermediate_size))
    rows = workload.batch * workload.context
    decoder = (
        rows * (2 * text.hidden_size + max(widths)) * precision.dtype.numpy().itemsize
        + 4 * workload.batch * text.vocab_size
    )
    pixels = vision.in_channels * vision.patch_size**2
    wide = 2 * vision.hidden_size + max(6 * vision.hidden_size, 3 * vision.intermediate_size)
    by_size = Counter(image.patches for image in workload.images)
    calls = [
        workload.batch * n * patches * (4 * pixels + wide * precision.dtype.numpy().itemsize)
        for patches, n in by_size.items()
    ]
    return max([decoder, *calls])  # pictures of one size share a call, and are done before the decoder begins


def touched(model: Model, tokens: int) -> float:
    """Share of a bank's experts that at least one of so many tokens chooses, on average."""
    text = model.config.text
    return 1 - (1 - text.experts_per_token / text.num_experts) ** tokens


def prefill(model: Model, precision: Precision, stored: dict[str, int], workload: Workload) -> list[Stage]:
    """Encoder, resampler and decoder over every row's whole context, to the first token's logits."""
    text, vision, count, active = model.config.text, model.config.vision, model.parameters(), model.active()
    patches = [image.patches for image in workload.images]
    tokens = sum(image.tokens for image in workload.images)
    stages: list[Stage] = []
    if patches:
        scores = 4 * vision.hidden_size * vision.depth * sum(p * p for p in patches)
        flops = workload.batch * (2 * count["vision encoder"] * sum(patches) + scores)
        stages.append((flops, stored["vision encoder"], ARITHMETIC[precision.dtype]))
        flops = workload.batch * 2 * count["resampler"] * tokens
        stages.append((flops, stored["resampler"], ARITHMETIC[precision.dtype]))
    by_vision = workload.vision_tokens
    by_text = workload.context - by_vision
    pairs = workload.context * (workload.context + 1) / 2
    causal = 4 * text.num_heads * text.head_dim * text.num_layers * pairs
    head = active["text with head"] - active["text"]
    linear = 2 * (active["text"] * by_text + active["vision"] * by_vision + head)
    read = kv_cache(model, precision, workload) + common_bytes(model, stored)
    for bank, rows in (("text", by_text), ("vision", by_vision)):
        read += touched(model, rows * workload.batch) * stored[f"{bank} experts"]
        read += stored["routers"] / 2 * (rows > 0)
    return [*stages, (workload.batch * (linear + causal), read, ARITHMETIC[precision.dtype])]


def decode(model: Model, precision: Precision, stored: dict[str, int], workload: Workload) -> Stage:
    """One step of all rows at the end of their context: text experts alone."""
    text = model.config.text
    scores = 4 * text.num_heads * text.head_dim * text.num_layers * workload.context
    read = common_bytes(model, stored) + stored["routers"] / 2 + kv_cache(model, precision, workload)
    read += touched(model, workload.batch) * stored["text experts"]
    return workload.batch * (2 * model.active()["text with head"] + scores), read, ARITHMETIC[precision.dtype]


def common_bytes(model: Model, stored: dict[str, int]) -> float:
    """Bytes of weights that any token reads: all but experts, routers and an embedding that is not the head."""
    return math.fsum(stored[part] for part in EVERY_TOKEN) + (stored["head"] or stored["embedding"])


def rate(stages: list[Stage], tokens: int, device: Device | None, by_bandwidth: bool) -> Rate:
    """The stages' sum and its bound on `device`; with `by_bandwidth`, unknown arithmetic leaves the bytes' bound."""
    seconds = device.seconds(stages, by_bandwidth) if device is not None else None
    return Rate(
        flops=math.fsum(flops for flops, _, _ in stages),
        bytes=math.fsum(nbytes for _, nbytes, _ in stages),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds else None,
    )
