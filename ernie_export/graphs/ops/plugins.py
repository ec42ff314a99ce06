"""Every TensorRT plugin of a model with the sizes that its kernels are compiled for, and the version of them all."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ernie_export.graphs.ops.cached_attention.plugin import kernel_plugins as attention_plugins
from ernie_export.graphs.ops.kernel_plugin import Attributes, KernelPlugin, Shapes
from ernie_export.graphs.ops.moe_dispatch.plugin import kernel_plugins
from ernie_export.graphs.ops.moe_dispatch.support import check
from ernie_export.graphs.ops.mrope.plugin import kernel_plugin as rope_plugin
from ernie_export.graphs.ops.quantized_linear.plugin import check_storage
from ernie_export.graphs.ops.quantized_linear.plugin import kernel_plugin as linear_plugin
from ernie_export.graphs.ops.quantized_linear.spec import STORAGES

if TYPE_CHECKING:  # the workers that build engines import this module, and onnx_ir takes a second
    import onnx_ir as ir

GROUPS = ("text", "vision")


class DecoderConfig(Protocol):
    """The numbers of a decoder that decide the sizes of its kernels."""

    @property
    def hidden_size(self) -> int: ...

    @property
    def num_heads(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def layer_types(self) -> tuple[str, ...]: ...

    @property
    def num_experts(self) -> int: ...

    @property
    def moe_intermediate_size(self) -> tuple[int, int]: ...

    @property
    def experts_per_token(self) -> int: ...

    @property
    def norm_min(self) -> float: ...


@dataclass(frozen=True)
class Stored:
    """How weights are stored.

    Attributes:
        storage: The prefix of the operators that read them; see STORAGES.
        bits: Bits of a quantized weight.
        group: Weights that share a scale.
    """

    storage: str
    bits: int
    group: int

    @staticmethod
    def of(node: "ir.Node", operator: str) -> "Stored":
        """Read the storage of the weights of a node, whose type is `operator` with the storage as prefix."""
        attributes = node.attributes
        bits = attributes["bits"].as_int() if "bits" in attributes else 8
        return Stored(node.op_type.removesuffix(operator), bits, attributes["group"].as_int())

    def attributes(self) -> Attributes:
        """Return the attributes of an operator that reads this storage."""
        return {name: getattr(self, name) for name in STORAGES[self.storage]}

    def words(self, values: int) -> int:
        """Return how many words of 32 bits hold `values` quantized weights."""
        return values * self.bits // 32


@dataclass(frozen=True)
class Linear:
    """A linear layer, `outputs` by `inputs`, with quantized weights."""

    inputs: int
    outputs: int
    stored: Stored


@dataclass(frozen=True)
class Sizes:
    """The sizes that a model's kernels are compiled for.

    Attributes:
        hidden: The hidden size.
        experts: Experts of each group (text, vision); 0 if no layer is sparse.
        widths: The width of a text and of a vision expert.
        k: Experts a token.
        norm_min: The smallest divisor of the routing weights' normalisation.
        heads: Query heads, key-value heads.
        head_dim: The head size.
        stored: How the experts' weights are stored; None in the graphs' dtype.
        linears: The distinct quantized linear layers.
        capacity: Tokens of a row of the KV cache; 0 leaves a decode step's attention out.
        few: Whether a decode step's tokens are at most those that moe_dispatch/plugin_few.py is for.
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
    capacity: int = 0
    few: bool = False

    @staticmethod
    def of(
        text: DecoderConfig,
        dtype: str,
        nodes: "Iterable[ir.Node]" = (),
        archs: Sequence[str] = (),
        capacity: int = 0,
        few: bool = False,
    ) -> "Sizes":
        """Collect the sizes of a decoder.

        Args:
            text: The decoder's numbers.
            dtype: The graphs' dtype.
            nodes: The graphs' nodes, which say which weights are quantized.
            archs: Architectures that kernels are compiled for, e.g. "sm89".
            capacity: Tokens of a row of the KV cache.
            few: Whether a decode step has as few tokens as the attribute says.

        Raises:
            UserError: The kernels cannot serve the model on one of `archs`.
        """
        stored: Stored | None = None
        linears: dict[Linear, None] = {}  # an ordered set
        for node in nodes:
            if node.op_type.endswith("Linear"):
                inputs = node.attributes["K"].as_int()
                outputs = node.attributes["N"].as_int()
                linears[Linear(inputs, outputs, Stored.of(node, "Linear"))] = None
            elif node.op_type.endswith("ExpertGroup") and "group" in node.attributes:
                stored = Stored.of(node, "ExpertGroup")
        for linear in linears:
            name = f"linear layer of {linear.outputs} x {linear.inputs}"
            check_storage(name, linear.stored.storage, linear.stored.group, (linear.inputs,), archs)
        sizes = Sizes(
            hidden=text.hidden_size,
            experts=text.num_experts if "sparse" in text.layer_types else 0,
            widths=text.moe_intermediate_size,
            k=text.experts_per_token,
            norm_min=text.norm_min,
            heads=(text.num_heads, text.num_kv_heads),
            head_dim=text.head_dim,
            stored=stored,
            linears=tuple(linears),
            capacity=capacity,
            few=few,
        )
        if "sparse" in text.layer_types:
            check(
                dtype,
                sizes.hidden,
                experts=(sizes.experts, sizes.experts),
                widths=sizes.widths,
                k=sizes.k,
                storage=stored.storage if stored else "",
                group=stored.group if stored else None,
                archs=archs,
            )
        return sizes

    @staticmethod
    def read(document: dict[str, Any]) -> "Sizes":
        """Read what `dataclasses.asdict` made of one, through JSON."""
        linears = tuple(Linear(**fields | {"stored": Stored(**fields["stored"])}) for fields in document["linears"])
        stored = document["stored"] and Stored(**document["stored"])
        pairs = {name: tuple(document[name]) for name in ("widths", "heads")}
        return Sizes(**document | pairs | {"stored": stored, "linears": linears})


