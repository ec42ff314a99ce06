"""No kernel reads or writes outside its tensors, whatever its integer inputs hold.

TensorRT times the tactics of a plugin on inputs of its own choice while it builds, and an access out of bounds would
end the build, or spoil another tensor.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.kernel_plugin import KernelPlugin, launch

pytestmark = pytest.mark.usefixtures("interpreted")
BIG = 2**31 - 1
FILLS: dict[str, Callable[[Any, tuple[int, ...]], np.ndarray]] = {
    "mixed": lambda rng, shape: np.where(
        rng.integers(0, 2, shape),
        rng.choice([0, -1, 1, -(2**31), BIG, 0x3F800000, 2], shape),
        rng.integers(0, 127, shape),
    ),
    "random bits": lambda rng, shape: rng.integers(-(2**31), BIG, shape, endpoint=True),
    "zero": lambda rng, shape: np.zeros(shape),
    "negative": lambda rng, shape: np.full(shape, -1),
    "huge": lambda rng, shape: np.full(shape, BIG),
}
TOKENS = (1, 3)  # a decode step of few has kernels of its own
SIZES = plugins.Sizes(
    hidden=32, experts=5, widths=(24, 16), k=3, norm_min=1e-12, heads=(3, 1), head_dim=12, capacity=200
)
STORED = plugins.Stored("Quantized", 4, 16)
QUANTIZED = plugins.Sizes(
    hidden=32, experts=5, widths=(16, 32), k=3, norm_min=1e-12, heads=(3, 1), head_dim=12, stored=STORED,
    linears=(plugins.Linear(32, 40, STORED),),
)  # fmt: skip


class Bounds:
    """Which addresses a kernel may touch: those of the tensors that it was given."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int]] = []
        self.accesses = 0

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        self.ranges.append((tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()))
        return tensor

    def check(self, addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        """Raise AssertionError for an access of `size` bytes, not masked out, that no tensor has whole."""
        touched = np.broadcast_to(addresses, mask.shape)[mask].astype(np.uint64)
        self.accesses += touched.size
        inside = np.zeros(touched.shape, bool)
        for start, end in self.ranges:
            inside |= (touched >= np.uint64(start)) & (touched + np.uint64(size) <= np.uint64(end))
        assert inside.all(), f"{(~inside).sum()} accesses out of bounds"


@pytest.fixture
def bounds(monkeypatch: pytest.MonkeyPatch) -> Bounds:
    """The interpreter's loads and stores are held to these bounds before they are made.

    Every load and store of a kernel becomes one of these two calls of the builder, with pointers and mask as arrays.
    """
    from triton.runtime.interpreter import interpreter_builder as builder

    bounds = Bounds()
    load = builder.create_masked_load
    store = builder.create_masked_store

    def checked_load(pointers: Any, mask: Any, *others: Any) -> Any:
        bounds.check(pointers.data, mask.data, max(pointers.get_element_ty().primitive_bitwidth // 8, 1))
        return load(pointers, mask, *others)

    def checked_store(pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        bounds.check(pointers.data, mask.data, value.data.dtype.itemsize)
        return store(pointers, value, mask, *others)

    monkeypatch.setattr(builder, "create_masked_load", checked_load)
    monkeypatch.setattr(builder, "create_masked_store", checked_store)
    return bounds


def cases() -> Iterator[tuple[KernelPlugin, Any, Any]]:
    """Yield every plugin with an integer input; of those for weights of 4 bits some."""
    yield from (case for case in plugins.kernel_specs(SIZES) if {"int32", "int64"} & {*case[0].inputs.values()})
    some = ("QuantizedLinear", "QuantizedDispatchDown", "QuantizedGateUpOrRoute", "QuantizedDownOrCombine")
    yield from (case for case in plugins.kernel_specs(QUANTIZED) if case[0].name in some)


CASES = {plugin.name: (plugin, shapes, attributes) for plugin, shapes, attributes in cases()}


def sizes_of(name: str, shape: Any, tokens: int) -> Iterator[int]:
    """Yield the sizes of an input: for each that varies the number of tokens, or of slots."""
    varying = iter([1, tokens] if shape.count(-1) == 2 else [tokens * SIZES.k if name in BY_SLOT else tokens])
    yield from (next(varying) if size < 0 else size for size in shape)


BY_SLOT = ("act", "few_act", "out", "order")


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", CASES)
def test_a_kernel_stays_within_its_tensors(bounds, name, fill, tokens):
    plugin, shapes, attributes = CASES[name]
    rng = np.random.default_rng(0)
    inputs = {}
    for key, kind in plugin.inputs.items():
        shape = tuple(sizes_of(key, shapes[key], tokens))
        if kind in ("int32", "int64"):
            values = FILLS[fill](rng, shape).astype(kind)
            inputs[key] = torch.from_numpy(values)
        else:
            inputs[key] = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    for tensor in inputs.values():
        bounds.add(tensor)

    def empty(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
        return bounds.add(torch.zeros(shape, dtype=getattr(torch, dtype)))

    with np.errstate(all="ignore"):
        launch(plugin, inputs, attributes, plugin.tactics[0], empty)
    idle = tokens == 1 and name in ("ExpertsGateUp", "ExpertsDown")
    assert (bounds.accesses == 0) == idle, "nothing was checked, or what others have done was done again"
