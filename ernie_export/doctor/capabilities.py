"""What can be done on this machine: extras by their versions, devices by the checks that the engines make."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from ernie_export.common.errors import Unavailable
from ernie_export.common.gpu import detect_gpu
from ernie_export.doctor.requirements import Requirement, read_requirements


@dataclass(frozen=True)
class Capability:
    """Something that this project does, and what is missing for it here.

    Attributes:
        name: What it is, as a user would say it.
        extra: The extra of the package that brings it; empty for the package itself.
        missing: What is missing, a line for each thing; empty if nothing is.
    """

    name: str
    extra: str
    missing: tuple[str, ...]

    @property
    def is_available(self) -> bool:
        """Whether it can be done here."""
        return not self.missing

    @property
    def install(self) -> str:
        """The command that installs its packages; empty if none is missing or none helps."""
        return f"pip install .[{self.extra}]" if self.missing and self.extra else ""


Check = Callable[[], str]  # returns what is missing beside the packages; empty for nothing


def find_capabilities() -> list[Capability]:
    """Return everything that this project does, in the order of its guides."""
    return [
        capability("run bundles on the CPU", ""),
        capability("export and plan", "export"),
        capability("verify against PyTorch", "parity"),
        capability("serve over HTTP", "serve"),
        capability("serve on Ray", "ray"),
        capability("plot benchmarks", "bench"),
        capability("run on a GPU with ONNX Runtime", "gpu", refusal_by_onnx_runtime),
        capability("build engines of TensorRT for RTX", "trt-rtx"),
        capability("run engines of TensorRT for RTX", "trt-rtx", lambda: refusal_by_cuda("trt-rtx")),
        capability("compile kernels for TensorRT", "kernels", has_compiler),
        capability("build engines of TensorRT", "trt", lambda: has_tensorrt() or has_gpu(), by_package=False),
        capability(
            "run engines of TensorRT",
            "trt",
            lambda: has_tensorrt() or refusal_by_cuda("trt"),
            by_package=False,
        ),
    ]


def capability(name: str, extra: str, check: Check = str, by_package: bool = True) -> Capability:
    """Return a capability with what is missing for it.

    Args:
        name: What it is.
        extra: The extra that brings its packages.
        check: Looks for what no package brings, once the packages are there.
        by_package: Whether the extra's packages have to be installed as such; `check` alone decides otherwise.
    """
    missing = [str(requirement) for requirement in unmet(extra)] if by_package else []
    if not missing and (problem := check()):
        missing.append(problem)
    return Capability(name, extra, tuple(missing))


def unmet(extra: str) -> list[Requirement]:
    """Return what an extra requires and is not installed in a version that fits."""
    return [requirement for requirement in read_requirements(extra) if not requirement.is_met]


def refusal_by_onnx_runtime() -> str:
    """Return the message with which the CUDA engine refuses this machine; empty if it does not."""
    from ernie_export.runtime.engines.device.find_gpu import find_gpu  # imports ONNX Runtime, which may be missing

    try:
        find_gpu()
    except Unavailable as e:
        return str(e)
    return ""


def refusal_by_cuda(extra: str) -> str:
    """Return the message with which the engines of `extra` refuse this machine; empty if they do not."""
    from ernie_export.runtime.engines.device.find_gpu import find_cuda

    try:
        find_cuda("CUDA", extra)
    except (Unavailable, ImportError) as e:
        return str(e)
    return ""


def has_compiler() -> str:
    """Return what is missing to compile kernels: Triton has no wheel for every platform."""
    try:
        import triton  # noqa: F401
    except ImportError as e:
        return f"Triton, which has wheels for Linux (found none: {e})"
    return ""


def has_tensorrt() -> str:
    """Return what is missing of TensorRT, which JetPack installs without a wheel's metadata."""
    try:
        import tensorrt

        version = tensorrt.__version__
    except ImportError:
        version = None
    needed = next(entry for entry in read_requirements("trt") if entry.name == "tensorrt")
    found = replace(needed, installed=version)
    return "" if found.is_met else str(found)


def has_gpu() -> str:
    """Return what is missing of a GPU to build engines on."""
    return "" if detect_gpu() is not None else "a GPU that NVIDIA's driver shows (found none)"
