"""Which of a kernel's pointers each global access of its PTX goes by, and how many bytes a thread moves with it.

Every register has the pointers that it may be computed from, by the number of the kernel's parameter. Numbers loaded
from global memory have none. What lies in shared memory may be any pointer that was stored there, so an access counts
for every pointer that its address may be made of. Registers are followed as in ptx_addresses.py: a statement in a loop
stands for one turn.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from ernie_export.graphs.ops.ptx import ENTRY, PARAMETER
from tests.graphs.ops.ptx_addresses import ACCESSES, REGISTER, split, statements

BRACKETS = re.compile(r"\[([^\]]*)\]")
WIDTH = re.compile(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)")
COPIED = re.compile(r"\]\s*,\s*(0x[0-9a-fA-F]+|\d+)")


@dataclass(frozen=True)
class Access:
    """A statement that may read or write memory behind one of the kernel's pointers.

    Attributes:
        pointer: The number of the kernel's parameter.
        statement: Operation and operands, as they stand in the text.
        nbytes: What a thread loads or copies to shared memory; 0 for all else.
    """

    pointer: int
    statement: str
    nbytes: int

    @property
    def is_copy(self) -> bool:
        """Whether it copies to shared memory without the registers."""
        return self.statement.startswith("cp.async.")


def pointers_of_registers(ptx: str) -> dict[str, frozenset[int]]:
    """Return for each register the parameters whose pointers it may be computed from."""
    entry = ENTRY.search(ptx)
    assert entry is not None
    pointers = {name: i for i, (kind, name) in enumerate(PARAMETER.findall(entry[2])) if kind == "u64"}
    program = list(statements(ptx))
    found: dict[str, frozenset[int]] = defaultdict(frozenset)
    before = -1
    while before != (before := sum(map(len, found.values()))):
        for operation, operands in program:
            targets, sources = split(operands)
            if operation.startswith(("st.shared", "stmatrix")):
                targets, sources = ["shared"], REGISTER.findall(operands)
            elif operation.startswith(("ld.shared", "ldmatrix")):
                sources = ["shared"]
            elif operation.startswith("ld.param"):
                parameter = BRACKETS.findall(operands)[0].strip()
                if parameter in pointers:
                    found[targets[0]] |= {pointers[parameter]}
                continue
            elif "[" in operands:
                continue
            for target in targets:
                found[target] |= frozenset().union(*(found[name] for name in sources))
    return found


def loaded_bytes(operation: str, operands: str) -> int:
    """Return the bytes that a thread loads or copies by a statement; 0 for an operation of another kind."""
    if operation.startswith(("cp.async.cg.", "cp.async.ca.")):
        size = COPIED.findall(operands)
        return int(size[-1], 0) if size else 0
    match = WIDTH.fullmatch(operation)
    return int(match[1] or 1) * int(match[2]) // 8 if match else 0


def pointer_accesses(ptx: str) -> Iterator[Access]:
    """Yield every access of global memory. Raise ValueError for an address that is made of no pointer."""
    pointers = pointers_of_registers(ptx)
    for operation, operands in statements(ptx):
        names = [name for inside in BRACKETS.findall(operands) for name in REGISTER.findall(inside)]
        used = frozenset().union(*(pointers[name] for name in names))
        if operation.startswith(ACCESSES) and not used:
            raise ValueError(f"{operation} {operands}: expected an address made of one of the kernel's pointers")
        for pointer in sorted(used):
            yield Access(pointer, f"{operation} {operands}", loaded_bytes(operation, operands))


def moved_bytes(ptx: str, pointer: int) -> tuple[set[int], int]:
    """Return the bytes of each access by a pointer, and of all of them by all threads of a program."""
    sizes = [access.nbytes for access in pointer_accesses(ptx) if access.pointer == pointer]
    (threads,) = re.findall(r"\.reqntid (\d+)", ptx)
    return set(sizes), int(threads) * sum(sizes)
