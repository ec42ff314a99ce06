"""Which global accesses of a kernel's PTX have addresses made of numbers that it has loaded.

Every register has the bounds that it may lack, "low" and "high": those of what it is computed from. A number from
global memory lacks both; `max` with a bounded operand gives it the lower one, `min` the upper one. What any thread
stores in shared memory counts for all that is loaded from there. Conditions are not followed: a number chosen by a
condition is one of those chosen from. A register is the same at every place in the program, so that loops need no
order. A bound is not compared with the tensor's size: the interpreter's tests do that.
"""

import re
from collections import defaultdict
from collections.abc import Iterator

UNBOUNDED = frozenset({"low", "high"})
STATEMENT = re.compile(r"(?:@!?%p\d+\s+)?([a-z][\w.:]*)\s+(.*)", re.DOTALL)
REGISTER = re.compile(r"%(?!p\d)[a-zA-Z_]\w*(?:\.[xyz])?")
ADDRESS = re.compile(r"\[\s*(%\w+)[^\]]*\]")
ACCESSES = ("ld.global", "st.global", "atom.global", "red.global", "cp.async.cg.", "cp.async.ca.")


def statements(ptx: str) -> Iterator[tuple[str, str]]:
    """Yield operation and operands of each statement."""
    body = re.sub(r"//[^\n]*", "", ptx[ptx.index("\n{") :])
    for text in re.split(r"[;\n]", body):
        match = STATEMENT.fullmatch(text.strip().lstrip("{ ").strip())
        if match and "%" in match[2]:
            yield match[1], match[2]


def split(operands: str) -> tuple[list[str], list[str]]:
    """Return the registers that a statement writes, and those that it reads."""
    target, _, rest = operands.partition("}" if operands.startswith("{") else ",")
    return REGISTER.findall(target), REGISTER.findall(rest)


def bounded(operation: str, sources: list[frozenset[str]]) -> frozenset[str]:
    """Return what the result of an operation lacks."""
    lacks: frozenset[str] = frozenset().union(*sources)
    if all(sources):  # no operand is bounded
        return lacks
    if operation.startswith("min.u"):
        return frozenset()
    if operation.startswith("min."):
        return lacks - {"high"}
    return lacks - {"low"} if operation.startswith("max.s") else lacks


def unbounded_accesses(ptx: str) -> tuple[int, list[str]]:
    """Return the number of global accesses, and those whose addresses lack a bound."""
    program = list(statements(ptx))
    lacks: dict[str, frozenset[str]] = defaultdict(frozenset)
    before = -1
    while before != (before := sum(map(len, lacks.values()))):
        for operation, operands in program:
            if operation.startswith(("st.", "red.", "bra", "bar", "cp.async", "stmatrix")):
                if operation.startswith(("st.shared", "stmatrix", "st.local")):
                    lacks["shared"] |= frozenset().union(*(lacks[name] for name in REGISTER.findall(operands)))
                elif operation.startswith("cp.async"):
                    lacks["shared"] |= UNBOUNDED
                continue
            targets, sources = split(operands)
            if operation.startswith(("ld.global", "atom.")):
                found = UNBOUNDED
            elif operation.startswith(("ld.shared", "ld.local", "ldmatrix")):
                found = lacks["shared"]
            elif operation.startswith("ld.param"):
                found = frozenset()
            elif operation.startswith(("min.", "max.")) and len(sources) < 2:
                found = bounded(operation, [lacks[sources[0]], frozenset()])  # the other operand is a number
            else:
                found = bounded(operation, [lacks[name] for name in sources])
            for target in targets:
                lacks[target] |= found
    accesses = [(operation, operands) for operation, operands in program if operation.startswith(ACCESSES)]
    wrong = [f"{operation} {operands}" for operation, operands in accesses if lacks[ADDRESS.findall(operands)[-1]]]
    return len(accesses), wrong
