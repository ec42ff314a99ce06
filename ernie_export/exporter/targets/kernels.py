"""The plugins' kernels for a model, compiled for every architecture asked for, without a GPU; on all cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from threading import Event, Lock
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.exporter.targets.workers.process import PYTHON, Crashed, answers
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.plugins import Sizes, kernel_specs
from ernie_export.graphs.ops.ptx import TARGETS, CompiledKernel

COMPILER = (*PYTHON, "ernie_export.exporter.targets.workers.kernel_compile")
Work = list[tuple[str, int, int]]  # architecture, number of the case (a plugin for some sizes), tactic


def compile_kernels(
    sizes: Sizes, dtype: str, architectures: tuple[str, ...], on_share: Callable[[float], None]
) -> dict[str, Kernels]:
    """Kernels by architecture; `on_share` is told how much is done, from 0 to 1.

    UserError names a kernel that can't be compiled for the model's sizes, or that no tactic makes small enough.
    """
    # Architectures that are compiled for another's sake (see ptx.TARGETS) are compiled once.
    source = {number: arch for arch, number in reversed(TARGETS.items()) if arch in architectures}
    plugins = [plugin for plugin, _, _ in kernel_specs(sizes)]
    work = [
        (arch, case, tactic)
        for arch in source.values()
        for case, plugin in enumerate(plugins)
        for tactic in range(1, len(plugin.tactics) + 1)
    ]
    done = spread(work, sizes, dtype, on_share)
    kernels = {}
    for arch in architectures:
        own = {key[1:]: answer for key, answer in done.items() if key[0] == source[TARGETS[arch]]}
        compiled = [CompiledKernel(**answer["kernel"]) for answer in own.values() if "kernel" in answer]
        for case, plugin in enumerate(plugins):
            found = [answer for (number, _), answer in own.items() if number == case]
            if not any("kernel" in answer for answer in found):
                least = min(answer["misfit"] for answer in found)
                raise UserError(
                    f"kernel {plugin.name} for {arch}: expected a tactic within its shared memory, found {least} bytes "
                    f"at least for {sizes}"
                )
        kernels[arch] = Kernels(dtype, tuple(compiled))
    return kernels


def spread(work: Work, sizes: Sizes, dtype: str, on_share: Callable[[float], None]) -> dict[Any, dict[str, Any]]:
    """Answers of kernel_compile.py by piece of work, from as many processes as there are cores."""
    count, lock, failed = 0, Lock(), Event()
    plugins = [plugin for plugin, _, _ in kernel_specs(sizes)]

    def run(part: Work) -> list[tuple[tuple[str, int, int], dict[str, Any]]]:
        nonlocal count
        found, request = [], {"sizes": asdict(sizes), "dtype": dtype, "work": part}
        try:
            for piece, answer in zip(part, answers(COMPILER, request), strict=True):
                if failed.is_set():  # another process met it: what this one does is of no use
                    break
                if "failed" in answer:
                    failed.set()
                    arch, case, tactic = piece
                    plugin = plugins[case].name
                    raise UserError(f"kernel {plugin} for {arch}, tactic {tactic}: not compiled: {answer['failed']}")
                found.append((piece, answer))
                with lock:
                    count += 1
                    on_share(count / len(work))
        except Crashed as e:
            raise UserError(f"kernels: expected them compiled by Triton, found that it crashed: {e}") from e
        return found

    cores = min(len(os.sched_getaffinity(0)), len(work))
    # Neighbours in the list take about as long: dealt out in turn, the parts do, too.
    with ThreadPoolExecutor(cores) as pool:
        parts = list(pool.map(run, (work[first::cores] for first in range(cores))))
    found = dict(answer for part in parts for answer in part)
    return {piece: found[piece] for piece in work}
