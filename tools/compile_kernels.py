"""Compile every kernel of the TensorRT plugins for every architecture, without a GPU, and check the PTX.

    python tools/compile_kernels.py [--arch sm90,...] [--dtype bfloat16] [--weights plain,int4,...] [--plugins Rope,...]
                                    [--out DIR] [--quick]

Each kernel is compiled for ERNIE-4.5-VL-28B-A3B's sizes with each of its tactics; its parameters are checked against
what TensorRT passes, and Triton's own ptxas must take what is left after the scratch pointers are dropped. Prints a
line for each kernel: registers and bytes spilled of a thread, shared memory of a program, and the matrix instruction.
`--quick` takes one tactic of each plugin, the one that engines take where it fits. Exit code 1 where a kernel fails.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from ernie_export.common.errors import UserError
from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.kernel_plugin import Attributes, KernelPlugin, Shapes
from ernie_export.graphs.ops.ptx import TARGETS, CompiledKernel, assemble, compile_kernel, fits
from ernie_export.graphs.ops.quantized_linear.plugin import has_float8

ERNIE = plugins.Sizes(
    hidden=2560, experts=64, widths=(1536, 512), k=6, norm_min=1e-12, heads=(20, 4), head_dim=128, capacity=8256
)
GROUP = 128  # values that share a scale
# Storage of weights and bits a value, by the names of this tool's option; plain: the graph's dtype.
WEIGHTS = {"plain": ("", 0), "int4": ("Quantized", 4), "int8": ("Quantized", 8), "fp8": ("Float8", 8)}


def kernel_specs(weights: str = "plain") -> Iterator[tuple[KernelPlugin, Shapes, Attributes]]:
    """Every plugin with the shapes and attributes that ERNIE-4.5-VL-28B-A3B gives it; -1 where a size varies.

    Unless `weights` are plain, only the plugins that take weights stored so.
    """
    sizes = ERNIE
    storage, bits = WEIGHTS[weights]
    if storage:
        how = plugins.Stored(storage, bits, GROUP)
        sizes = replace(ERNIE, stored=how, linears=(plugins.Linear(ERNIE.hidden, ERNIE.hidden, how),))
    cases = {}  # by name: a decode step of many sequences has other plugins than one of few
    for few in (False, True):
        cases |= {case[0].name: case for case in plugins.kernel_specs(replace(sizes, few=few))}
    yield from (case for name, case in cases.items() if name.startswith(storage))


def compiled(
    arch: str, dtype: str, weights: str, names: list[str], quick: bool
) -> Iterator[tuple[str, CompiledKernel, Mapping[str, int]]]:
    """Each kernel compiled for `arch`: its name with its tactic's number, the PTX, and what ptxas reports."""
    for plugin, shapes, attributes in kernel_specs(weights):
        if names and plugin.name not in names:
            continue
        for number in plugin.compiled_tactics[:1] if quick else range(1, len(plugin.tactics) + 1):
            kernel = compile_kernel(plugin, shapes, attributes, number, dtype, arch)
            yield f"{plugin.name}.{number}", kernel, assemble(kernel, arch)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default=",".join(TARGETS), help="architectures, as sm80,sm90; all by default")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--weights", default="plain", help=f"some of {','.join(WEIGHTS)}; fp8 leaves older GPUs out")
    parser.add_argument("--plugins", help="plugins, as Rope,ExpertsDown; all by default")
    parser.add_argument("--out", type=Path, help="write each kernel's PTX to OUT/ARCH/NAME.ptx")
    parser.add_argument("--quick", action="store_true", help="one tactic of each plugin, the first choice")
    arguments = parser.parse_args()
    names = arguments.plugins.split(",") if arguments.plugins else []
    stored = arguments.weights.split(",")
    if unknown := set(stored) - set(WEIGHTS):
        parser.error(f"--weights: unknown {', '.join(sorted(unknown))}")
    if unknown := set(names) - {plugin.name for weights in stored for plugin, _, _ in kernel_specs(weights)}:
        parser.error(f"--plugins: unknown {', '.join(sorted(unknown))}")
    count = 0
    for arch, weights in ((arch, weights) for arch in arguments.arch.split(",") for weights in stored):
        try:
            if weights == "fp8" and not has_float8(arch):
                print(f"{arch:6} has no e4m3 numbers: no fp8 kernels")
                continue
            for name, kernel, report in compiled(arch, arguments.dtype, weights, names, arguments.quick):
                matrix = sorted(set(re.findall(r"\b(wgmma|tcgen05\.mma|mma\.sync)", kernel.ptx)))
                note = "" if fits(kernel, arch) else "  more shared memory than the GPU has: not offered"
                numbers = f"{report['registers']:4} regs {report['spilled']:5} B spilled {kernel.shared:7} B shared"
                print(f"{arch:6} {name:24} {numbers}  {' '.join(matrix) or '-'}{note}")
                count += 1
                if arguments.out:
                    folder = arguments.out / arch / (weights if weights != "plain" else "")
                    path = folder / f"{name}.ptx"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(kernel.ptx)
        except (RuntimeError, UserError) as e:
            print(f"{arch}: {e}", file=sys.stderr)
            return 1
    print(f"{count} kernels compiled and assembled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
