"""One decode step's inputs and outputs in device memory: one block, written and read in one piece each.

Its addresses never change, so that the step of so many sequences is captured as a CUDA graph once and replayed. The
host writes a few numbers, and reads a few hundred bytes for each sequence: the top-k logits.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Self

import numpy as np

from ernie_export.runtime.engines.device.memory import ALIGNMENT, Memory
from ernie_export.runtime.logits import DenseLogits, Logits, TopK, TopKLogits


@dataclass(frozen=True)
class DeviceTensor:
    """An array in device memory."""

    address: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """The buffers of one decode step.

    Attributes:
        memory: Where they lie.
        num_sequences: Sequences that decode together.
        top_k: Highest logits of each that the device finds; 0 where all logits are read.
        inputs: int64 tensors by name, in the order in which they lie.
        outputs: The same; ids are int64, logits, values and total float32. All but logits are empty if top_k is 0.
        end: Where the block ends.
    """

    memory: Memory
    num_sequences: int
    top_k: int
    inputs: dict[str, DeviceTensor]
    outputs: dict[str, DeviceTensor]
    end: int

    @classmethod
    def allocate(cls, memory: Memory, num_sequences: int, vocab_size: int, top_k: int) -> Self:
        """Allocate the block of a step; `free` gives it back.

        Args:
            memory: The device's memory.
            num_sequences: Sequences that decode together.
            vocab_size: Logits of a sequence.
            top_k: As the attribute.

        Raises:
            UserError: If there is too little memory.
        """
        n = num_sequences
        inputs = {"input_ids": (n, 1), "position_ids": (3, n, 1), "past_lengths": (n,), "lengths": (n,)}
        outputs = {"logits": (n, vocab_size), "ids": (n, top_k), "values": (n, top_k), "total": (n,)}
        shapes: dict[str, tuple[int, ...]] = inputs | outputs
        item_bytes = {name: 8 if name in inputs or name == "ids" else 4 for name in shapes}
        starts = aligned_offsets([item_bytes[name] * math.prod(shape) for name, shape in shapes.items()])
        address = memory.allocate(starts[-1])
        tensors = {
            name: DeviceTensor(address + start, shape)
            for (name, shape), start in zip(shapes.items(), starts, strict=False)
        }
        return cls(
            memory=memory,
            num_sequences=num_sequences,
            top_k=top_k,
            inputs={name: tensors[name] for name in inputs},
            outputs={name: tensors[name] for name in outputs},
            end=address + starts[-1],
        )

    @property
    def address(self) -> int:
        """Where the block begins."""
        return self.inputs["input_ids"].address

    def write(self, tokens: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> None:
        """Copy a step's inputs to the device: tokens (n,), positions (3, n), lengths (n,) of the past."""
        packed = np.zeros(self.outputs["logits"].address - self.address, np.uint8)
        arrays = (tokens, positions, lengths, np.ones(self.num_sequences, np.int64))
        for tensor, array in zip(self.inputs.values(), arrays, strict=True):
            start = tensor.address - self.address
            packed[start : start + 8 * array.size] = np.ascontiguousarray(array, np.int64).view(np.uint8).reshape(-1)
        self.memory.write(self.address, packed)

    def logits(self) -> list[Logits]:
        """Read each sequence's logits: the top-k, and the others only if a sampler needs them; or all at once.

        The kernel that found the top-k need not keep the order of equal values: they are sorted by id here.
        """
        if not self.top_k:
            return [DenseLogits(self.fetch(sequence)) for sequence in range(self.num_sequences)]
        start = self.outputs["ids"].address
        size = self.num_sequences * self.top_k
        block = self.memory.read(start, self.end - start)
        ids = np.frombuffer(block, np.int64, size).reshape(self.num_sequences, -1)
        values = np.frombuffer(block, np.float32, size, self.outputs["values"].address - start).reshape(ids.shape)
        totals = np.frombuffer(block, np.float32, self.num_sequences, self.outputs["total"].address - start)
        logits: list[Logits] = []
        for sequence in range(self.num_sequences):
            order = np.lexsort((ids[sequence], -values[sequence]))
            best = TopK(ids[sequence][order], values[sequence][order], float(totals[sequence]))
            logits.append(TopKLogits(best, partial(self.fetch, sequence)))
        return logits

    def fetch(self, sequence: int) -> np.ndarray:
        """Copy all logits of one sequence from the device: (vocabulary,) float32."""
        logits = self.outputs["logits"]
        nbytes = 4 * logits.shape[1]
        return np.frombuffer(self.memory.read(logits.address + nbytes * sequence, nbytes), np.float32)

    def free(self) -> None:
        """Give the block back."""
        self.memory.free(self.address)


def aligned_offsets(sizes: list[int]) -> list[int]:
    """Return where parts of these sizes begin when each is aligned, and where the last ends."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return offsets
