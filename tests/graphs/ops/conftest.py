"""Triton's interpreter for the kernel tests: the same kernels, run by NumPy on PyTorch's CPU tensors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch


@pytest.fixture(scope="module")
def interpreted() -> None:
    """Kernels run in the interpreter: `tests/conftest.py` asks for it before Triton is imported."""
    from triton.language import zeros
    from triton.runtime.interpreter import InterpretedFunction

    from ernie_export.graphs.ops.moe_dispatch import kernel_experts, kernel_route
    from ernie_export.graphs.ops.mrope import kernel

    for function in (kernel.rope, kernel_route.route, kernel_experts.gate_up, zeros):
        assert isinstance(function, InterpretedFunction), "imported before it was asked for, to be compiled"


@pytest.fixture(scope="session")
def unwritten() -> "Callable[[tuple[int, ...], str], torch.Tensor]":
    """Makes outputs that show where a kernel did not write: NaN, or an index far outside of every tensor."""

    import torch

    def empty(shape: tuple[int, ...], dtype: str) -> "torch.Tensor":
        kind = getattr(torch, dtype)
        return torch.full(shape, float("nan") if kind.is_floating_point else 2**30, dtype=kind)

    return empty


@pytest.fixture
def reversed_programs(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that makes the interpreter run a grid's programs from the last to the first."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    forward = builder.set_grid_idx

    def backward(*index: int) -> None:
        forward(*(size - 1 - i for size, i in zip(builder.grid_dim, index, strict=True)))

    return lambda: monkeypatch.setattr(builder, "set_grid_idx", backward)
