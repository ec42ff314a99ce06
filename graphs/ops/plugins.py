"""Every TensorRT plugin of a model: its stages with the sizes that the model gives them, and the version of all."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ernie_export.graphs.config import TextConfig
from ernie_export.graphs.ops.moe_dispatch.plugin import check, stages
from ernie_export.graphs.ops.mrope.plugin import stage as rope_stage
from ernie_export.graphs.ops.stage import Attributes, Shapes, Stage

BANKS = ("text", "vision")


@dataclass(frozen=True)
class Sizes:
    """What a model's kernels are compiled for. experts: of each bank, 0 where no layer is sparse. widths: of the text
    and of the vision bank's experts. heads: of q and of k.
    """

    hidden: int
    experts: int
    widths: tuple[int, int]
    k: int
    norm_min: float
    heads: tuple[int, int]
    head_dim: int

    @staticmethod
    def of(text: TextConfig, dtype: str) -> "Sizes":
        """A decoder's; UserError names what the kernels can't serve."""
        sparse = "sparse" in text.layer_types
        experts, widths = text.num_experts * sparse, text.moe_intermediate_size
        if sparse:
            check(dtype, text.hidden_size, (experts, experts), widths, text.experts_per_token)
        heads = text.num_heads, text.num_kv_heads
        return Sizes(text.hidden_size, experts, widths, text.experts_per_token, text.norm_min, heads, text.head_dim)


def cases(sizes: Sizes) -> Iterator[tuple[Stage, Shapes, Attributes]]:
    """Every stage with its shapes, -1 where a size varies, and its attributes, as TensorRT will tell them."""
    q, k = (heads * sizes.head_dim for heads in sizes.heads)
    pairs = (sizes.head_dim // 2,)
    rope = {"q": (-1, -1, q), "k": (-1, -1, k), "position_ids": (3, -1, -1), "inv_freq": pairs, "axes": pairs}
    yield rope_stage(), rope, {"num_heads": sizes.heads[0], "kv_num_heads": sizes.heads[1]}
    shapes = shapes_of(sizes)
    # A graph keeps a float in 32 bits, and that is what its plugin gets.
    values = {"k": sizes.k, "norm_min": float(np.float32(sizes.norm_min))}
    for vision in (False, True) if sizes.experts else ():
        for stage in stages(vision):
            attributes = {name: values[name] for name in stage.attributes}
            inputs = {name: shapes[name] for name in stage.inputs}
            yield stage, inputs, attributes
            shapes |= {o.name: tuple(max(size, -1) for size in o.shape) for o in stage.outputs(inputs, attributes)}


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of what enters both banks' chains of stages."""
    hidden, experts = sizes.hidden, sizes.experts
    shapes: dict[str, tuple[int, ...]] = {"x": (-1, hidden), "token_types": (-1,)}
    for bank, width in zip(BANKS, sizes.widths, strict=True):
        shapes |= {f"{bank}_gate": (hidden, experts), f"{bank}_bias": (experts,)}
        shapes |= {f"{bank}_gate_up": (experts, 2 * width, hidden), f"{bank}_down": (experts, hidden, width)}
    return shapes


def version() -> str:
    """Of the plugins' declarations and kernels: a digest of their sources, so that no change can be forgotten.

    A kernel that was compiled from some sources is launched by the shape functions and grids of the same.
    """
    here, digest = Path(__file__).parent, hashlib.sha256()
    rooms = (here.glob(f"*/{pattern}.py") for pattern in ("plugin", "kernel*", "function_tensorrt"))
    for path in sorted([here / "stage.py", here / "quick_plugin.py", *(path for room in rooms for path in room)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
