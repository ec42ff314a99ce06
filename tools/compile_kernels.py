"""Compile every kernel of the TensorRT plugins for every architecture, without a GPU, and check the PTX.

    python tools/compile_kernels.py [--arch sm90,...] [--dtype bfloat16] [--stages Rope,...] [--out DIR] [--quick]

Each kernel is compiled for ERNIE-4.5-VL-28B-A3B's sizes with each of its tactics; its parameters are checked against
what TensorRT passes, and Triton's own ptxas must take what is left after the scratch pointers are dropped. Prints a
line for each kernel: registers and bytes spilled of a thread, shared memory of a program, and the matrix instruction.
`--quick` takes the first tactic of each stage only. Exit code 1 where a kernel fails.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from ernie_export.graphs.errors import UserError
from ernie_export.graphs.ops.moe_dispatch.plugin import stages
from ernie_export.graphs.ops.mrope.plugin import stage as rope_stage
from ernie_export.graphs.ops.ptx import TARGETS, CompiledKernel, assemble, compile_stage, fits
from ernie_export.graphs.ops.stage import Attributes, Shapes, Stage

HIDDEN, EXPERTS, WIDTHS, TOP_K, HEADS, HEAD_SIZE = 2560, 64, {"text": 1536, "vision": 512}, 6, (20, 4), 128


def cases() -> Iterator[tuple[Stage, Shapes, Attributes]]:
    """Every stage with the shapes and attributes that ERNIE-4.5-VL-28B-A3B gives it; -1 where a size varies."""
    rope = {"q": (-1, -1, HEADS[0] * HEAD_SIZE), "k": (-1, -1, HEADS[1] * HEAD_SIZE), "position_ids": (3, -1, -1)}
    tables = {"inv_freq": (HEAD_SIZE // 2,), "axes": (HEAD_SIZE // 2,)}
    yield rope_stage(), rope | tables, {"num_heads": HEADS[0], "kv_num_heads": HEADS[1]}
    shapes: dict[str, tuple[int, ...]] = {"x": (-1, HIDDEN), "token_types": (-1,)}
    for bank, width in WIDTHS.items():
        shapes |= {f"{bank}_gate": (HIDDEN, EXPERTS), f"{bank}_bias": (EXPERTS,)}
        shapes |= {f"{bank}_gate_up": (EXPERTS, 2 * width, HIDDEN), f"{bank}_down": (EXPERTS, HIDDEN, width)}
    values = {"k": TOP_K, "norm_min": 1e-12}
    for vision in (False, True):
        for stage in stages(vision):
            attributes = {name: values[name] for name in stage.attributes}
            inputs = {name: shapes[name] for name in stage.inputs}
            yield stage, inputs, attributes
            shapes |= {o.name: tuple(max(size, -1) for size in o.shape) for o in stage.outputs(inputs, attributes)}


def compiled(
    arch: str, dtype: str, names: list[str], quick: bool
) -> Iterator[tuple[str, CompiledKernel, Mapping[str, int]]]:
    """Each kernel compiled for `arch`: its name with its tactic's number, the PTX, and what ptxas reports."""
    for stage, shapes, attributes in cases():
        if names and stage.name not in names:
            continue
        for number, tactic in enumerate(stage.tactics[: 1 if quick else None], start=1):
            kernel = compile_stage(stage, shapes, attributes, tactic, dtype, arch)
            yield f"{stage.name}.{number}", kernel, assemble(kernel, arch)


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default=",".join(TARGETS), help="architectures, as sm80,sm90; all by default")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16"))
    parser.add_argument("--stages", help="stages, as Rope,BankDown; all by default")
    parser.add_argument("--out", type=Path, help="write each kernel's PTX to OUT/ARCH/NAME.ptx")
    parser.add_argument("--quick", action="store_true", help="the first tactic of each stage only")
    arguments = parser.parse_args()
    names = arguments.stages.split(",") if arguments.stages else []
    if unknown := set(names) - {stage.name for stage, _, _ in cases()}:
        parser.error(f"--stages: unknown {', '.join(sorted(unknown))}")
    count = 0
    for arch in arguments.arch.split(","):
        try:
            for name, kernel, report in compiled(arch, arguments.dtype, names, arguments.quick):
                matrix = sorted(set(re.findall(r"\b(wgmma|tcgen05\.mma|mma\.sync)", kernel.ptx)))
                room = "" if fits(kernel, arch) else "  more shared memory than the card has: not offered"
                numbers = f"{report['registers']:4} regs {report['spilled']:5} B spilled {kernel.shared:7} B shared"
                print(f"{arch:6} {name:18} {numbers}  {' '.join(matrix) or '-'}{room}")
                count += 1
                if arguments.out:
                    target = arguments.out / arch / f"{name}.ptx"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(kernel.ptx)
        except (RuntimeError, UserError) as e:
            print(f"{arch}: {e}", file=sys.stderr)
            return 1
    print(f"{count} kernels compiled and assembled")
    return 0


if __name__ == "__main__":
    sys.exit(main())
