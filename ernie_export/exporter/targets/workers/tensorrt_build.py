"""What building an engine takes with TensorRT beyond what engine_build.py does for TensorRT for RTX, too.

TensorRT's own API, without Polygraphy: one driver serves both libraries, and every call of it can be checked against
TensorRT's bindings.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.plugins import all_plugins

HARDWARE = {"exact": "NONE", "same-capability": "SAME_COMPUTE_CAPABILITY", "ampere-plus": "AMPERE_PLUS"}


@dataclass(frozen=True)
class Options:
    """How to build. kernels: path of those for the plugins. shared: bytes of shared memory that these may ask for.

    hardware, version_compatible, workspace: as in `EngineInfo`. timing_cache: path, read if it is there, and written.
    """

    kernels: str
    shared: int
    hardware: str
    version_compatible: bool
    workspace: int
    timing_cache: str


def register_plugins(options: Options) -> None:
    """Make the plugins known to the parser, for the kernels that there are."""
    from ernie_export.graphs.ops.quick_plugin import register

    kernels = Kernels.read(Path(options.kernels)).within(options.shared)
    known = {kernel.plugin for kernel in kernels.compiled}
    for plugin in all_plugins():
        if plugin.name in known:
            register(plugin, kernels)


def network_flags(flags: Any) -> int:
    """Of the network: precision as the graph has it, plugins with their kernels in the engine."""
    return 1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)


def configure(trt: Any, config: Any, options: Options) -> Any:
    """Set what the user asked for; returns the timing cache, which has to live until the engine is built."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # names and tactics in the report; costs no time
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware])
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace * 2**30)
    path = Path(options.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")  # that was another card's, or another version's
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def inspect(trt: Any, log: Any, plan: Any, options: Options) -> Any:
    """What TensorRT's inspector tells of the engine; None if TensorRT does not read what it has just written."""
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = options.version_compatible  # such an engine carries a runtime of its own
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return None
    return json.loads(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def keep_timing_cache(cache: Any, options: Options) -> None:
    """Write what was timed, so that building again, or the next engine, need not time it again."""
    write(Path(options.timing_cache), cache.serialize())


def write(path: Path, data: Any) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
