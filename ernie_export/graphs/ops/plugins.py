"""Every TensorRT plugin of a model: its plugins with the sizes that the model gives them, and the version of all."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ernie_export.graphs.config import TextConfig
from ernie_export.graphs.ops.kernel_plugin import Attributes, KernelPlugin, Shapes
from ernie_export.graphs.ops.moe_dispatch.plugin import check, kernel_plugins
from ernie_export.graphs.ops.mrope.plugin import kernel_plugin as rope_plugin
from ernie_export.graphs.ops.quantized_linear.plugin import check_storage
from ernie_export.graphs.ops.quantized_linear.plugin import kernel_plugin as linear_plugin
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

BANKS = ("text", "vision")


@dataclass(frozen=True)
class Stored:
    """How weights are stored: `storage` as STORAGES says, `bits` a value, `group` values that share a scale."""

    storage: str
    bits: int
    group: int

    @staticmethod
    def of(node: ir.Node, operator: str) -> "Stored":
        """The weights of a node of `operator`, whose prefix tells the storage."""
        attributes = node.attributes
        bits = attributes["bits"].as_int() if "bits" in attributes else 8
        return Stored(node.op_type.removesuffix(operator), bits, attributes["group"].as_int())

    def attributes(self) -> Attributes:
        """Those that an operator of this storage has."""
        return {name: getattr(self, name) for name in STORAGES[self.storage]}

    def words(self, values: int) -> int:
        """Words of 32 bits that hold so many codes."""
        return values * self.bits // 32


@dataclass(frozen=True)
class Linear:
    """A linear layer, `outputs` by `inputs`, whose weights are in codes."""

    inputs: int
    outputs: int
    stored: Stored


@dataclass(frozen=True)
class Sizes:
    """What a model's kernels are compiled for. experts: of each bank, 0 where no layer is sparse. widths: of the text
    and of the vision bank's experts. heads: of q and of k. stored: how experts are; None in the graphs' dtype. linears:
    what is multiplied by plugins, each once.
    """

    hidden: int
    experts: int
    widths: tuple[int, int]
    k: int
    norm_min: float
    heads: tuple[int, int]
    head_dim: int
    stored: Stored | None = None
    linears: tuple[Linear, ...] = ()

    @staticmethod
    def of(text: TextConfig, dtype: str, nodes: Iterable[ir.Node] = (), archs: Sequence[str] = ()) -> "Sizes":
        """A decoder's, of whose graphs `nodes` tell what is in codes; UserError names what kernels for `archs` can't
        serve.
        """
        sparse = "sparse" in text.layer_types
        experts, widths = text.num_experts * sparse, text.moe_intermediate_size
        stored, linears = None, dict[Linear, None]()
        for node in nodes:
            if node.op_type.endswith("Linear"):
                inputs, outputs = (node.attributes[name].as_int() for name in ("K", "N"))
                linears[Linear(inputs, outputs, Stored.of(node, "Linear"))] = None
            elif node.op_type.endswith("ExpertBank") and "group" in node.attributes:
                stored = Stored.of(node, "ExpertBank")
        for linear in linears:
            how, what = linear.stored, f"linear layer of {linear.outputs} x {linear.inputs}"
            check_storage(what, how.storage, how.group, (linear.inputs,), archs)
        if sparse:
            how_stored = (stored.storage, stored.group, archs) if stored else ()
            check(dtype, text.hidden_size, (experts, experts), widths, text.experts_per_token, *how_stored)
        heads, k = (text.num_heads, text.num_kv_heads), text.experts_per_token
        return Sizes(text.hidden_size, experts, widths, k, text.norm_min, heads, text.head_dim, stored, tuple(linears))

    @staticmethod
    def read(document: dict[str, Any]) -> "Sizes":
        """From what `dataclasses.asdict` made of one, through JSON."""
        linears = tuple(Linear(**fields | {"stored": Stored(**fields["stored"])}) for fields in document["linears"])
        stored = document["stored"] and Stored(**document["stored"])
        pairs = {name: tuple(document[name]) for name in ("widths", "heads")}
        return Sizes(**document | pairs | {"stored": stored, "linears": linears})


def kernel_specs(sizes: Sizes) -> Iterator[tuple[KernelPlugin, Shapes, Attributes]]:
    """Every plugin with its shapes, -1 where a size varies, and its attributes, as TensorRT will tell them."""
    q, k = (heads * sizes.head_dim for heads in sizes.heads)
    pairs = (sizes.head_dim // 2,)
    rope = {"q": (-1, -1, q), "k": (-1, -1, k), "position_ids": (3, -1, -1), "inv_freq": pairs, "axes": pairs}
    yield rope_plugin(), rope, {"num_heads": sizes.heads[0], "kv_num_heads": sizes.heads[1]}
    for linear in sizes.linears:
        how, groups = linear.stored, (linear.outputs, linear.inputs // linear.stored.group)
        inputs = {"x": (-1, linear.inputs), "codes": (*groups, how.words(how.group)), "scales": groups}
        yield linear_plugin(how.storage), inputs, {"K": linear.inputs, "N": linear.outputs, **how.attributes()}
    if not sizes.experts:
        return
    shapes, stored = shapes_of(sizes), sizes.stored
    # A graph keeps a float in 32 bits, and that is what its plugin gets.
    values: dict[str, Any] = {"k": sizes.k, "norm_min": float(np.float32(sizes.norm_min))}
    values |= stored.attributes() if stored else {}
    for vision in (False, True):
        for plugin in kernel_plugins(vision, stored.storage if stored else ""):
            attributes = {name: values[name] for name in plugin.attributes}
            inputs = {name: shapes[name] for name in plugin.inputs}
            yield plugin, inputs, attributes
            shapes |= {o.name: tuple(max(size, -1) for size in o.shape) for o in plugin.outputs(inputs, attributes)}


def all_plugins() -> tuple[KernelPlugin, ...]:
    """Every plugin that there is, each once."""
    chains = (kernel_plugins(vision, storage) for storage in STORAGES for vision in (False, True))
    linears = (linear_plugin(storage) for storage in STORAGES if storage)
    found = {plugin.name: plugin for plugin in (rope_plugin(), *linears, *(s for chain in chains for s in chain))}
    return tuple(found.values())


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Shapes of what enters both banks' chains of plugins."""
    hidden, experts = sizes.hidden, sizes.experts
    shapes: dict[str, tuple[int, ...]] = {"x": (-1, hidden), "token_types": (-1,)}
    for bank, width in zip(BANKS, sizes.widths, strict=True):
        shapes |= {f"{bank}_gate": (hidden, experts), f"{bank}_bias": (experts,)}
        for name, shape in (("gate_up", (experts, 2 * width, hidden)), ("down", (experts, hidden, width))):
            weight, (*rows, depth), how = f"{bank}_{name}", shape, sizes.stored
            shapes[weight] = (*rows, how.words(depth) if how else depth)
            if how:
                shapes[f"{weight}_scales"] = (*rows, depth // how.group)
    return shapes


def version() -> str:
    """Of the plugins' declarations and kernels: a digest of their sources, so that no change can be forgotten.

    A kernel that was compiled from some sources is launched by the shape functions and grids of the same.
    """
    here, digest = Path(__file__).parent, hashlib.sha256()
    rooms = (here.glob(f"*/{pattern}.py") for pattern in ("plugin", "kernel*", "function_tensorrt"))
    shared = [here / "kernel_plugin.py", here / "quick_plugin.py"]
    for path in sorted([*shared, *(path for room in rooms for path in room)]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
