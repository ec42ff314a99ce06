"""Find a GPU and its libraries piece by piece, so that one line says what is missing."""

import ctypes
from typing import Any

import onnxruntime as ort

from ernie_export.common.errors import Unavailable

PROVIDER = "CUDAExecutionProvider"
CUDA_MAJOR = 13  # the version of cuda-bindings, and the one that the engines' libraries were built for
SWAP = "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"


def find_gpu() -> Any:
    """Return cuda.bindings.runtime, if ONNX Runtime can use a GPU.

    Raises Unavailable if ONNX Runtime has no CUDA provider, a CUDA library or the driver is missing, or there is
    no GPU.
    """
    if PROVIDER not in ort.get_available_providers():
        raise Unavailable(
            f"--device cuda: expected onnxruntime-gpu, found onnxruntime {ort.__version__} without its CUDA provider "
            f"({SWAP})"
        )
    # onnxruntime-gpu alone says which CUDA it was built for.
    from onnxruntime.capi.build_and_package_info import cuda_version

    major = cuda_version.split(".")[0]
    libraries = (
        (f"libcudart.so.{major}", "nvidia-cuda-runtime"),
        (f"libcublasLt.so.{major}", "nvidia-cublas"),
        (f"libcublas.so.{major}", "nvidia-cublas"),
        ("libcurand.so.10", "nvidia-curand"),
        ("libcudnn.so.9", f"nvidia-cudnn-cu{major}"),  # the vision encoder's attention creates a handle of it
    )
    return find_cuda("--device cuda", "gpu", libraries)


def find_cuda(reason: str, extra: str, libraries: tuple[tuple[str, str], ...] = ()) -> Any:
    """Return cuda.bindings.runtime, if there is a driver and a GPU.

    Args:
        reason: What needs the GPU, e.g. "--device cuda"; a message begins with it.
        extra: The extra that brings what is missing.
        libraries: Libraries to load, and the packages that bring them.

    Raises:
        Unavailable: If the driver, a library, cuda-bindings or a GPU is missing.
    """
    _load("libcuda.so.1", reason, "NVIDIA's driver")
    for name, package in libraries:
        _load(name, reason, f"CUDA's libraries: pip install .[{extra}] brings {package}")
    try:
        from cuda.bindings import runtime
    except ImportError as e:
        raise Unavailable(f"{reason}: expected cuda-bindings (pip install .[{extra}]), found none") from e
    code, count = runtime.cudaGetDeviceCount()
    if code or not count:
        error = runtime.cudaGetErrorString(code)[1].decode() if code else "no device"
        raise Unavailable(f"{reason}: expected a GPU that CUDA {CUDA_MAJOR} can use, found none ({error})")
    return runtime


def _load(name: str, reason: str, what: str) -> ctypes.CDLL:
    """Load a library from the system's path, or from where NVIDIA's packages put it.

    Args:
        name: The library's file name.
        reason: As of `find_cuda`.
        what: What the library is, for the message.

    Raises:
        Unavailable: If it is not found.
    """
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as e:
        for path in _in_packages(name):
            return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        raise Unavailable(f"{reason}: expected {name} ({what}), found none") from e


def _in_packages(name: str) -> list[str]:
    """Return paths of the library in installed packages (nvidia/*/lib), also those of PyTorch's CUDA builds."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return [str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/{name}"))]
