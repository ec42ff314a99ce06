"""Tables of one run of benchmarks/compare.py: rates of all rounds, and the fastest export beside the fastest peer."""

from dataclasses import dataclass
from statistics import median
from typing import Any

from tools.docs.tables import table

WORKLOADS = ("prefill 512 text", "decode", "prefill 256 text + 1024 image")
TOGETHER = ("decode, 1 together", "decode, 4 together", "decode, 16 together")
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "Q8_0": 8, "int4": 4, "Q4_0": 4, "Q4_K_S": 4}  # of a contestant's weights
WIDTHS = {"not quantized": (16, 32), "8 bits": (8,), "4 bits": (4,), "any precision": (4, 8, 16, 32)}


@dataclass(frozen=True)
class Rate:
    """Tokens per second of one workload: of the median round, and of the slowest and the fastest."""

    median: float
    least: float
    most: float

    def overlaps(self, other: "Rate") -> bool:
        """Return whether some round of the one was as fast as some round of the other."""
        return self.least <= other.most and other.least <= self.most

    def __str__(self) -> str:
        if self.least == self.most:
            return speed(self.median)
        return f"{speed(self.median)} ({speed(self.least)}..{speed(self.most)})"


@dataclass(frozen=True)
class Lead:
    """The fastest export's rate as a multiple of the fastest peer's; clear if every round of the one beats the other's."""

    ratio: float
    peer: str
    clear: bool

    def __str__(self) -> str:
        return f"{self.ratio:.2f} × ({self.peer}{'' if self.clear else '; rounds overlap'})"


def rates(result: Any, contestant: str) -> dict[str, Rate | None]:
    """Return the rate of each workload; None where it failed."""
    seconds = result["seconds"][contestant]
    found: dict[str, Rate | None] = {}
    for name, tokens in result["tokens"].items():
        rounds = [tokens / one for one in seconds[name]]
        found[name] = Rate(tokens / median(seconds[name]), min(rounds), max(rounds)) if rounds else None
    return found


def comparison(result: Any, workloads: tuple[str, ...] = WORKLOADS) -> str:
    """Return the table of one run, a row for each contestant."""
    headers = ["tokens per second", *workloads, "peak RSS, MiB"]
    starts = result.get("seconds_to_first_token")  # older results have none
    if starts:
        headers.append("start to first token, s")
    rows = []
    for name in result["seconds"]:
        mib = result["rss_mib"].get(name)
        row = [name, *speeds(result, name, workloads), f"{mib:,.0f}" if mib else "fails"]
        if starts:
            row.append(f"{median(starts[name]):.2f}" if starts[name] else "fails")
        rows.append(row)
    return table(headers, rows)


def together(result: Any) -> str:
    """Return the table of sequences that are decoded together, with the last column as a multiple of the first."""
    rows = []
    for name in result["seconds"]:
        numbers = rates(result, name)
        one, most = numbers[TOGETHER[0]], numbers[TOGETHER[-1]]
        multiple = f"{most.median / one.median:.2f} ×" if one and most else ""
        rows.append([name, *speeds(result, name, TOGETHER), multiple])
    return table(["tokens per second of all sequences", *TOGETHER, "16 beside 1"], rows)


def lead(result: Any, workload: str, width: tuple[int, ...]) -> Lead | None:
    """Return how the fastest export stands beside the fastest peer, by medians.

    Both with weights of as many bits as `width` has; None where one of the two is missing, or fails.
    """
    numbers = {
        name: rate
        for name in result["seconds"]
        if any(BITS.get(part.strip(",")) in width for part in name.split())
        and (rate := rates(result, name)[workload]) is not None
    }
    exports = [rate for name, rate in numbers.items() if is_export(name)]
    peers = {name: rate for name, rate in numbers.items() if not is_export(name)}
    if not exports or not peers:
        return None
    ours = max(exports, key=lambda rate: rate.median)
    peer = max(peers, key=lambda name: peers[name].median)
    return Lead(ours.median / peers[peer].median, peer, not ours.overlaps(peers[peer]))


def is_export(contestant: str) -> bool:
    """Return whether a contestant is this runtime."""
    return contestant.startswith("ernie-export")


def leads(result: Any) -> str:
    """Return the table of the fastest exports beside the fastest peers of as many bits, in each workload."""
    rows = []
    for workload in (*WORKLOADS, *TOGETHER):
        found = [lead(result, workload, width) for width in WIDTHS.values()]
        if any(found):
            rows.append([workload, *("no peer" if one is None else str(one) for one in found)])
    return table(["fastest export beside the fastest peer", *WIDTHS], rows)


def starts(result: Any) -> str:
    """Return the sentence about the quickest start and the least memory of exports and of peers."""
    seconds = {name: median(found) for name, found in result["seconds_to_first_token"].items() if found}
    memory = result["rss_mib"]
    parts = []
    for label, exports in (("of the exports", True), ("of the peers", False)):
        names = [name for name in seconds if is_export(name) == exports]
        quick, small = min(names, key=seconds.__getitem__), min(names, key=memory.__getitem__)
        parts.append(f"{label} {quick} with {seconds[quick]:.2f} s, and {small} holds least, {memory[small]:,.0f} MiB")
    return f"From a process's start to its first token takes least: {'; '.join(parts)}."


def speeds(result: Any, contestant: str, workloads: tuple[str, ...]) -> list[str]:
    """Return a contestant's tokens per second in each workload; where there are none, whether it fails or was not run."""
    numbers = rates(result, contestant)
    failed = result["errors"].get(contestant, {})
    missing = {workload: "fails" if workload in failed or "" in failed else "not run" for workload in workloads}
    return [missing[workload] if (rate := numbers[workload]) is None else str(rate) for workload in workloads]


def speed(rate: float) -> str:
    """Return tokens per second with three digits."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.1f}"


def absent(result: Any) -> str:
    """Return a line for each contestant that did not load, with its error."""
    failed = {name: by[""] for name, by in result["errors"].items() if "" in by}
    lines = (f"- {name} did not load: {error} (-4 is an illegal instruction).\n" for name, error in failed.items())
    return "\n" + "".join(lines) if failed else ""