def kernel_specs(sizes: Sizes) -> Iterator[tuple[KernelPlugin, Shapes, Attributes]]:
    """Yield every plugin with its inputs' shapes, -1 where a size varies, and attributes, as TensorRT passes them."""
    q, k = (heads * sizes.head_dim for heads in sizes.heads)
    pairs = (sizes.head_dim // 2,)
    rope = {"q": (-1, -1, q), "k": (-1, -1, k), "position_ids": (3, -1, -1), "inv_freq": pairs, "axes": pairs}
    yield rope_plugin(), rope, {"num_heads": sizes.heads[0], "kv_num_heads": sizes.heads[1]}
    if sizes.capacity:
        yield from attention_specs(sizes)
    for linear in sizes.linears:
        stored_as = linear.stored
        groups = (linear.outputs, linear.inputs // stored_as.group)
        inputs = {"x": (-1, linear.inputs), "qweight": (*groups, stored_as.words(stored_as.group)), "scales": groups}
        yield (
            linear_plugin(stored_as.storage),
            inputs,
            {"K": linear.inputs, "N": linear.outputs, **stored_as.attributes()},
        )
    if not sizes.experts:
        return
    shapes = shapes_of(sizes)
    stored = sizes.stored
    # A graph keeps a float in 32 bits, and that is what its plugin gets.
    values: dict[str, Any] = {"k": sizes.k, "norm_min": float(np.float32(sizes.norm_min))}
    values |= stored.attributes() if stored else {}
    for vision in (False, True):
        for plugin in kernel_plugins(vision, stored.storage if stored else "", sizes.few):
            attributes = {name: values[name] for name in plugin.attributes}
            inputs = {name: shapes[name] for name in plugin.inputs}
            yield plugin, inputs, attributes
            shapes |= {o.name: tuple(max(size, -1) for size in o.shape) for o in plugin.outputs(inputs, attributes)}


def attention_specs(sizes: Sizes) -> Iterator[tuple[KernelPlugin, Shapes, Attributes]]:
    """Yield the plugins of a decode step's attention as `kernel_specs` does."""
    heads, kv_heads = sizes.heads
    cache = (-1, kv_heads, sizes.capacity, sizes.head_dim)
    shapes: dict[str, tuple[int, ...]] = {"q": (-1, 1, heads * sizes.head_dim), "past_lengths": (-1,)}
    shapes |= {"present_key": cache, "present_value": cache}
    for plugin in attention_plugins():
        inputs = {name: shapes[name] for name in plugin.inputs}
        attributes = dict.fromkeys(plugin.attributes, heads)
        yield plugin, inputs, attributes
        shapes |= {output.name: output.shape for output in plugin.outputs(inputs, attributes)}


def all_plugins() -> tuple[KernelPlugin, ...]:
    """Return every plugin that there is, each once."""
    ways = ((False, False), (False, True), (True, False))  # of vision experts, of few tokens
    chains = (kernel_plugins(vision, storage, few) for storage in STORAGES for vision, few in ways)
    linears = (linear_plugin(storage) for storage in STORAGES if storage)
    by_name = {
        plugin.name: plugin
        for plugin in (rope_plugin(), *attention_plugins(), *linears, *(p for chain in chains for p in chain))
    }
    return tuple(by_name.values())


def shapes_of(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs to both chains of expert plugins."""
    shapes: dict[str, tuple[int, ...]] = {"x": (-1, sizes.hidden), "token_types": (-1,)}
    for group, width in zip(GROUPS, sizes.widths, strict=True):
        shapes[f"{group}_gate"] = (sizes.hidden, sizes.experts)
        shapes[f"{group}_bias"] = (sizes.experts,)
        for name, rows, columns in (("gate_up", 2 * width, sizes.hidden), ("down", sizes.hidden, width)):
            weight = f"{group}_{name}"
            if sizes.stored is None:
                shapes[weight] = (sizes.experts, rows, columns)
            else:
                shapes[weight] = (sizes.experts, rows, sizes.stored.words(columns))
                shapes[f"{weight}_scales"] = (sizes.experts, rows, columns // sizes.stored.group)
    return shapes


def version(folder: Path = Path(__file__).parent) -> str:
    """Return a digest of the sources of the plugins' declarations and kernels, so that no change can be forgotten.

    A kernel that was compiled from some sources is launched by the shape functions and grids of the same.
    """
    paths = [folder / "kernel_plugin.py", folder / "quick_plugin.py"]
    for pattern in ("plugin*", "kernel*", "function_tensorrt"):
        paths += folder.glob(f"*/{pattern}.py")
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
