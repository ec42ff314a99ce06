"""Damaged files of every kind, in processes that are watched: a result or one printable line, and nothing else."""

import os
from typing import Any

import pytest
import run
import workers
from workers import Job, Tally

from tests.paths import PROGRAMS, ROOT

# Inputs of a kind, by what one costs; the others get the last number.
COUNTS = {
    "PNG": 150, "JPEG": 150, "GIF": 150, "WEBP": 150, "BMP": 100, "TIFF": 150, "messages": 200, "index": 60,
    "safetensors": 60, "config.json": 60, "MP4": 60, "MKV": 60, "WebM": 60, "GIF clip": 40, "AVI": 60, "font": 20,
    "unlisted decode.onnx": 40, "unlisted weights.safetensors": 40, "unlisted tokenizer.json": 40,
    "tokenizer.json": 40, "tokenizer_config.json": 40, "chat_template.jinja": 60, "preprocessor_config.json": 40,
    "video_preprocessor_config.json": 40, "manifest.json": 40,
}  # fmt: skip
FEW = 10


def test_damaged_files(record_property) -> None:
    jobs = [Job(kind, 0, COUNTS.get(kind, FEW)) for kind in run.KINDS]
    tallies, findings = workers.try_all(jobs, time_limit=60)
    assert not findings, "\n\n".join(f"{f.kind} {f.number}: {f.what}\n{f.detail}" for f in findings[:5])
    for job in jobs:
        assert tallies[job.kind].inputs == job.last, job.kind
        assert tallies[job.kind].refused, f"no damage to {job.kind} was seen"
    answered = sum(tally.answered for tally in tallies.values())
    assert answered > 500, "nearly everything is refused: the damage does not get past the first check"
    record_property("inputs", sum(tally.inputs for tally in tallies.values()))


def test_whatever_goes_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exceptions, crashes, hangs, floods of memory and lines that are none; the inputs between them are tried."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), str(ROOT / "tools" / "fuzz"))))
    tallies, findings = workers.try_all([Job("bad", 0, 9)], time_limit=1, program=PROGRAMS / "bad_worker.py")
    assert (tallies["bad"].answered, tallies["bad"].refused) == (2, 1)
    found = {finding.number: finding.what for finding in findings}
    assert found == {
        2: "ZeroDivisionError in bad_worker.py:attempt", 3: "SIGSEGV", 4: "hang",
        5: "MemoryError in bad_worker.py:attempt",
        6: "exit 7", 7: "not one printable line",
    }  # fmt: skip


def test_a_report_goes_on_where_it_ended() -> None:
    report: dict[str, Any] = {"kinds": {}, "findings": []}
    entry = report["kinds"].setdefault(
        "PNG", {"answered": 0, "refused": 0, "seconds": 0.0, "slowest": (0.0, -1), "peak": (0, -1)}
    )
    run.add(entry, Tally(3, 4, 1.5, (0.5, 2), (100, 6)), 7)
    run.add(entry, Tally(1, 0, 0.5, (0.7, 7), (90, 7)), 8)
    assert entry == {"answered": 4, "refused": 4, "seconds": 2.0, "slowest": [0.7, 7], "peak": [100, 6], "next": 8}
    assert (run.next_input(report, "PNG"), run.next_input(report, "GIF")) == (8, 0)
