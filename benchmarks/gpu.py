"""Everything that only a GPU can show, in eight minutes: one command, independent parts, results in one file.

    python benchmarks/gpu.py                                    (on the GPU machine)
    python benchmarks/gpu.py --device cpu --small               (a dry run of the same lines without a GPU)

| part | what |
| --- | --- |
| a | gpu_probe.py: TensorRT for RTX's engines on this card |
| b | gpu_kernels.py: the plugins' kernels at the released widths, against PyTorch and the card's measured rates |
| c | gpu_model.py: bundles on ONNX Runtime's CUDA provider at the released shape, against transformers |

Each part is a process of its own that prints a JSON object for each result: one that fails, hangs or runs out of its
time loses only what it had not printed. Needs PyTorch, Triton, transformers, onnx, onnx-ir and, for parts a and c,
TensorRT for RTX, onnxruntime-gpu and cuda-bindings; the project itself need not be installed.
"""

import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parent
# Each part's script, and its share of the time that is left when it begins. The quick ones go first.
PARTS = {"a": ("gpu_probe.py", 0.15), "b": ("gpu_kernels.py", 0.4), "c": ("gpu_model.py", 1.0)}
PACKAGES = ("torch", "triton", "transformers", "onnxruntime", "onnxruntime-gpu", "onnx", "tensorrt_rtx_cu13_bindings")


@dataclass(frozen=True)
class Part:
    """What one part printed, how long it took, and how it ended: "done", "out of time", or its last error line."""

    rows: list[dict[str, Any]]
    seconds: float
    end: str


@click.command()
@click.option("--parts", default="abc", show_default=True, help="Which of a, b and c.")
@click.option("--minutes", default=8.0, show_default=True, help="For all parts together.")
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--small", is_flag=True, help="Toy sizes, for a dry run.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the results (default: benchmarks/results).")
def main(parts: str, minutes: float, device: str, small: bool, output: Path | None) -> None:
    """Run the parts one after another and write gpu-DATE.json after each."""
    if not parts or set(parts) - set(PARTS):
        raise click.BadParameter(f"expected some of {''.join(PARTS)}, found {parts!r}", param_hint="--parts")
    output = output or FOLDER / "results"
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
        part = run([sys.executable, str(FOLDER / script), *options], allowed)
        results["parts"][name] = {"end": part.end, "seconds": round(part.seconds, 1), "rows": part.rows}
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"part {name}: {part.end}, {part.seconds:.0f} s")
        for row in part.rows:
            print("  ", "  ".join(f"{key} {shown(value)}" for key, value in row.items()))
    print(path)


def run(command: list[str], seconds: float) -> Part:
    """Run one part for so many seconds at most; its rows are those that it printed in time."""
    started = time.monotonic()
    if seconds <= 0:
        return Part([], 0.0, "out of time")
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        printed, complaints = process.stdout, process.stderr.strip().splitlines()
        end = "done" if process.returncode == 0 else (complaints[-1:] or [f"exit code {process.returncode}"])[0]
    except subprocess.TimeoutExpired as e:
        printed = e.stdout.decode(errors="replace") if isinstance(e.stdout, bytes) else e.stdout or ""
        end = "out of time"
    return Part(read_rows(printed), time.monotonic() - started, end)


def read_rows(printed: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines; a library's own words, or half a line, are passed over."""
    rows = []
    for line in printed.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


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
