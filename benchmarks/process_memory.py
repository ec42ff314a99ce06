"""Memory of a process over time, by what it is made of.

Resident memory counts pages of mapped files, which are the page cache's and cost nothing when they are dropped, beside
anonymous pages, which the process alone holds. Linux tells them apart in /proc/PID/status (RssAnon, RssFile).
"""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 2**20
INTERVAL = 0.02  # seconds between samples


@dataclass(frozen=True)
class Sample:
    """Bytes `seconds` after the start: of the process's anonymous and file pages, and of the machine's page cache."""

    seconds: float
    anon: int
    file: int
    page_cache: int


def sample(pid: int, started: float) -> Sample | None:
    """One sample; None where the process has ended."""
    try:
        status = read_fields(Path(f"/proc/{pid}/status"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "RssAnon" not in status:  # a process that has ended, and was not waited for
        return None
    # RssShmem counts pages that no file on a disk holds.
    anon = status["RssAnon"] + status["RssShmem"]
    now = time.perf_counter() - started
    return Sample(now, anon, status["RssFile"], read_fields(Path("/proc/meminfo"))["Cached"])


def read_fields(path: Path) -> dict[str, int]:
    """The fields of a /proc file that are given in kB, in bytes."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def watch(process: subprocess.Popen, interval: float = INTERVAL) -> list[Sample]:
    """Samples until the process ends; RuntimeError if it fails."""
    started = time.perf_counter()
    samples = []
    while process.poll() is None:
        if (found := sample(process.pid, started)) is not None:
            samples.append(found)
        time.sleep(interval)
    if process.returncode:
        raise RuntimeError(f"{process.args}: exit {process.returncode}")
    return samples


def peak(samples: Sequence[Sample]) -> tuple[int, int]:
    """The most anonymous bytes, and the most file bytes, of any sample."""
    return max((s.anon for s in samples), default=0), max((s.file for s in samples), default=0)


def proportional(pid: int) -> int:
    """Resident bytes of a process, a page that it maps twice counted once (Pss; takes long for large processes)."""
    return read_fields(Path(f"/proc/{pid}/smaps_rollup"))["Pss"]
