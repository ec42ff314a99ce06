"""One decode step's inputs and outputs in device memory: one block, written and read in one piece each.

Its addresses never change, so that a step of so many rows is captured as a CUDA graph once and replayed. The host
writes a few numbers, and reads a few hundred bytes a row: the best candidates.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np

from ernie_export.runtime.engines.device.memory import ALIGNMENT, Memory
from ernie_export.runtime.logits import DenseLogits, Logits, TopK, TopKLogits

BEST = 64  # candidates of a row


@dataclass(frozen=True)
class Step:
    """A step of so many rows; `best` candidates of each, 0 where whole rows are read.

    inputs, outputs: name -> address and shape; int64 but for logits, values and total, which are float32. graph: what
    replays the captured step.
    """

    memory: Memory
    rows: int
    best: int
    address: int
    inputs: dict[str, tuple[int, tuple[int, ...]]]
    outputs: dict[str, tuple[int, tuple[int, ...]]]
    input_bytes: int
    best_bytes: int
    graph: Any = None

    @classmethod
    def allocate(cls, memory: Memory, rows: int, vocabulary: int, best: int, graph: Any = None) -> Self:
        """A step's block; `free` gives it back."""
        inputs = {"input_ids": (rows, 1), "position_ids": (3, rows, 1), "past_lengths": (rows,), "lengths": (rows,)}
        outputs = {"logits": (rows, vocabulary), "ids": (rows, best), "values": (rows, best), "total": (rows,)}
        sizes = [(8 if name in (*inputs, "ids") else 4) * int(np.prod(s)) for name, s in (inputs | outputs).items()]
        starts = offsets(sizes)
        base = memory.allocate(starts[-1])
        places = {
            name: (base + start, shape)
            for (name, shape), start in zip((inputs | outputs).items(), starts, strict=False)
        }
        first, last = len(inputs), len(inputs) + 1  # logits lie between what is written and what is read
        given = {name: places[name] for name in inputs}
        made = {name: places[name] for name in outputs}
        return cls(memory, rows, best, base, given, made, starts[first], starts[-1] - starts[last], graph)

    def write(self, tokens: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> None:
        """Copy a step's inputs to the device: tokens (n,), positions (3, n), lengths (n,) of the past."""
        packed = np.zeros(self.input_bytes, np.uint8)
        arrays = (tokens, positions, lengths, np.ones(self.rows, np.int64))
        for (address, _), array in zip(self.inputs.values(), arrays, strict=True):
            start = address - self.address
            packed[start : start + 8 * array.size] = np.ascontiguousarray(array, np.int64).view(np.uint8).reshape(-1)
        self.memory.write(self.address, packed)

    def topk_logits(self) -> list[Logits]:
        """Read each row's top-k logits; the others are fetched only if a sampler needs them.

        The kernel that made them need not keep the order of equal values: they are sorted by id here.
        """
        start, size = self.outputs["ids"][0], self.rows * self.best
        block = self.memory.read(start, self.best_bytes)
        ids = np.frombuffer(block, np.int64, size).reshape(self.rows, -1)
        values = np.frombuffer(block, np.float32, size, self.outputs["values"][0] - start).reshape(self.rows, -1)
        totals = np.frombuffer(block, np.float32, self.rows, self.outputs["total"][0] - start)
        rows: list[Logits] = []
        for row in range(self.rows):
            order = np.lexsort((ids[row], -values[row]))
            best = TopK(ids[row][order], values[row][order], float(totals[row]))
            rows.append(TopKLogits(best, partial(self.logits, row)))
        return rows

    def dense_logits(self) -> list[Logits]:
        """Read all logits of each row."""
        return [DenseLogits(self.logits(row)) for row in range(self.rows)]

    def logits(self, row: int) -> np.ndarray:
        """A row's logits (vocabulary,) float32."""
        address, (_, vocabulary) = self.outputs["logits"]
        return np.frombuffer(self.memory.read(address + 4 * vocabulary * row, 4 * vocabulary), np.float32)

    def free(self) -> None:
        """Give the block back."""
        self.memory.free(self.address)


def offsets(sizes: list[int]) -> list[int]:
    """Where parts of these sizes begin when each is aligned, and where the last ends."""
    return [0, *np.cumsum([-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]).tolist()]
