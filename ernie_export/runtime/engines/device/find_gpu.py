"""Find a GPU and its libraries piece by piece, so that one line says what is missing."""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ernie_export.common.errors import Unavailable
from ernie_export.runtime.engines.ort_common import MIN_VERSION, check_version

PROVIDER = "CUDAExecutionProvider"
CUDA_MAJOR = 13  # the version of cuda-bindings, and the one that the engines' libraries were built for
SWAP = f"pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps 'onnxruntime-gpu>={MIN_VERSION}'"


class Installation:
    """The libraries and modules that are installed here. A test passes one that holds fakes."""

    def providers(self) -> list[str]:
        """Return the names of ONNX Runtime's execution providers."""
        return list(ort.get_available_providers())

    def onnxruntime_version(self) -> str:
        """Return the version of ONNX Runtime."""
        return str(ort.__version__)

    def cuda_version(self) -> str:
        """Return the version of CUDA that onnxruntime-gpu was built for; it alone says so."""
        from onnxruntime.capi.build_and_package_info import cuda_version

        return str(cuda_version)

    def import_cuda(self) -> Any:
        """Return cuda.bindings.runtime. Raises ImportError if it is not installed."""
        from cuda.bindings import runtime

        return runtime

    def load_library(self, name: str) -> None:
        """Load a library from the system's path, or from where NVIDIA's packages put it. Raises OSError if missing."""
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            paths = _in_packages(name)
            if not paths:
                raise
            ctypes.CDLL(paths[0], mode=ctypes.RTLD_GLOBAL)


INSTALLED = Installation()


def find_gpu(installation: Installation = INSTALLED) -> Any:
    """Return cuda.bindings.runtime, if ONNX Runtime can use a GPU.

    Raises Unavailable if ONNX Runtime is too old or has no CUDA provider, a CUDA library or the driver is missing, or
    there is no GPU.
    """
    check_version("onnxruntime-gpu", installation.onnxruntime_version(), SWAP)
    if PROVIDER not in installation.providers():
        raise Unavailable(
            f"--device cuda: expected onnxruntime-gpu, found onnxruntime {ort.__version__} without its CUDA provider "
            f"({SWAP})"
        )
    major = installation.cuda_version().split(".")[0]
    libraries = (
        (f"libcudart.so.{major}", "nvidia-cuda-runtime"),
        (f"libcublasLt.so.{major}", "nvidia-cublas"),
        (f"libcublas.so.{major}", "nvidia-cublas"),
        ("libcurand.so.10", "nvidia-curand"),
        ("libcudnn.so.9", f"nvidia-cudnn-cu{major}"),  # the vision encoder's attention creates a handle of it
    )
    return find_cuda("--device cuda", "gpu", libraries, installation)


def find_cuda(
    reason: str, extra: str, libraries: tuple[tuple[str, str], ...] = (), installation: Installation = INSTALLED
) -> Any:
    """Return cuda.bindings.runtime, if there is a driver and a GPU.

    Args:
        reason: What needs the GPU, e.g. "--device cuda"; a message begins with it.
        extra: The extra that brings what is missing.
        libraries: Libraries to load, and the packages that bring them.
        installation: Where they are looked for.

    Raises:
        Unavailable: If the driver, a library, cuda-bindings or a GPU is missing.
    """
    packages = [(name, f"CUDA's libraries: pip install .[{extra}] brings {package}") for name, package in libraries]
    for name, what in (("libcuda.so.1", "NVIDIA's driver"), *packages):
        try:
            installation.load_library(name)
        except OSError as e:
            raise Unavailable(f"{reason}: expected {name} ({what}), found none") from e
    try:
        runtime = installation.import_cuda()
    except ImportError as e:
        raise Unavailable(f"{reason}: expected cuda-bindings (pip install .[{extra}]), found none") from e
    code, count = runtime.cudaGetDeviceCount()
    if code or not count:
        error = runtime.cudaGetErrorString(code)[1].decode() if code else "no device"
        raise Unavailable(f"{reason}: expected a GPU that CUDA {CUDA_MAJOR} can use, found none ({error})")
    return runtime


def _in_packages(name: str) -> list[str]:
    """Return paths of the library in installed packages (nvidia/*/lib), also those of PyTorch's CUDA builds."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return [str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/{name}"))]
