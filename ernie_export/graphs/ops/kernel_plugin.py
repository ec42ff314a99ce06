"""A kernel plugin: one Triton kernel as one TensorRT plugin, described once to launch, compile and register it.

A quick plugin holds one kernel per tactic, whose arguments are inputs, scalars, outputs in this order, and scalars
are int32 expressions of shapes. One size varies between runs, and kernels that need it take it as the scalar `T`; all
others are compiled in, so that addresses are known to be aligned. Kernel inputs that a plugin lacks are None at compile
time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ernie_export.graphs.ops.spec import DOMAIN

Size = Any  # int, or tensorrt.plugin.ShapeExpr, which adds, multiplies and floor-divides alike
Shapes = Mapping[str, Sequence[Size]]
Attributes = Mapping[str, Any]
Constants = dict[str, Any]

FLOATS = ("bfloat16", "float16")
GRAPH_DTYPE = "graph"  # stands for the graph's own dtype


@dataclass(frozen=True)
class Output:
    """Name, shape and dtype of an output."""

    name: str
    shape: tuple[Size, ...]
    dtype: str


@dataclass(frozen=True)
class Tactic:
    """One way to run a kernel: its block sizes, warps a program, and loads in flight. All give the same answer."""

    blocks: Constants
    num_warps: int
    num_stages: int = 1


def gemm(m: int, n: int, k: int, swap: bool, warps: int, stages: int) -> Tactic:
    """A matrix product in blocks of m rows, n outputs and depth k; `swap` puts the weight rows first."""
    return Tactic({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "SWAP": swap}, warps, stages)


@dataclass(frozen=True)
class KernelPlugin:
    """One plugin. Its kernel's parameters are inputs, perhaps T, outputs, constants: by these names, in this order."""

    name: str
    inputs: Mapping[str, str]  # name -> dtype
    attributes: Mapping[str, type]
    kernel: Callable[[], Any]  # imports Triton; returns its function
    outputs: Callable[[Shapes, Attributes], tuple[Output, ...]]
    size: Callable[[Shapes, Attributes], Size]  # the one that varies
    constants: Callable[[Shapes, Attributes], Constants]
    grid: Callable[[Size, Constants], tuple[Size, ...]]  # of that size and all constants, blocks too
    tactics: tuple[Tactic, ...]

    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order: they do not depend on sizes."""
        some = {name: (1,) * 3 for name in self.inputs}
        return tuple(o.name for o in self.outputs(some, {name: kind(1) for name, kind in self.attributes.items()}))

    def call(self) -> str:
        """The plugin as a line of ONNX text, in a function with the same attributes; values by the plugin's names."""
        attributes = ", ".join(f"{name}: {kind.__name__} = @{name}" for name, kind in self.attributes.items())
        attributes = f" <{attributes}>" if attributes else ""
        return f"{', '.join(self.output_names())} = {DOMAIN}.{self.name}{attributes} ({', '.join(self.inputs)})"

    def given_constants(self, shapes: Shapes, attributes: Attributes, tactic: Tactic) -> Constants:
        """Compile-time parameters that have a value; shapes of sizes that the kernel is compiled for must be ints."""
        return {**self.constants(shapes, attributes), **tactic.blocks}

    def all_constants(self, shapes: Shapes, attributes: Attributes, tactic: Tactic) -> Constants:
        """`given_constants`, and None for every kernel input that the plugin lacks."""
        constants = self.given_constants(shapes, attributes, tactic)
        given = {*self.inputs, "T", *self.output_names(), *constants}
        return constants | {name: None for name in self.kernel().arg_names if name not in given | {"UPCAST"}}


def launch(
    plugin: KernelPlugin,
    inputs: Mapping[str, Any],
    attributes: Attributes,
    tactic: Tactic,
    empty: Callable[[tuple[int, ...], str], Any],
) -> list[Any]:
    """Run a plugin on PyTorch tensors, on a GPU or in Triton's interpreter; returns its outputs.

    `empty(shape, dtype)` makes an output, dtype by its name in PyTorch.
    """
    from triton import knobs

    shapes = {name: tuple(inputs[name].shape) for name in plugin.inputs}
    constants = plugin.all_constants(shapes, attributes, tactic)
    graph_inputs = [inputs[name] for name, dtype in plugin.inputs.items() if dtype == GRAPH_DTYPE]
    outputs = {}
    for output in plugin.outputs(shapes, attributes):
        dtype = str(graph_inputs[0].dtype).removeprefix("torch.") if output.dtype == GRAPH_DTYPE else output.dtype
        outputs[output.name] = empty(output.shape, dtype)
    kernel, size = plugin.kernel(), plugin.size(shapes, attributes)
    scalars = {"T": size} if "T" in kernel.arg_names else {}
    if "UPCAST" in kernel.arg_names:
        constants["UPCAST"] = knobs.runtime.interpret
    kernel[plugin.grid(size, constants)](
        **{name: inputs[name] for name in plugin.inputs},
        **scalars,
        **outputs,
        **constants,
        num_warps=tactic.num_warps,
        num_stages=tactic.num_stages,
    )
    return list(outputs.values())


def ceil_div(size: Size, block: int) -> Size:
    """Blocks that hold `size`."""
    return (size + (block - 1)) // block


def minimum(size: Size, limit: int) -> Size:
    """The lesser of a size and an int."""
    if isinstance(size, int):
        return min(size, limit)
    import tensorrt.plugin as trtp

    return trtp.min(size, limit)


def maximum(size: Size, other: Size) -> Size:
    """The greater of two sizes of one kind."""
    if isinstance(size, int):
        return max(size, other)
    import tensorrt.plugin as trtp

    return trtp.max(size, other)


def power_of_two(size: int) -> int:
    """The least power of two that holds `size`: a Triton block."""
    return 1 << max(size - 1, 0).bit_length()
