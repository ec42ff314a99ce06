"""Triton kernels to PTX for an architecture, without a GPU, in the form in which TensorRT launches them."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidValue
from ernie_export.graphs.ops.kernel_plugin import GRAPH_DTYPE, Attributes, Constants, KernelPlugin, Shapes

# Architecture -> the one that is compiled for. Triton 3.6 can't write sm_110's PTX (its ptxas knows no such target);
# PTX for sm_89 uses no feature of one family alone, and a driver translates it for any later GPU.
TARGETS = {name: int(name[2:]) for name in ("sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm120")} | {"sm110": 89}
# Most shared memory a program may ask for, bytes (CUDA C++ programming guide, "Technical specifications").
SHARED_LIMIT = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}
TRITON_TYPE = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "int32": "i32", "int64": "i64"}

ENTRY = re.compile(r"\.visible \.entry (\w+)\(\s*(.*?)\s*\)\n", re.DOTALL)
PARAMETER = re.compile(r"\.param \.(u64|u32)(?: \.ptr)?[\w\s.]* (\w+)")


@dataclass(frozen=True)
class CompiledKernel:
    """The kernel of a plugin for one of its tactics.

    Attributes:
        plugin: The plugin's name.
        tactic: The tactic's number, from 1.
        constants: The compile-time parameters, which hold the sizes.
        takes_size: Whether the kernel takes the scalar T.
        name: The name of the entry point in `ptx`.
        ptx: The code.
        threads: Threads of a program.
        shared: Dynamic shared memory, in bytes.
    """

    plugin: str
    tactic: int
    constants: Constants
    takes_size: bool
    name: str
    ptx: str
    threads: int
    shared: int


def target(arch: str) -> int:
    """Return the compute capability compiled for, e.g. 90; raise InvalidValue for an unknown architecture."""
    if arch not in TARGETS:
        raise InvalidValue("architecture", f"one of {', '.join(sorted(TARGETS, key=_number))}", repr(arch))
    return TARGETS[arch]


def fits(compiled: CompiledKernel, arch: str) -> bool:
    """Return whether the architecture has the shared memory that the kernel needs."""
    return compiled.shared <= SHARED_LIMIT[target(arch)] * 1024


def compile_kernel(
    plugin: KernelPlugin, shapes: Shapes, attributes: Attributes, number: int, dtype: str, arch: str
) -> CompiledKernel:
    """Compile a plugin's kernel.

    Args:
        plugin: The plugin.
        shapes: The inputs' shapes, -1 where a size varies.
        attributes: The plugin's attributes.
        number: The tactic's number, from 1.
        dtype: The graphs' dtype.
        arch: The architecture, e.g. "sm89".
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    capability = target(arch)
    kernel = plugin.kernel()
    tactic = plugin.tactics[number - 1]
    constants = plugin.all_constants(shapes, attributes, tactic)
    if "UPCAST" in kernel.arg_names:
        constants["UPCAST"] = False
    types = dict(plugin.inputs) | {output.name: output.dtype for output in plugin.outputs(shapes, attributes)}
    pointers = {name: "*" + TRITON_TYPE[dtype if kind == GRAPH_DTYPE else kind] for name, kind in types.items()}
    signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in kernel.arg_names}
    # TensorRT's buffers begin at multiples of 256 bytes; if it knows of 16, the compiler loads 16 bytes at a time.
    aligned = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.disable_line_info = True  # it holds this machine's paths
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, aligned),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": tactic.num_warps, "num_stages": tactic.num_stages},
        )
    expected = ["u32" if kind == "i32" else "u64" for kind in signature.values() if kind != "constexpr"]
    ptx = without_scratch(compiled.asm["ptx"], expected)
    given = plugin.given_constants(shapes, attributes, tactic)
    launch = compiled.metadata.name, ptx, compiled.metadata.num_warps * 32, compiled.metadata.shared
    return CompiledKernel(plugin.name, number, given, "T" in kernel.arg_names, *launch)


def without_scratch(ptx: str, expected: list[str]) -> str:
    """Drop Triton's two trailing scratch pointers, which TensorRT does not pass; raise RuntimeError if they are used.

    `expected` are the types of all other parameters, u64 (a pointer) or u32, which are checked.
    """
    entry = ENTRY.search(ptx)
    if entry is None:
        raise RuntimeError("PTX without an entry point")
    parameters = PARAMETER.findall(entry[2])
    if [kind for kind, _ in parameters] != [*expected, "u64", "u64"]:
        raise RuntimeError(f"kernel {entry[1]}: parameters {parameters}, expected {expected} and two scratch pointers")
    body = ptx[entry.end() :]
    for _, name in parameters[-2:]:
        if re.search(rf"\b{name}\b", body):
            raise RuntimeError(f"kernel {entry[1]} uses scratch memory, which TensorRT does not give it")
    kept = ",\n".join(line.strip() for line in entry[2].split(",")[:-2])
    return f"{ptx[: entry.start()]}.visible .entry {entry[1]}(\n{kept}\n)\n{body}"


def assemble(compiled: CompiledKernel, arch: str) -> dict[str, Any]:
    """Assemble the PTX with Triton's ptxas; return registers and spilled bytes, or raise RuntimeError."""
    from triton import knobs

    capability = target(arch)
    tool = (knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas).path
    machine = f"sm_{capability}" + ("a" if capability >= 90 else "")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.ptx)
        command = [tool, "-v", f"--gpu-name={machine}", str(source), "-o", f"{folder}/kernel.cubin"]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"kernel {compiled.name}: ptxas for {machine} refuses it: {process.stderr.strip()}")
    found = {key: re.search(pattern, process.stderr) for key, pattern in REPORT.items()}
    return {key: int(match[1]) if match else 0 for key, match in found.items()}


REPORT = {"registers": r"Used (\d+) registers", "spilled": r"(\d+) bytes spill stores"}


def _number(arch: str) -> int:
    return int(arch[2:])
