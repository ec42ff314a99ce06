"""The processor, memory and GPU of this machine."""

import os
import platform
from dataclasses import dataclass

from ernie_export.common.gpu import detect_gpu
from ernie_export.common.processor import cpu_features, cpu_name, usable_cores
from ernie_export.common.version import __version__


@dataclass(frozen=True)
class Machine:
    """This machine.

    Attributes:
        package: Version of ernie-export.
        python: Version of Python.
        system: Operating system, its release and the kind of processor.
        cpu: Name of the processor.
        cores: Cores that this process may use.
        memory: Bytes.
        features: Instruction sets of the processor that ONNX Runtime's kernels can use.
        gpu: Name and architecture of the first GPU; None if NVIDIA's driver shows none.
    """

    package: str
    python: str
    system: str
    cpu: str
    cores: int
    memory: int
    features: tuple[str, ...]
    gpu: str | None


def describe_machine() -> Machine:
    """Describe this machine as it is now."""
    gpu = detect_gpu()
    return Machine(
        package=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        features=cpu_features(),
        gpu=f"{gpu.name} ({gpu.architecture})" if gpu is not None else None,
    )
