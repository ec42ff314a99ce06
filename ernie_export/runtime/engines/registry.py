"""Which engine runs a bundle on a device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ernie_export.common.errors import InvalidValue
from ernie_export.common.manifest import Manifest
from ernie_export.runtime.devices import DEVICES
from ernie_export.runtime.engines import Engine
from ernie_export.runtime.engines.device.memory import CudaMemory
from ernie_export.runtime.engines.ort_common import MIN_VERSION, check_version
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine, Tap
from ernie_export.runtime.engines.ort_cuda import OrtCudaEngine
from ernie_export.runtime.engines.tensorrt.engine import TensorRTEngine
from ernie_export.runtime.engines.tensorrt.library import open_tensorrt

# Opens an engine with so many cores for one operator, None for all.
EngineOpener = Callable[[int | None], Engine[Any]]


def open_engine(bundle: Path, manifest: Manifest, device: str, threads: int | None) -> Engine[Any]:
    """Open the engine that runs a bundle on a device.

    Args:
        bundle: Folder of the bundle.
        manifest: Its manifest.
        device: One of DEVICES; compiled engines run on the GPU that they were built for, whatever is given.
        threads: Cores for one operator; None for all.

    Returns:
        The engine, to be closed by the caller.

    Raises:
        UserError: If the device or a library is missing or cannot run the bundle, or a file is malformed.
    """
    return find_engine(bundle, manifest, device)(threads)


def find_engine(
    bundle: Path, manifest: Manifest, device: str, tap: Tap | None = None, media: bool = True
) -> EngineOpener:
    """Find the device and the libraries that run a bundle; returns what opens its engine. No file is read yet.

    Args:
        bundle: Folder of the bundle.
        manifest: Its manifest.
        device: As of `open_engine`.
        tap: Inner values of the graphs to read; engines of TensorRT give the vision encoder's output alone.
        media: Whether to open at once what only images and videos take; on a CPU, False puts it off until the first
            of them comes.

    Raises:
        UserError: If the device or a library is missing or cannot run the bundle, or the engine has no taps.
    """
    if device not in DEVICES:
        raise InvalidValue("device", " or ".join(DEVICES), repr(device))
    kind = "tensorrt" if manifest.engines is not None else device
    if kind == "cpu":
        check_version("onnxruntime", ort.__version__, f"pip install 'onnxruntime>={MIN_VERSION}'")
        return lambda threads: OrtCpuEngine(bundle, manifest, threads, tap, media=media)
    if tap is None:
        return GPU_ENGINES[kind](bundle, manifest)
    if kind == "tensorrt":
        library = open_tensorrt(bundle, manifest)
        return lambda threads: TensorRTEngine(bundle, manifest, library, tap.on_value)
    raise InvalidValue("device", "cpu or an engine of TensorRT, which can be tapped", repr(kind))


def _find_cuda(bundle: Path, manifest: Manifest) -> EngineOpener:
    memory = CudaMemory.for_bundle(bundle, manifest)
    return lambda threads: OrtCudaEngine(bundle, manifest, threads, memory)


def _find_tensorrt(bundle: Path, manifest: Manifest) -> EngineOpener:
    library = open_tensorrt(bundle, manifest)
    return lambda threads: TensorRTEngine(bundle, manifest, library)


GPU_ENGINES: dict[str, Callable[[Path, Manifest], EngineOpener]] = {
    "cuda": _find_cuda,
    "tensorrt": _find_tensorrt,
}
