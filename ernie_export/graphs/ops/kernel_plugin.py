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
    """Return a matrix product's tactic: blocks of m rows, n outputs and depth k; `swap` puts weight rows first."""
    return Tactic({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "SWAP": swap}, warps, stages)


@dataclass(frozen=True)
class KernelPlugin:
    """One plugin. Its kernel's parameters are inputs, perhaps T, outputs, constants: by these names, in this order.

    Attributes:
        name: The operator's name in the domain `ernie`.
        inputs: Each input's dtype; GRAPH_DTYPE stands for the graphs' own.
        attributes: Each attribute's type.
        kernel: Imports Triton and returns the kernel.
        outputs: Declares the outputs for given inputs.
        size: Returns the one size that varies between runs.
        constants: Returns the kernel's compile-time parameters, but for a tactic's blocks.
        grid: Returns the launch grid for that size and all constants, blocks too.
        tactics: The ways to run the kernel.
        offered: Numbers of tactics (from 1), the first of which that an architecture has a kernel for is the only one
            that TensorRT is offered; empty to let it time all of them.
    """

    name: str
    inputs: Mapping[str, str]
    attributes: Mapping[str, type]
    kernel: Callable[[], Any]
    outputs: Callable[[Shapes, Attributes], tuple[Output, ...]]
    size: Callable[[Shapes, Attributes], Size]
    constants: Callable[[Shapes, Attributes], Constants]
    grid: Callable[[Size, Constants], tuple[Size, ...]]
    tactics: tuple[Tactic, ...]
    offered: tuple[int, ...] = ()

    @property
    def compiled_tactics(self) -> tuple[int, ...]:
        """The numbers of the tactics that engines may use, the preferred ones first."""
        return self.offered or tuple(range(1, len(self.tactics) + 1))

    def output_names(self) -> tuple[str, ...]:
        """Return the names of the outputs, in order; they do not depend on sizes."""
        shapes = {name: (1,) * 3 for name in self.inputs}
        attributes = {name: kind(1) for name, kind in self.attributes.items()}
        return tuple(output.name for output in self.outputs(shapes, attributes))

    def call(self) -> str:
        """Write the plugin's call as a line of ONNX text, in a function with the same attributes and value names."""
        attributes = ", ".join(f"{name}: {kind.__name__} = @{name}" for name, kind in self.attributes.items())
        attributes = f" <{attributes}>" if attributes else ""
        return f"{', '.join(self.output_names())} = {DOMAIN}.{self.name}{attributes} ({', '.join(self.inputs)})"

    def given_constants(self, shapes: Shapes, attributes: Attributes, tactic: Tactic) -> Constants:
        """Return the compile-time parameters that have a value; sizes that the kernel is compiled for must be ints."""
        return {**self.constants(shapes, attributes), **tactic.blocks}

    def all_constants(self, shapes: Shapes, attributes: Attributes, tactic: Tactic) -> Constants:
        """Return `given_constants`, and None for every kernel input that the plugin lacks."""
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
    """Run a plugin on PyTorch tensors, on a GPU or in Triton's interpreter.

    Args:
        plugin: The plugin.
        inputs: Tensors by name, among them the plugin's inputs.
        attributes: The plugin's attributes.
        tactic: One of the plugin's tactics.
        empty: Allocates an output of a shape and a dtype, named as in PyTorch.

    Returns:
        The outputs, in order.
    """
    from triton import knobs

    shapes = {name: tuple(inputs[name].shape) for name in plugin.inputs}
    constants = plugin.all_constants(shapes, attributes, tactic)
    graph_inputs = [inputs[name] for name, dtype in plugin.inputs.items() if dtype == GRAPH_DTYPE]
    outputs = {}
    for output in plugin.outputs(shapes, attributes):
        dtype = str(graph_inputs[0].dtype).removeprefix("torch.") if output.dtype == GRAPH_DTYPE else output.dtype
        outputs[output.name] = empty(output.shape, dtype)
    kernel = plugin.kernel()
    size = plugin.size(shapes, attributes)
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
    """Return the number of blocks that hold `size`."""
    return (size + (block - 1)) // block


def minimum(size: Size, limit: int) -> Size:
    """Return the lesser of a size and an int."""
    if isinstance(size, int):
        return min(size, limit)
    import tensorrt.plugin as trtp

    return trtp.min(size, limit)


def maximum(size: Size, other: Size) -> Size:
    """Return the greater of two sizes of one kind."""
    if isinstance(size, int):
        return max(size, other)
    import tensorrt.plugin as trtp

    return trtp.max(size, other)


def by_size(size: Size, limit: int, upto: Size, above: Size) -> Size:
    """Return `upto` for a size of 1 to `limit`, and `above` for a greater one; both are ints, or `above` is a size."""
    return minimum(size // (limit + 1), 1) * (above - upto) + upto


def power_of_two(size: int) -> int:
    """Return the smallest power of two that is at least `size`, a Triton block."""
    return 1 << max(size - 1, 0).bit_length()
