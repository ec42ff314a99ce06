"""Times of calls on a GPU, or on the CPU for a dry run, and the two ceilings that they are measured against."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

REPEATS = 20


@dataclass(frozen=True)
class Ceilings:
    """bandwidth: bytes/s of a copy on the device, counting those read and those written. rate: FLOP/s of a product."""

    bandwidth: float
    rate: float

    @classmethod
    def measured(cls, device: str, dtype: torch.dtype, small: bool) -> "Ceilings":
        """By a large copy, and by a large matrix product of random numbers in `dtype`.

        2 GiB for the copy, far beyond any cache, and little beside a model that fills the card.
        """
        count, side = (2**16, 64) if small else (2**28, 8192)
        source = torch.randn(count, device=device)
        target = torch.empty_like(source)
        copy = seconds([lambda: target.copy_(source)], device)
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        product = seconds([lambda: a @ b], device)
        return cls(2 * source.nbytes / copy, 2 * side**3 / product)

    def floor(self, nbytes: float, flops: float) -> float:
        """The least seconds for so many bytes and operations."""
        return max(nbytes / self.bandwidth, flops / self.rate)


def seconds(calls: Sequence[Callable[[], Any]], device: str) -> float:
    """Seconds of one call, the median of many; `calls` do the same on different data, so that no cache holds it.

    On a GPU all of them are captured in one graph, and its replays timed, so that launches leave no gaps; calls that
    can't be captured are timed one after another as they are.
    """
    if device == "cpu":
        return statistics.median(_clock(call) for call in calls)
    for call in calls[:3]:
        call()
    torch.cuda.synchronize()
    graph = _captured(calls)
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        if graph is not None:
            graph.replay()
        else:
            for call in calls:
                call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000 / len(calls))
    return statistics.median(times)


def _captured(calls: Sequence[Callable[[], Any]]) -> Any:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:  # it waits for the device somewhere
        torch.cuda.synchronize()
        return None
    return graph


def _clock(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite if anything is not a number."""
    error = ((found.double() - expected.double()).norm() / expected.double().norm()).item()
    return error if error == error else float("inf")
