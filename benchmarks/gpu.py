"""Everything that only a GPU can show, in eight minutes: one command, independent parts, results in one file.

    python benchmarks/gpu.py                                    (on the GPU machine)
    python benchmarks/gpu.py --device cpu --small               (a dry run of the same lines without a GPU)

| part | what |
| --- | --- |
| b | gpu_kernels.py: the plugins' kernels at the released widths, against PyTorch and the card's measured rates |
| c | gpu_model.py: bundles on ONNX Runtime's CUDA provider at the released shape, against transformers |
| a | gpu_probe.py: TensorRT for RTX's engines on this card, which its support lists need not name: last |

Each part is a process of its own that prints a JSON object for each result. Rows are printed and written as they come,
to the folder that the variable OUT names, if there is one: a part that fails, hangs or runs out of its time, or a call
that is cut, loses only what was not measured. Needs PyTorch, Triton, transformers, onnx, onnx-ir and, for parts a and
c, TensorRT for RTX, onnxruntime-gpu and cuda-bindings; the project itself need not be installed.
"""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from gpu_rows import results_folder

FOLDER = Path(__file__).parent
# Each part's script, and its share of the time that is left when it begins.
PARTS = {"b": ("gpu_kernels.py", 0.4), "c": ("gpu_model.py", 0.85), "a": ("gpu_probe.py", 1.0)}
PACKAGES = ("torch", "triton", "transformers", "onnxruntime", "onnxruntime-gpu", "onnx", "tensorrt_rtx_cu13_bindings")


@dataclass(frozen=True)
class Part:
    """What one part printed, how long it took, and how it ended: "done", "out of time", or its last error line."""

    rows: list[dict[str, Any]]
    seconds: float
    end: str


@click.command()
@click.option("--parts", default="bca", show_default=True, help="Which of a, b and c, in order.")
@click.option("--minutes", default=8.0, show_default=True, help="For all parts together.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Toy sizes, for a dry run.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the results. [default: OUT, or results]")
def main(parts: str, minutes: float, device: str, small: bool, output: Path | None) -> None:
    """Run the parts one after another and write gpu-DATE.json after each row."""
    if not parts or set(parts) - set(PARTS):
        expected = "".join(sorted(PARTS))
        raise click.BadParameter(f"expected some of {expected}, found {parts!r}", param_hint="--parts")
    output = output or results_folder() or FOLDER / "results"
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"gpu-{date.today()}{'-dry' if device == 'cpu' or small else ''}.json"
    deadline = time.monotonic() + 60 * minutes
    results: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "date": str(date.today()),
        "card": card(device),
        "versions": {"python": platform.python_version()} | versions(),
        "parts": {},
    }
    for name in parts:
        script, share = PARTS[name]
        allowed = (deadline - time.monotonic()) * share if name != parts[-1] else deadline - time.monotonic()
        options = ["--device", device, *(["--small"] if small else [])]
        kept = results["parts"][name] = {"end": "running", "seconds": 0.0, "rows": []}

        def keep(row: dict[str, Any], kept: dict[str, Any] = kept) -> None:
            kept["rows"].append(row)
            path.write_text(json.dumps(results, indent=1) + "\n")
            print("  ", "  ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)

        part = run([sys.executable, str(FOLDER / script), *options], allowed, keep)
        kept |= {"end": part.end, "seconds": round(part.seconds, 1)}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"part {name}: {part.end}, {part.seconds:.0f} s", flush=True)
    print(path)


def run(command: list[str], seconds: float, on_row: Callable[[dict[str, Any]], None] = lambda row: None) -> Part:
    """Run one part for so many seconds at most.

    Args:
        command: The part's command.
        seconds: When it is ended, with every process that it started.
        on_row: Called with each row as it comes.

    Returns:
        The rows that it printed in time, and how it ended.
    """
    started = time.monotonic()
    if seconds <= 0:
        return Part([], 0.0, "out of time")
    rows = []
    with tempfile.TemporaryFile("w+") as complaints:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, text=True, errors="replace", start_new_session=True
        )
        late = threading.Event()

        def end_it() -> None:
            late.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(seconds, end_it)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if (row := read_row(line)) is not None:
                rows.append(row)
                on_row(row)
        process.wait()
        timer.cancel()
        complaints.seek(0)
        last = complaints.read().strip().splitlines()[-1:]
    if late.is_set():
        end = "out of time"
    else:
        end = "done" if process.returncode == 0 else (last or [f"exit code {process.returncode}"])[0]
    return Part(rows, time.monotonic() - started, end)


def read_row(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a line; None for a library's own words, or half a line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def card(device: str) -> str:
    """The card's own name and its driver, or that there is none."""
    if device == "cpu":
        return "none: a dry run"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"unknown ({e})"


def versions() -> dict[str, str]:
    """Of the packages that take part and are here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def shown(value: Any) -> str:
    """A number short enough to read."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
