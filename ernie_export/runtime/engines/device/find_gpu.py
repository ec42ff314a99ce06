"""What a GPU engine needs, looked for piece by piece, so that what is missing is said in one line."""

import ctypes
from typing import Any

import onnxruntime as ort

from ernie_export.common.errors import UserError

PROVIDER = "CUDAExecutionProvider"
CUDA_MAJOR = 13  # of cuda-bindings, and of what the engines' libraries were built for
SWAP = "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"


def find_gpu() -> Any:
    """cuda.bindings.runtime, when ONNX Runtime can use a GPU.

    Raises UserError if ONNX Runtime has no CUDA provider, a CUDA library or the driver is missing, or there is no GPU.
    """
    if PROVIDER not in ort.get_available_providers():
        raise UserError(
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
        ("libcudnn.so.9", f"nvidia-cudnn-cu{major}"),  # of which the vision encoder's attention wants a handle
    )
    return find_cuda("--device cuda", "gpu", libraries)


def find_cuda(asked: str, extra: str, libraries: tuple[tuple[str, str], ...] = ()) -> Any:
    """cuda.bindings.runtime, where there is a driver and a GPU; loads `libraries` (of packages), too.

    Raises UserError that begins with what `asked` for it, and names the `extra` that brings what is missing.
    """
    _load("libcuda.so.1", asked, "NVIDIA's driver")
    for name, package in libraries:
        _load(name, asked, f"CUDA's libraries: pip install .[{extra}] brings {package}")
    try:
        from cuda.bindings import runtime
    except ImportError as e:
        raise UserError(f"{asked}: expected cuda-bindings (pip install .[{extra}]), found none") from e
    code, count = runtime.cudaGetDeviceCount()
    if code or not count:
        reason = runtime.cudaGetErrorString(code)[1].decode() if code else "no device"
        raise UserError(f"{asked}: expected a GPU that CUDA {CUDA_MAJOR} can use, found none ({reason})")
    return runtime


def _load(name: str, asked: str, what: str) -> ctypes.CDLL:
    """Load a library: from the system's path, or from where pip's packages of NVIDIA put it."""
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError as e:
        for path in _in_packages(name):
            return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        raise UserError(f"{asked}: expected {name} ({what}), found none") from e


def _in_packages(name: str) -> list[str]:
    """Paths of the library in installed packages (nvidia/*/lib), PyTorch's CUDA builds' among them."""
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    return [str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/{name}"))]
