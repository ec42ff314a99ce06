"""What a GPU engine needs, looked for piece by piece, so that what is missing is said in one line."""

import ctypes

import onnxruntime as ort
from ernie_export.graphs.errors import UserError

PROVIDER = "CUDAExecutionProvider"
SWAP = "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"


def find_gpu() -> ctypes.CDLL:
    """CUDA's runtime library, when ONNX Runtime can use a GPU through it.

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
    further = (
        (f"libcublasLt.so.{major}", "nvidia-cublas"),
        (f"libcublas.so.{major}", "nvidia-cublas"),
        ("libcurand.so.10", "nvidia-curand"),
        ("libcudnn.so.9", f"nvidia-cudnn-cu{major}"),  # of which the vision encoder's attention wants a handle
    )
    return find_cuda("--device cuda", "gpu", major, further)


def find_cuda(asked: str, extra: str, major: str, further: tuple[tuple[str, str], ...] = ()) -> ctypes.CDLL:
    """CUDA's runtime library of version `major`, where there is a driver and a GPU; loads `further` libraries, too.

    Raises UserError that begins with what `asked` for it, and names the `extra` that brings what is missing.
    """
    _load("libcuda.so.1", asked, "NVIDIA's driver")
    for name, package in ((f"libcudart.so.{major}", "nvidia-cuda-runtime"), *further):
        library = _load(name, asked, f"CUDA {major}'s libraries: pip install .[{extra}] brings {package}")
        if "cudart" in name:
            runtime = library
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    count = ctypes.c_int()
    code = runtime.cudaGetDeviceCount(ctypes.byref(count))
    if code or not count.value:
        reason = runtime.cudaGetErrorString(code).decode() if code else "no device"
        raise UserError(f"{asked}: expected a GPU that CUDA {major} can use, found none ({reason})")
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
