"""TensorRT and TensorRT for RTX: what must be there before a bundle is loaded, and where the two libraries differ.

| | TensorRT | TensorRT for RTX |
| --- | --- | --- |
| does an engine run here? | the GPU is compared with the manifest | the library is asked |
| decode steps as CUDA graphs | captured from the stream, one for each number of sequences | made by the library |
| working memory | one block that all contexts share, one at a time | the contexts' own |

A captured graph holds the state of its context, which must not change any more: each has a context of its own.
"""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidFile, Unavailable
from ernie_export.common.manifest import Manifest
from ernie_export.common.manifest_sections import EngineInfo, TensorRTInfo
from ernie_export.runtime.engines.device.find_gpu import INSTALLED, Installation, find_cuda
from ernie_export.runtime.engines.device.memory import CudaMemory

MIN_COMPUTE_CAPABILITY = (8, 0)


def open_tensorrt(
    bundle: Path,
    manifest: Manifest,
    installation: Installation = INSTALLED,
    import_library: Callable[[], Any] | None = None,
) -> "TensorRT":
    """Open the library and the first GPU for a bundle of compiled engines. No engine is loaded yet.

    Args:
        bundle: Folder of the bundle.
        manifest: Its manifest.
        installation: Where the driver and CUDA's libraries are looked for.
        import_library: Imports the library; by default the one that the manifest names.

    Raises:
        Unavailable: If the engines are not built yet, the library is missing or not one that runs them, there is no
            driver or GPU, it is not one that they were built for, or it has too little free memory.
    """
    info = manifest.engines
    if info is None or manifest.needs_engine_build:
        hint = f"on the machine with the GPU: ernie-export --resume {bundle}"
        raise Unavailable(f"{bundle}: expected engines, found a bundle that waits for them ({hint})")
    library_class = LIBRARIES.get(info.library)
    if library_class is None:
        expected = f"engines of {' or '.join(LIBRARIES)}"
        raise Unavailable(f"{bundle}: expected {expected}, found some of {info.library}")
    try:
        module = (import_library or library_class.import_library)()
    except ImportError as e:
        extra = f"pip install .[{manifest.target}]"
        raise Unavailable(f"{bundle}: expected {info.library} ({extra}), found none") from e
    if not runs(info, module.__version__):
        expected = f"{info.library} {info.version}, which built its engines"
        hint = "export again, or install that"
        raise Unavailable(f"{bundle}: expected {expected}, found {module.__version__} ({hint})")
    reason = f"{bundle}: target {manifest.target}"
    memory = CudaMemory(find_cuda(reason, manifest.target, installation=installation))
    if info.tensorrt is not None:
        check_gpu(bundle, info, info.tensorrt, memory)
    memory.check_fits(bundle, manifest)
    return library_class(module, info, memory)


def runs(info: EngineInfo, version: str) -> bool:
    """Return whether the library of this version runs the engines."""
    built = _version_numbers(info.version)
    installed = _version_numbers(version)
    if built == installed:
        return True
    return info.version_compatible and built[:1] == installed[:1] and built <= installed


def _version_numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def check_gpu(bundle: Path, info: EngineInfo, built: TensorRTInfo, memory: CudaMemory) -> None:
    """Raise Unavailable if the engines were built for other GPUs than this one.

    Args:
        bundle: Folder of the bundle.
        info: Its engines.
        built: What only TensorRT's engines have.
        memory: This GPU's.
    """
    name = memory.gpu_name()
    capability = memory.compute_capability()
    expected = f"a GPU of compute capability {' or '.join(info.compute_capabilities)}"
    if built.hardware_compatibility == "ampere-plus":
        expected = "a GPU of compute capability 8.0 or higher"
        fits = tuple(int(part) for part in capability.split(".")) >= MIN_COMPUTE_CAPABILITY
    elif built.hardware_compatibility == "same-capability":
        fits = capability in info.compute_capabilities
    else:
        expected = f"{built.device} ({' or '.join(info.compute_capabilities)})"
        fits = capability in info.compute_capabilities and name == built.device
    if not fits:
        found = f"{name} ({capability})"
        raise Unavailable(f"{bundle}: expected {expected}, which its engines were built for, found {found}")


