"""The kernels that a bundle carries for one architecture, from where TensorRT's plugins take them."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ernie_export.graphs.ops.kernel_plugin import Attributes, KernelPlugin, Shapes
from ernie_export.graphs.ops.ptx import CompiledKernel


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels of every plugin for graphs of `dtype`; some of a plugin's tactics may have none."""

    dtype: str
    compiled: tuple[CompiledKernel, ...]

    def of(self, plugin: KernelPlugin, shapes: Shapes, attributes: Attributes) -> dict[int, CompiledKernel]:
        """Return the kernels that TensorRT may choose from for inputs of these shapes, by tactic.

        Raises ValueError if none was compiled.
        """
        kernels = {}
        for number in plugin.compiled_tactics:
            constants = plugin.given_constants(shapes, attributes, plugin.tactics[number - 1])
            for kernel in self.compiled:
                if (kernel.plugin, kernel.tactic, kernel.constants) == (plugin.name, number, constants):
                    kernels[number] = kernel
            if plugin.offered and kernels:
                break
        if not kernels:
            compiled = [kernel.constants for kernel in self.compiled if kernel.plugin == plugin.name]
            raise ValueError(f"{plugin.name}: expected a kernel for {constants}, found kernels for {compiled}")
        return kernels

    def within(self, shared: int) -> "Kernels":
        """Return the kernels that need at most `shared` bytes of shared memory."""
        return replace(self, compiled=tuple(kernel for kernel in self.compiled if kernel.shared <= shared))

    def write(self, path: Path) -> None:
        """Write the kernels as JSON."""
        document = {"dtype": self.dtype, "kernels": [asdict(kernel) for kernel in self.compiled]}
        path.write_text(json.dumps(document, indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> "Kernels":
        """Read what `write` wrote."""
        document = json.loads(path.read_bytes())
        return Kernels(document["dtype"], tuple(CompiledKernel(**kernel) for kernel in document["kernels"]))
