"""TensorRT and TensorRT for RTX: what must be there before a bundle is loaded, and where the two libraries differ.

| | TensorRT | TensorRT for RTX |
| --- | --- | --- |
| does an engine run here? | compared with what the manifest says of the card | asked of the library |
| decode steps as CUDA graphs | captured from the stream, one a number of rows | made by the library |
| working memory | one block that all contexts take turns in | the contexts' own |

A captured graph holds the state of its context, which must not change any more: each has a context of its own.
"""

import re
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import EngineInfo, Manifest, TensorRTInfo
from ernie_export.runtime.engines.device.find_gpu import find_cuda
from ernie_export.runtime.engines.device.memory import CudaMemory

RTX = "tensorrt_rtx_bindings"
MIN_COMPUTE_CAPABILITY = (8, 0)


def find_card(bundle: Path, manifest: Manifest) -> tuple[Any, CudaMemory]:
    """The library and the first GPU's memory, for a bundle of compiled engines. Nothing is loaded yet.

    Raises UserError if the engines are not built yet, the library is missing or not one that runs them, there is no
    driver or GPU, it is not one that they were built for, or it has too little free memory.
    """
    facts, extra = manifest.engines, manifest.target
    assert facts is not None  # a bundle of these targets has them
    if manifest.needs_engine_build:
        found = f"found a bundle that waits for them (on the machine with the GPU: ernie-export --resume {bundle})"
        raise UserError(f"{bundle}: expected engines, {found}")
    try:
        library = imported(facts)
    except ImportError as e:
        raise UserError(f"{bundle}: expected {facts.library} (pip install .[{extra}]), found none") from e
    if not runs(facts, library.__version__):
        expected = f"{facts.library} {facts.version}, which built its engines"
        raise UserError(f"{bundle}: expected {expected}, found {library.__version__} (export again, or install that)")
    memory = CudaMemory(find_cuda(f"{bundle}: target {manifest.target}", extra))
    if facts.tensorrt is not None:
        check_card(bundle, facts, facts.tensorrt, memory)
    memory.check_room(bundle, manifest)
    return library, memory


def imported(facts: EngineInfo) -> Any:
    """The library's Python module; ImportError where it is not installed."""
    if facts.library == RTX:
        import tensorrt_rtx_bindings

        return tensorrt_rtx_bindings
    import tensorrt

    return tensorrt


def runs(facts: EngineInfo, version: str) -> bool:
    """Whether the library of this version runs the engines."""
    built, found = ([int(part) for part in re.findall(r"\d+", text)] for text in (facts.version, version))
    return built == found or (facts.version_compatible and built[:1] == found[:1] and built <= found)


def check_card(bundle: Path, facts: EngineInfo, built: TensorRTInfo, memory: CudaMemory) -> None:
    """UserError if the engines were built for other cards than this one."""
    name, found = memory.card(), memory.compute_capability()
    expected = f"a GPU of compute capability {' or '.join(facts.compute_capabilities)}"
    if built.hardware_compatibility == "ampere-plus":
        expected = "a GPU of compute capability 8.0 or higher"
        fits = tuple(int(part) for part in found.split(".")) >= MIN_COMPUTE_CAPABILITY
    elif built.hardware_compatibility == "same-capability":
        fits = found in facts.compute_capabilities
    else:
        expected = f"{built.device} ({' or '.join(facts.compute_capabilities)})"
        fits = found in facts.compute_capabilities and name == built.device
    if not fits:
        raise UserError(f"{bundle}: expected {expected}, which its engines were built for, found {name} ({found})")


class TensorRT:
    """Loads engines, and makes contexts to run them in."""

    captures = True  # whether decode steps are captured here, each in a context of its own

    def __init__(self, library: Any, facts: EngineInfo, memory: CudaMemory) -> None:
        """`library`: the Python module, which `memory`'s card goes with."""
        self.module, self._facts, self._memory = library, facts, memory
        self._scratch, self._scratch_bytes = 0, 0  # the most that any engine works in
        self._runtime = library.Runtime(library.Logger(library.Logger.ERROR))
        if facts.version_compatible:  # such an engine carries code of its own for the host
            self._runtime.engine_host_code_allowed = True

    def load(self, path: Path) -> Any:
        """An engine; UserError if the library does not take it."""
        plan = path.read_bytes()
        self._check(path, plan)
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise UserError(f"{path}: expected an engine of {self._facts.library}, found that it does not read it")
        self._note_scratch(engine)
        return engine

    def _check(self, path: Path, plan: bytes) -> None:
        """Nothing: the manifest said it all."""

    def _note_scratch(self, engine: Any) -> None:
        self._scratch_bytes = max(self._scratch_bytes, engine.get_device_memory_size_for_profile_v2(0))

    def new_context(self, engine: Any, name: str) -> Any:
        """A context of the loaded engine `name`. No two contexts may run at the same time."""
        strategy = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._checked(engine.create_execution_context(strategy), name)
        if self._scratch_bytes:
            self._scratch = self._scratch or self._memory.allocate(self._scratch_bytes)
            context.set_device_memory(self._scratch, self._scratch_bytes)
        return context

    def _checked(self, context: Any, name: str) -> Any:
        if context is None:
            raise UserError(f"GPU: expected room for the {name} engine's working memory, found that there is none")
        return context


class TensorRTForRtx(TensorRT):
    """See `TensorRT`."""

    captures = False

    def _check(self, path: Path, plan: bytes) -> None:
        validity, reasons = self._runtime.get_engine_validity(plan)
        if validity == self.module.EngineValidity.INVALID:
            kinds = self.module.EngineInvalidityDiagnostics.__members__
            why = ", ".join(name for name, kind in kinds.items() if reasons & int(kind)) or "no reason given"
            expected = f"a GPU of compute capability {' or '.join(self._facts.compute_capabilities)}"
            raise UserError(f"{path}: expected {expected}, found {self._memory.compute_capability()} ({why})")

    def _note_scratch(self, engine: Any) -> None:
        """Nothing: contexts have memory of their own."""

    def new_context(self, engine: Any, name: str) -> Any:
        """A context; a decode step, which is the same again and again, is captured by the library."""
        config = engine.create_runtime_config()
        if name == "decode":
            config.cuda_graph_strategy = self.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._checked(engine.create_execution_context(config), name)


def opened(library: Any, facts: EngineInfo, memory: CudaMemory) -> TensorRT:
    """The library that the bundle's engines are for."""
    return (TensorRTForRtx if facts.library == RTX else TensorRT)(library, facts, memory)
