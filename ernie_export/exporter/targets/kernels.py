"""The plugins' kernels for a model, compiled for every architecture asked for, without a GPU; on all cores."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Event, Lock
from typing import Any

from ernie_export.common.errors import BuildFailed
from ernie_export.common.processor import usable_cores
from ernie_export.exporter.targets.workers.process import PYTHON, WorkerCrashed, call_worker
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.plugins import Sizes, kernel_specs
from ernie_export.graphs.ops.ptx import TARGETS, CompiledKernel

COMPILER = (*PYTHON, "ernie_export.exporter.targets.workers.kernel_compile")
Piece = tuple[str, int, int]  # architecture, index in `kernel_specs`, tactic
OnProgress = Callable[[float], None]  # called with the fraction done, from 0 to 1
Results = dict[Piece, dict[str, Any]]  # each piece's message from kernel_compile.py
RunPieces = Callable[[list[Piece], Sizes, str, OnProgress], Results]


def run_parallel(pieces: list[Piece], sizes: Sizes, dtype: str, on_progress: OnProgress) -> Results:
    """Run kernel_compile.py on all pieces, in as many processes as there are cores.

    Raises BuildFailed, naming a kernel that is not compiled.
    """
    run = _ParallelRun(pieces, sizes, dtype, on_progress)
    cores = min(usable_cores(), len(pieces))
    # Neighbours in the list take about as long: dealt out in turn, the parts do, too.
    with ThreadPoolExecutor(cores) as pool:
        parts = list(pool.map(run, (pieces[first::cores] for first in range(cores))))
    results = dict(result for part in parts for result in part)
    return {piece: results[piece] for piece in pieces}


class _ParallelRun:
    """What the threads of one `run_parallel` share; each calls it with its part of the pieces."""

    def __init__(self, pieces: list[Piece], sizes: Sizes, dtype: str, on_progress: OnProgress) -> None:
        self.total = len(pieces)
        self.sizes = sizes
        self.dtype = dtype
        self.on_progress = on_progress
        self.names = [plugin.name for plugin, _, _ in kernel_specs(sizes)]
        self.done = 0
        self.lock = Lock()
        self.failed = Event()

    def __call__(self, part: list[Piece]) -> list[tuple[Piece, dict[str, Any]]]:
        results = []
        request = {"sizes": asdict(self.sizes), "dtype": self.dtype, "work": part}
        try:
            for piece, message in zip(part, call_worker(COMPILER, request), strict=True):
                if self.failed.is_set():  # another process failed: nobody needs what this one does
                    break
                if "failed" in message:
                    self.failed.set()
                    arch, case, tactic = piece
                    kernel = f"kernel {self.names[case]} for {arch}, tactic {tactic}"
                    raise BuildFailed(f"{kernel}: not compiled: {message['failed']}")
                results.append((piece, message))
                with self.lock:
                    self.done += 1
                    self.on_progress(self.done / self.total)
        except WorkerCrashed as e:
            raise BuildFailed(f"kernels: expected them compiled by Triton, found that it crashed: {e}") from e
        return results


def compile_kernels(
    sizes: Sizes,
    dtype: str,
    architectures: tuple[str, ...],
    on_progress: OnProgress,
    run_pieces: RunPieces = run_parallel,
) -> dict[str, Kernels]:
    """Compile the kernels of every plugin.

    Args:
        sizes: The sizes of the model that kernels are compiled for.
        dtype: The graphs' dtype, such as "bfloat16".
        architectures: Names such as "sm90".
        on_progress: Called with the fraction done.
        run_pieces: Compiles single kernels.

    Returns:
        The kernels by architecture.

    Raises:
        BuildFailed: A kernel can't be compiled for the model's sizes, or no tactic makes it small enough.
    """
    # Architectures that are compiled for another's sake (see ptx.TARGETS) are compiled once.
    source = {number: arch for arch, number in reversed(TARGETS.items()) if arch in architectures}
    kernel_plugins = [plugin for plugin, _, _ in kernel_specs(sizes)]
    pieces = [
        (arch, case, tactic)
        for arch in source.values()
        for case, plugin in enumerate(kernel_plugins)
        for tactic in plugin.compiled_tactics
    ]
    results = run_pieces(pieces, sizes, dtype, on_progress)
    kernels = {}
    for arch in architectures:
        of_arch = {key[1:]: message for key, message in results.items() if key[0] == source[TARGETS[arch]]}
        for case, plugin in enumerate(kernel_plugins):
            messages = [message for (number, _), message in of_arch.items() if number == case]
            if not any("kernel" in message for message in messages):
                smallest = min(message["misfit"] for message in messages)
                raise BuildFailed(
                    f"kernel {plugin.name} for {arch}: expected a tactic within its shared memory, found {smallest} "
                    f"bytes at least for {sizes}"
                )
        compiled = [CompiledKernel(**message["kernel"]) for message in of_arch.values() if "kernel" in message]
        kernels[arch] = Kernels(dtype, tuple(compiled))
    return kernels
