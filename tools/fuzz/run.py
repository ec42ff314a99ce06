"""Try damaged files of every kind, and write down what was tried, how it ended and what it found.

    python tools/fuzz/run.py --inputs 4000 --out benchmarks/results/faults.json
    python tools/fuzz/run.py --kind MP4 --first 1234 --inputs 1      # one input again

Input N of a kind is always the same. `--out` adds to the file: inputs of a kind that are in it already are skipped.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from workers import Job, Tally, try_all

KINDS = (
    "safetensors", "index", "config.json", "generation_config.json", "original config.json",
    "original tokenizer.model", "original tokenizer_config.json", "original preprocessor_config.json",
    "original processor_config.json", "manifest.json", "vision.onnx", "resampler.onnx", "decoder.onnx", "decode.onnx",
    "weights.safetensors", "unlisted decode.onnx", "unlisted weights.safetensors", "unlisted tokenizer.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json",
    "video_preprocessor_config.json", "font", "PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "MP4", "MKV", "WebM",
    "GIF clip", "AVI", "messages", "trt manifest.json", "trt-rtx manifest.json", "trt interrupted build",
)  # fmt: skip
PIECE = 500  # inputs of a kind that one worker tries before the file is written


@click.command()
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="May be repeated.  [default: all]")
@click.option("--first", default=0, help="Number of the first input.")
@click.option("--inputs", default=1000, show_default=True, help="Of each kind.")
@click.option("--time-limit", default=20.0, show_default=True, help="Seconds of processor time for one input.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to add to.")
def main(kinds: tuple[str, ...], first: int, inputs: int, time_limit: float, out: Path | None) -> None:
    """Try INPUTS damaged files of each kind."""
    report: dict[str, Any] = json.loads(out.read_text()) if out and out.exists() else {"kinds": {}, "findings": []}
    last = first + inputs
    for start in range(first, last, PIECE):
        stop = min(start + PIECE, last)
        jobs = [Job(kind, max(start, next_input(report, kind) if out else start), stop) for kind in kinds or KINDS]
        jobs = [job for job in jobs if job.first < job.last]
        began = time.monotonic()
        tallies, findings = try_all(jobs, time_limit)
        for job in jobs:
            add(report["kinds"].setdefault(job.kind, asdict(Tally())), tallies[job.kind], job.last)
        for finding in findings:
            print(f"{finding.kind} {finding.number}: {finding.what}\n{finding.detail}\n", flush=True)
            report["findings"].append(asdict(finding))
        count = sum(tally.inputs for tally in tallies.values())
        print(f"{start}: {count} inputs, {len(findings)} findings, {time.monotonic() - began:.0f} s", flush=True)
        if out:
            out.write_text(json.dumps(report, indent=1) + "\n")
    for kind, entry in report["kinds"].items():
        print(f"{kind:36} {entry}")


def next_input(report: dict[str, Any], kind: str) -> int:
    """The number behind the last input that a report has."""
    return report["kinds"].get(kind, {}).get("next", 0)


def add(entry: dict[str, Any], tally: Tally, last: int) -> None:
    """Add a tally to a report's entry."""
    for key in ("answered", "refused", "seconds"):
        entry[key] = round(entry[key] + getattr(tally, key), 2)
    for key in ("slowest", "peak"):
        entry[key] = list(max(tuple(entry[key]), getattr(tally, key)))
    entry["next"] = last


if __name__ == "__main__":
    main()
