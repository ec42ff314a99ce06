"""Kernels' PTX, written by tools/compile_kernels.py in a process of its own: this one runs Triton's interpreter."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from compile_kernels import kernel_specs

from tests.paths import ROOT

TOOL = ROOT / "tools" / "compile_kernels.py"


@dataclass(frozen=True)
class Compiled:
    """Compiled kernels.

    Attributes:
        weights: How weights are stored, by the tool's name.
        lines: What the tool printed, a line for each kernel.
        ptx: The PTX by architecture and plugin.
    """

    weights: str
    lines: list[str]
    ptx: dict[tuple[str, str], str]


def compile_kernels(*arguments: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run the tool."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, env=env)


def compile_ptx(folder: Path, weights: str, plugins: tuple[str, ...], archs: list[str]) -> Compiled:
    """Compile each plugin for each architecture in bfloat16, by the tactic that engines prefer."""
    arguments = ("--weights", weights, "--plugins", ",".join(plugins), "--arch", ",".join(archs), "--quick")
    process = compile_kernels(*arguments, "--out", str(folder / "ptx"), cache=folder / "cache")
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if " regs " in line]
    paths = list((folder / "ptx").rglob("*.ptx"))
    assert len(paths) == len(lines) == len(plugins) * len(archs)
    ptx = {(path.relative_to(folder / "ptx").parts[0], path.stem.split(".")[0]): path.read_text() for path in paths}
    return Compiled(weights, lines, ptx)


def parameter_number(plugin: str, weights: str, name: str) -> int:
    """Return the number of a kernel's parameter: a plugin's inputs come first, in their order."""
    (inputs,) = (list(found.inputs) for found, _, _ in kernel_specs(weights) if found.name == plugin)
    return inputs.index(name)
