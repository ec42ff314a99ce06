"""Decoder layers whose weights are in memory only while conversations pass through them, each read once for all."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch


class StreamedLayer:
    """A layer of the reference without weights.

    Attributes:
        module: The layer.
    """

    def __init__(self, module: torch.nn.Module, fill: Callable[[str], None]) -> None:
        """Take a layer whose parameters are on the device "meta", and a function that reads one by its name in it."""
        self.module = module
        self._fill = fill
        self._shapes = {name: parameter.shape for name, parameter in module.named_parameters()}

    def load(self) -> None:
        """Read the weights."""
        for name in self._shapes:
            self._fill(name)

    def free(self) -> None:
        """Forget the weights."""
        for name, shape in self._shapes.items():
            owner, _, last = name.rpartition(".")
            empty = torch.nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)
            self.module.get_submodule(owner)._parameters[last] = empty


class LayerSync:
    """Synchronizes conversations, each in a thread, before and after each decoder layer; one computes at a time."""

    def __init__(self, layers: list[StreamedLayer], parties: int) -> None:
        """Register hooks on the layers; `parties` conversations pass them in order."""
        self._layers = layers
        self._next = 0
        self._computing = threading.Lock()
        self._before = threading.Barrier(parties, self._load)
        self._behind = threading.Barrier(parties, self._free)
        self._hooks = [layer.module.register_forward_pre_hook(lambda *_: self._wait(self._before)) for layer in layers]
        self._hooks += [layer.module.register_forward_hook(lambda *_: self._wait(self._behind)) for layer in layers]

    def synchronized(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that computes in turn with the others; if one fails, the others end with it."""

        def computed(*arguments: Any, **named: Any) -> Any:
            try:
                with self._computing:
                    return function(*arguments, **named)
            except BaseException:
                self._before.abort()
                self._behind.abort()
                raise

        return computed

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _wait(self, barrier: threading.Barrier) -> None:
        self._computing.release()
        try:
            barrier.wait()
        finally:
            self._computing.acquire()

    def _load(self) -> None:
        self._layers[self._next].load()

    def _free(self) -> None:
        self._layers[self._next].free()
        self._next = (self._next + 1) % len(self._layers)


def raise_first(runs: Iterable[Future[Any]]) -> None:
    """Raise what made a run fail, if one did, not that others could not go on without it."""
    errors = [error for error in (run.exception() for run in runs) if error is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error


def free_memory() -> int:
    """Return the bytes of memory that programs may take, pages that only cache files included (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
