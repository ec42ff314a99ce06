"""What building an engine takes with TensorRT alone: plugins, compatibility, a timing cache, the inspector."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ernie_export.exporter.targets.workers.files import write
from ernie_export.exporter.targets.workers.process import Message

HARDWARE = {"exact": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}


@dataclass(frozen=True)
class TensorRTOptions:
    """How to build an engine.

    Attributes:
        kernels: Path of the plugins' kernels.
        shared: Bytes of shared memory that a kernel may ask for.
        hardware_compatibility: As in `TensorRTInfo`.
        version_compatible: As in `TensorRTInfo`.
        workspace_gib: As in `TensorRTInfo`.
        timing_cache: Path of the timing cache, read if it is there, and written; empty for none.
    """

    kernels: str
    shared: int
    hardware_compatibility: str
    version_compatible: bool
    workspace_gib: int
    timing_cache: str


class TensorRTLibrary:
    """TensorRT as engine_build.Library describes it."""

    def __init__(self, options: TensorRTOptions) -> None:
        self.options = options
        # The builder's configuration only refers to its timing cache: it has to live until the engine is built.
        self.timing_cache: Any = None
        self.plugin_errors: list[str] = []

    @classmethod
    def from_request(cls, options: Message) -> "TensorRTLibrary":
        """Return the library with the options of a request; plugins are registered with it."""
        library = cls(TensorRTOptions(**options))
        register_plugins(library.options, library.plugin_errors.append)
        return library

    @cached_property
    def module(self) -> Any:
        """The library's Python module."""
        import tensorrt

        return tensorrt

    def network_flags(self) -> int:
        """Return the flags that keep precisions as the graph has them, and plugins' kernels in the engine."""
        flags = self.module.NetworkDefinitionCreationFlag
        return 1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)

    def configure(self, config: Any) -> None:
        """Set compatibility, workspace and timing cache."""
        trt = self.module
        options = self.options
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and tactics in the report; costs no time
        level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware_compatibility])
        config.hardware_compatibility_level = level
        if options.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if options.workspace_gib:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_gib * 2**30)
        if options.timing_cache:
            self.set_timing_cache(config, Path(options.timing_cache))

    def set_timing_cache(self, config: Any, path: Path) -> None:
        """Set the timing cache, read from a file that is of this GPU and version."""
        cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")  # the file was another GPU's, or another version's
            config.set_timing_cache(cache, ignore_mismatch=False)
        self.timing_cache = cache

    def inspect(self, log: Any, plan: Any) -> Message:
        """Write the timing cache for the next engine; return the inspector's report, or why there is none.

        Layers of fused attention have "mha" in their names, as far as is known: their number is reported.
        """
        trt = self.module
        write(Path(self.options.timing_cache), self.timing_cache.serialize())
        runtime = trt.Runtime(log)
        runtime.engine_host_code_allowed = self.options.version_compatible  # such an engine carries its own runtime
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return {"not_inspected": log.errors[-1] if log.errors else "the library does not read the engine"}
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        try:
            layers = json.loads(text)
        except ValueError as e:
            return {"not_inspected": f"the inspector's report is no JSON: {e}"}
        fused = [layer for layer in layers.get("Layers", ()) if "mha" in json.dumps(layer).lower()]
        return {"inspector": layers, "fused_attention": len(fused)}

    def failures(self) -> list[str]:
        """Return the errors of our plugins, which the library itself prints and no more."""
        return self.plugin_errors


def register_plugins(options: TensorRTOptions, on_error: Callable[[str], None]) -> None:
    """Register the plugins that there are kernels for, so that the parser finds them; `on_error` hears their errors."""
    from ernie_export.graphs.ops.kernels import Kernels
    from ernie_export.graphs.ops.plugins import all_plugins
    from ernie_export.graphs.ops.quick_plugin import register

    kernels = Kernels.read(Path(options.kernels)).within(options.shared)
    known = {kernel.plugin for kernel in kernels.compiled}
    for plugin in all_plugins():
        if plugin.name in known:
            register(plugin, kernels, on_error)
