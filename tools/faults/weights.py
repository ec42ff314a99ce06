"""Faults of the weights: of any tensor, at a random place of it, named by the checkpoint's tensor that lies there."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.verify.pieces import locate_pieces, stored_weights
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.weight_spec import Weight
from tests.paths import MINI
from tools.faults.fault import Fault, Planted

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8, "F8_E4M3": np.uint8}


@dataclass(frozen=True)
class Part:
    """One piece of a stored tensor.

    Attributes:
        weight: The tensor.
        begin: Values before the piece.
        count: Its values.
        sources: The checkpoint's names of what it is made of.
    """

    weight: Weight
    begin: int
    count: int
    sources: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """Return how a fault of the piece is named."""
        return "the weights are not the checkpoint's, first (" + "|".join(map(re.escape, self.sources)) + ")$"


def parts(bundle: Path) -> list[Part]:
    """Return the pieces of a bundle's tensors that the checkpoint has values for, scales left out."""
    source = Checkpoint.open(MINI)
    found = []
    for weight in stored_weights(Manifest.read(bundle), MINI):
        places = [place for place in locate_pieces(weight, source) if place[2]]
        if not places:
            continue
        bits = weight.quantization.bits if weight.quantization else 8 * np.dtype(weight.dtype).itemsize
        ends = [begin for _, begin, _ in places[1:]] + [weight.nbytes * 8 // bits]
        found += [Part(weight, begin, end - begin, names) for (_, begin, names), end in zip(places, ends, strict=True)]
    return found


def some(bundle: Path, rng: np.random.Generator, *kinds: str, quantized: bool | None = None) -> Part | None:
    """Return a piece of a tensor whose name contains one of `kinds`, or any; None if there is none."""
    fitting = [
        part
        for part in parts(bundle)
        if (not kinds or any(kind in part.weight.name for kind in kinds))
        and (quantized is None or quantized == (part.weight.quantization is not None))
    ]
    return fitting[int(rng.integers(len(fitting)))] if fitting else None


def stored(bundle: Path, name: str) -> Any:
    """Return a tensor's values in its shape, which are written to the file as they are changed."""
    entry = read_header(bundle / DATA_FILE)[name]
    return np.memmap(entry.file, DTYPES[entry.dtype], "r+", entry.offset, entry.shape)


def flipped_bit(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Flip one bit of a tensor that is stored as it was."""
    part = some(bundle, rng, quantized=False)
    assert part is not None
    values = stored(bundle, part.weight.name).reshape(-1)
    size = values.itemsize
    place = int(rng.integers(part.begin * size, (part.begin + part.count) * size))
    values.view(np.uint8)[place] ^= 1 << int(rng.integers(8))
    return Planted(part.weight.name, part.sentence)


def scaled_rows(*kinds: str) -> Any:
    """Return a fault: a piece of a tensor, an expert of experts, is scaled by 1 %."""

    def plant(bundle: Path, rng: np.random.Generator) -> Planted | None:
        part = some(bundle, rng, *kinds)
        assert part is not None
        how = part.weight.quantization
        name = part.weight.name if how is None else f"{part.weight.name}_scales"
        group = 1 if how is None else how.group
        values = stored(bundle, name).reshape(-1)
        values[part.begin // group : (part.begin + part.count) // group] *= values.dtype.type(1.01)
        return Planted(part.weight.name, part.sentence)

    return plant


def exchanged_experts(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Exchange two experts of one group of one layer, their scales with them."""
    part = some(bundle, rng, ".experts.text.", ".experts.vision.")
    assert part is not None
    experts = [other for other in parts(bundle) if other.weight.name == part.weight.name]
    first, second = sorted(rng.choice(len(experts), 2, replace=False))
    names = [part.weight.name] + ([f"{part.weight.name}_scales"] if part.weight.quantization else [])
    for name in names:
        values = stored(bundle, name)
        values[[first, second]] = values[[second, first]]
    return Planted(f"{part.weight.name} {first}, {second}", experts[first].sentence)


def exchanged_groups(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Exchange the routers of the text and the vision experts of one layer in the file."""
    part = some(bundle, rng, "mlp.gate.weight")
    assert part is not None
    text = part.weight.name.removesuffix("_1")
    first = stored(bundle, text)
    second = stored(bundle, f"{text}_1")
    first[:], second[:] = second.copy(), first.copy()
    return Planted(text, rf"the weights are not the checkpoint's, first {re.escape(text)}(_1)?$")


def transposed_router(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Store one router as (experts, hidden), not (hidden, experts)."""
    part = some(bundle, rng, "mlp.gate.weight")
    assert part is not None
    values = stored(bundle, part.weight.name)
    values[:] = values.T.reshape(values.shape)
    return Planted(part.weight.name, part.sentence)


def router_bias(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Add 1e-3 to one expert's routing bias."""
    part = some(bundle, rng, "e_score_correction_bias")
    assert part is not None
    values = stored(bundle, part.weight.name).reshape(-1)
    values[int(rng.integers(len(values)))] += np.float32(1e-3)
    return Planted(part.weight.name, part.sentence)


def scaled_group(factor: float) -> Any:
    """Return a fault: the scale of one group of a quantized tensor is multiplied."""

    def plant(bundle: Path, rng: np.random.Generator) -> Planted | None:
        part = some(bundle, rng, quantized=True)
        if part is None or part.weight.quantization is None:
            return None
        group = part.weight.quantization.group
        scales = stored(bundle, f"{part.weight.name}_scales").reshape(-1)
        within = scales[part.begin // group : (part.begin + part.count) // group]
        place = int(rng.choice(np.flatnonzero(within)))
        within[place] = scales.dtype.type(within[place] * factor)
        return Planted(f"{part.weight.name}, group {place}", part.sentence)

    return plant


def shifted_group(bundle: Path, rng: np.random.Generator) -> Planted | None:
    """Shift the integers of one group by one step, those at the end of their range excepted."""
    part = some(bundle, rng, quantized=True)
    if part is None or part.weight.quantization is None:
        return None
    how = part.weight.quantization
    values = stored(bundle, part.weight.name).reshape(-1)
    start = (part.begin + int(rng.integers(part.count // how.group)) * how.group) * how.bits // 8
    group = values[start : start + how.group * how.bits // 8]
    if how.bits == 4:
        low = group & 15
        high = group >> 4
        group[:] = np.where(low < 15, low + 1, low) | np.where(high < 15, high + 1, high) << 4
    else:
        group[:] = np.where(group < 255, group + 1, group)
    return Planted(f"{part.weight.name}, byte {start}", part.sentence)


WEIGHTS = (
    Fault("a flipped bit", "weights", flipped_bit),
    Fault("an expert scaled by 1 %", "weights", scaled_rows(".experts.text.", ".experts.vision.")),
    Fault("a norm's weights scaled by 1 %", "weights", scaled_rows("norm")),
    Fault("a permuted expert", "weights", exchanged_experts),
    Fault("exchanged expert groups", "weights", exchanged_groups),
    Fault("a transposed router", "weights", transposed_router),
    Fault("a router's bias", "weights", router_bias),
    Fault("a quantized group scaled by 2 %", "weights", scaled_group(1.02)),
    Fault("a quantized group scaled by -1", "weights", scaled_group(-1)),
    Fault("a quantized group shifted by a step", "weights", shifted_group),
)
