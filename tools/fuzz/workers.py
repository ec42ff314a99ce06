"""Inputs tried in processes of their own, so that a crash, a hang or a flood of memory is seen and survived.

A worker says over a pipe which input it begins and how that ended. Whoever is silent for too long is killed and has
hung; whose pipe closes has crashed; the next worker goes on behind the input that did it.
"""

import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADDRESS_SPACE = 6 * 2**30
STARTING = 120.0  # seconds that a worker may take to import everything and make its files


@dataclass(frozen=True)
class Job:
    """Inputs `first` to `last` (excluded) of a kind."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Finding:
    """What no input may cause. `what` names the exception and the place that raised it, or the signal, or "hang"."""

    kind: str
    number: int
    what: str
    detail: str


@dataclass
class Tally:
    """How the inputs of one kind ended.

    seconds: processor time of all; slowest: and of the slowest with its number; peak: the most memory, MiB, likewise.
    """

    answered: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: tuple[float, int] = (0.0, -1)
    peak: tuple[int, int] = (0, -1)

    @property
    def inputs(self) -> int:
        return self.answered + self.refused


def try_all(
    jobs: Iterable[Job], time_limit: float, address_space: int = ADDRESS_SPACE, program: Path = Path(__file__)
) -> tuple[dict[str, Tally], list[Finding]]:
    """Try the inputs of all jobs, one worker at a time.

    Args:
        jobs: What to try.
        time_limit: Seconds for one input.
        address_space: Bytes that a worker may map.
        program: The worker's program.
    """
    waiting = list(jobs)
    tallies = {job.kind: Tally() for job in waiting}
    findings: list[Finding] = []
    while waiting:
        scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared_memory()))
        try:
            waiting = run_worker(waiting, scratch, time_limit, address_space, tallies, findings, program)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return tallies, findings


def shared_memory() -> str | None:
    """A folder in memory, where exports need not wait for a disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def run_worker(
    jobs: list[Job],
    scratch: Path,
    time_limit: float,
    address_space: int,
    tallies: dict[str, Tally],
    findings: list[Finding],
    program: Path,
) -> list[Job]:
    """One worker's life; returns the jobs that it left."""
    reader, writer = os.pipe()
    command = [sys.executable, str(program), str(writer), str(scratch), str(address_space)]
    with (scratch / "stderr").open("wb") as stderr:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr, pass_fds=[writer])
    os.close(writer)
    assert worker.stdin is not None
    worker.stdin.write(json.dumps([[j.kind, j.first, j.last] for j in jobs]).encode())
    worker.stdin.close()
    at: tuple[str, int] | None = None
    hung = False
    for event in events(reader, worker.pid, time_limit):
        if event is None:
            hung = True
            worker.kill()
        elif event[0] == "begin":
            at = (event[1], event[2])
        elif event[0] == "end":
            record(tallies[event[1]], findings, *event[1:])
    os.close(reader)
    status = worker.wait()
    printed = (scratch / "stderr").read_text(errors="replace")
    if status == 0 and not hung:
        if "Traceback" in printed:
            findings.append(Finding("any", -1, "a traceback was printed", printed[-4000:]))
        return []
    if at is None:
        raise RuntimeError(f"a worker ended with {status} before its first input: {printed[-2000:]}")
    kind, number = at
    name = "hang" if hung else signal.Signals(-status).name if status < 0 else f"exit {status}"
    findings.append(Finding(kind, number, name, printed[-4000:]))
    index = next(i for i, job in enumerate(jobs) if job.kind == kind and job.first <= number < job.last)
    rest = Job(kind, number + 1, jobs[index].last)
    return [rest, *jobs[index + 1 :]] if rest.first < rest.last else jobs[index + 1 :]


def events(reader: int, pid: int, time_limit: float) -> Iterator[Any]:
    """Lines of the pipe as JSON; ends with the pipe. None, once, where worker `pid` is silent for too long.

    That is for `time_limit` seconds of its own processor time, or ten times as long by the clock: a busy machine is no
    hang.
    """
    pending = b""
    limit = STARTING
    heard = time.monotonic()
    spent = 0.0
    while True:
        if not select.select([reader], [], [], 1.0)[0]:
            if time.monotonic() - heard > 10 * limit or processor_time(pid) - spent > limit:
                yield None
                return
            continue
        piece = os.read(reader, 65536)
        if not piece:
            return
        limit = time_limit
        heard = time.monotonic()
        spent = processor_time(pid)
        *lines, pending = (pending + piece).split(b"\n")
        yield from map(json.loads, lines)


def processor_time(pid: int) -> float:
    """Seconds of processor time that a process has used; 0 for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def record(
    tally: Tally, findings: list[Finding], kind: str, number: int, how: str, what: str, seconds: float, memory: int
) -> None:
    """Count one input."""
    if how == "finding":
        findings.append(Finding(kind, number, *what.split("\n", 1)))
    elif how == "answered":
        tally.answered += 1
    else:
        tally.refused += 1
    tally.seconds += seconds
    tally.slowest = max(tally.slowest, (seconds, number))
    tally.peak = max(tally.peak, (memory, number))


def outcome(attempt: Any, data: bytes) -> tuple[str, str]:
    """("answered" | "refused" | "finding", what was found)."""
    from ernie_export.common.errors import UserError

    try:
        attempt(data)
        return "answered", ""
    except UserError as e:
        line = str(e)
        if line and line.isprintable():
            return "refused", ""
        return "finding", f"not one printable line\n{line!r}"
    except BaseException as e:
        frames = traceback.extract_tb(e.__traceback__)
        ours = [f for f in frames if "/site-packages/" not in f.filename and "/lib/python" not in f.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
        return "finding", f"{type(e).__name__} in {place}\n{''.join(traceback.format_exception(e))[-4000:]}"


def worker(channel: int, scratch: Path, address_space: int) -> None:
    """Read jobs from stdin, try their inputs, and report on each."""
    sys.path.insert(0, str(Path(__file__).parent))
    from kinds import Scratch

    jobs = [Job(*job) for job in json.load(sys.stdin)]
    kinds = Scratch(scratch).kinds()
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def say(*event: Any) -> None:
        os.write(channel, json.dumps(event).encode() + b"\n")

    made: dict[str, Any] = {}
    for job in jobs:
        if job.kind not in made:
            made[job.kind] = kinds[job.kind]()
            for seed in made[job.kind].seeds:  # a kind whose whole files are refused would try nothing
                made[job.kind].attempt(seed)
        for number in range(job.first, job.last):
            data = made[job.kind].input(job.kind, number)
            say("begin", job.kind, number)
            forget_peak()
            began = time.process_time()
            how, what = outcome(made[job.kind].attempt, data)
            say("end", job.kind, number, how, what, round(time.process_time() - began, 4), peak())


def forget_peak() -> None:
    """Let the kernel's record of this process's most memory begin anew."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not permitted: then the peak is that of all inputs so far
        pass


def peak() -> int:
    """The most memory since, MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


if __name__ == "__main__":
    worker(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
