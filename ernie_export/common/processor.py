"""The processor that a process runs on."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
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


def cpu_name() -> str:
    """Return the processor's own name, where the system reports it."""
    return read_cpuinfo(CPUINFO).get("model name") or platform.processor() or platform.machine()


def cpu_features() -> tuple[str, ...]:
    """Return the instruction sets of the processor that ONNX Runtime's kernels can use; none where nothing reports."""
    fields = read_cpuinfo(CPUINFO)
    flags = fields.get("flags", fields.get("Features", "")).split()
    return tuple(dict.fromkeys(name for flag, name in _FEATURES.items() if flag in flags))


def read_cpuinfo(path: Path) -> dict[str, str]:
    """Return the fields of the first processor; empty where the system has no such file."""
    try:
        first = path.read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
