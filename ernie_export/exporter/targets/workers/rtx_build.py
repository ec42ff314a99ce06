"""What building an engine takes with TensorRT for RTX alone.

It needs no GPU: the library compiles kernels on the GPU that loads the engine. Its timing cache does nothing (its
documentation says so), and its inspector needs a driver.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ernie_export.exporter.targets.workers.process import Message


@dataclass(frozen=True)
class RtxOptions:
    """How to build. `capabilities`: names of the library's ComputeCapability; one engine serves all of them."""

    capabilities: tuple[str, ...]


class RtxLibrary:
    """TensorRT for RTX as engine_build.Library describes it."""

    def __init__(self, options: RtxOptions) -> None:
        self.options = options

    @classmethod
    def from_request(cls, options: Message) -> "RtxLibrary":
        """Return the library with the options of a request."""
        return cls(RtxOptions(tuple(options["capabilities"])))

    @cached_property
    def module(self) -> Any:
        """The library's Python module."""
        import tensorrt_rtx_bindings

        return tensorrt_rtx_bindings

    def network_flags(self) -> int:
        """Return the flag that keeps every precision as the graph has it."""
        return 1 << int(self.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def configure(self, config: Any) -> None:
        """Set the compute capabilities."""
        config.num_compute_capabilities = len(self.options.capabilities)
        for index, name in enumerate(self.options.capabilities):
            config.set_compute_capability(getattr(self.module.ComputeCapability, name), index)

    def inspect(self, log: Any, plan: Any) -> Message:
        """Return nothing further: only a driver could inspect the engine."""
        return {}

    def failures(self) -> list[str]:
        """Return none: the library calls no code of ours that could fail."""
        return []
