"""The processor, memory and GPU of this machine."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ernie_export.common.gpu import detect_gpu
from ernie_export.common.processor import cpu_name, usable_cores
from ernie_export.common.version import __version__

# Features of processors that matter here, by their names in /proc/cpuinfo, on x86-64 and Arm.
_FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "VNNI",
    "avx_vnni": "VNNI",
    "avx512_bf16": "bfloat16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "int8 products",
    "bf16": "bfloat16",
    "sve": "SVE",
}


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
    fields = read_cpuinfo(Path("/proc/cpuinfo"))
    flags = fields.get("flags", fields.get("Features", "")).split()
    gpu = detect_gpu()
    return Machine(
        package=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        features=tuple(dict.fromkeys(name for flag, name in _FEATURES.items() if flag in flags)),
        gpu=f"{gpu.name} ({gpu.architecture})" if gpu is not None else None,
    )


def read_cpuinfo(path: Path) -> dict[str, str]:
    """Return the fields of the first processor; empty where the system has no such file."""
    try:
        first = path.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
