"""Part b of gpu.py: the plugins' kernels at the released widths, against PyTorch and against what the card can do.

    python benchmarks/gpu_kernels.py --device cuda
    python benchmarks/gpu_kernels.py --device cuda --only sweep --seconds 60
    python benchmarks/gpu_kernels.py --device cpu --small       (Triton's interpreter, toy widths: a dry run)

Expert dispatch is run with weights in the kernels' dtype, in int4 and in fp8, whose bytes are what is counted. Prints
one JSON object a line. `floor` is the larger of the bytes that must move over the measured copy rate and of the
operations over the measured rate of matrix products; `of_floor` is floor over time. Errors are norms against float32
arithmetic on the same rounded weights, or on what the quantized values stand for; `choice_agreed` is the fraction of
tokens whose experts are those of torch.topk. One token comes first, then more. `sweep` times every tactic of the two
stages that read the experts' weights, alone: what TensorRT would choose by.
"""

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
from gpu_rows import emit


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Toy widths, for a dry run.")
@click.option("--only", multiple=True, type=click.Choice(["moe", "rope", "sweep"]))
@click.option("--seconds", default=60.0, show_default=True, help="For the sweep, which stops there.")
def main(device: str, small: bool, only: tuple[str, ...], seconds: float) -> None:
    """Measure and print."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before a kernel is imported
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import torch

    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = False
    # The interpreter's bfloat16 product is wrong.
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    from gpu_bench import FULL, SMALL, Bench
    from gpu_moe import MoeBench
    from gpu_rope import RopeBench
    from gpu_sweep import SweepBench
    from gpu_timing import Ceilings

    torch.manual_seed(0)
    given = torch, device, dtype, SMALL if small else FULL, Ceilings.measured(device, dtype, small)
    measures = {
        "ceilings": Bench(*given).ceilings_row,
        "moe": MoeBench(*given).moe_rows,
        "rope": RopeBench(*given).rope_rows,
        "sweep": partial(SweepBench(*given).sweep_rows, seconds),
    }
    for name in ("ceilings", *only) if only else measures:
        for row in guarded(name, measures[name]):
            emit(row, "kernels")


def guarded(name: str, measure: Callable[[], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The rows of one measurement; where it fails, what failed, and the others go on."""
    try:
        yield from measure()
    except Exception as e:
        traceback.print_exc()
        yield {"what": name, "error": f"{type(e).__name__}: {e}"}


if __name__ == "__main__":
    main()