class TensorRT:
    """The TensorRT library on one GPU: it loads engines and makes contexts to run them in.

    Attributes:
        captures_steps: Whether decode steps are captured by the engine, each in a context of its own.
        module: The library's Python module.
        memory: The GPU's memory.
    """

    captures_steps = True

    @staticmethod
    def import_library() -> Any:
        """Import the library. Raises ImportError if it is not installed."""
        return importlib.import_module("tensorrt")

    def __init__(self, module: Any, info: EngineInfo, memory: CudaMemory) -> None:
        """Create the library's runtime. `info`: the engines that are to be loaded."""
        self.module = module
        self.memory = memory
        self._info = info
        self._workspace = 0  # address of the block that contexts work in
        self._workspace_bytes = 0  # the most that any engine works in
        self._runtime = module.Runtime(module.Logger(module.Logger.ERROR))
        if info.version_compatible:  # such an engine carries code of its own for the host
            self._runtime.engine_host_code_allowed = True

    def load(self, path: Path) -> Any:
        """Load an engine. Raises Unavailable or InvalidFile if the library does not take it."""
        plan = path.read_bytes()
        self._check_plan(path, plan)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise InvalidFile(path, f"an engine of {self._info.library}", "that it does not read it")
        self._reserve_workspace(engine)
        return engine

    def _check_plan(self, path: Path, plan: bytes) -> None:
        """Accept every plan: the GPU has been compared with the manifest."""

    def _reserve_workspace(self, engine: Any) -> None:
        """Count the engine's working memory among what the contexts share."""
        self._workspace_bytes = max(self._workspace_bytes, engine.get_device_memory_size_for_profile_v2(0))

    def new_context(self, engine: Any, name: str) -> Any:
        """Return a context of the loaded engine `name`. No two contexts may run at the same time."""
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._checked(engine.create_execution_context(strategy), name)
        if self._workspace_bytes:
            self._workspace = self._workspace or self.memory.allocate(self._workspace_bytes)
            context.set_device_memory(self._workspace, self._workspace_bytes)
        return context

    def _checked(self, context: Any, name: str) -> Any:
        if context is None:
            raise Unavailable(f"GPU: too little memory for the {name} engine to work in")
        return context


class TensorRTForRtx(TensorRT):
    """The library TensorRT for RTX on one GPU."""

    captures_steps = False

    @staticmethod
    def import_library() -> Any:
        """Import the library. Raises ImportError if it is not installed."""
        return importlib.import_module("tensorrt_rtx_bindings")

    def _check_plan(self, path: Path, plan: bytes) -> None:
        """Ask the library whether the engine runs on this GPU. Raises Unavailable if not."""
        validity, reasons = self._runtime.get_engine_validity(plan)
        if validity == self.module.EngineValidity.INVALID:
            kinds = self.module.EngineInvalidityDiagnostics.__members__
            why = ", ".join(name for name, kind in kinds.items() if reasons & int(kind)) or "no reason given"
            expected = f"a GPU of compute capability {' or '.join(self._info.compute_capabilities)}"
            found = f"{self.memory.compute_capability()} ({why})"
            raise Unavailable(f"{path}: expected {expected}, found {found}")

    def _reserve_workspace(self, engine: Any) -> None:
        """Reserve nothing: contexts have memory of their own."""

    def new_context(self, engine: Any, name: str) -> Any:
        """Return a context. The library itself captures the decode step, which is the same again and again."""
        config = engine.create_runtime_config()
        if name == "decode":
            config.cuda_graph_strategy = self.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._checked(engine.create_execution_context(config), name)


# By the name of the Python module, which the manifest gives.
LIBRARIES: dict[str, type[TensorRT]] = {"tensorrt": TensorRT, "tensorrt_rtx_bindings": TensorRTForRtx}
