"""Build llama.cpp for this machine from the sdist of llama-cpp-python, which holds its source and a binding to it."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import click

from ernie_export.common.processor import usable_cores

VERSION = "0.3.36"
# What the binding and the package `gguf` import, beside NumPy and Jinja.
IMPORTS = ("diskcache==5.6.3", "pyyaml", "typing_extensions")
# The library alone: its programs and their helpers are as much work again. The libraries find each other wherever they
# lie. The rest is by llama.cpp's defaults, among them -march=native.
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "$ORIGIN",
} | dict.fromkeys((f"LLAMA_BUILD_{part}" for part in ("APP", "COMMON", "EXAMPLES", "SERVER", "TESTS", "TOOLS")), "OFF")


def build(packages: Path) -> None:
    """Put `llama_cpp` with its library, and `gguf`, into the folder `packages`, unless they are there."""
    if (packages / "llama_cpp").exists():
        return
    if shutil.which("cmake") is None:
        raise click.ClickException("llama.cpp: expected cmake and a C++ compiler on PATH")
    packages.mkdir(parents=True, exist_ok=True)
    pip = (sys.executable, "-m", "pip")
    with tempfile.TemporaryDirectory(dir=packages) as name:
        scratch = Path(name)
        wanted = ("--no-binary", "llama-cpp-python", f"llama-cpp-python=={VERSION}")
        run(*pip, "download", "--no-deps", "--dest", scratch, *wanted)
        with tarfile.open(next(scratch.glob("*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")
        source = next(scratch.glob("llama_cpp_python-*/"))
        compile_library(source)
        run(*pip, "install", "--no-deps", "--upgrade", "--target", packages, *IMPORTS)
        shutil.copytree(source / "vendor/llama.cpp/gguf-py/gguf", packages / "gguf", dirs_exist_ok=True)
        (source / "llama_cpp").rename(packages / "llama_cpp")  # last: it says that all is there


def compile_library(source: Path) -> None:
    """Compile libllama and put it where the binding looks for it."""
    build = source / "build"
    options = [f"-D{key}={value}" for key, value in OPTIONS.items()]
    run("cmake", "-S", source / "vendor/llama.cpp", "-B", build, *options)
    run("cmake", "--build", build, "--target", "llama", "--parallel", str(usable_cores()))
    shutil.copytree(build / "bin", source / "llama_cpp" / "lib", symlinks=True)


def run(*command: str | Path) -> None:
    """Run a command, its output where ours goes."""
    if code := subprocess.run(command).returncode:
        raise click.ClickException(f"{' '.join(map(str, command[:4]))}: expected success, found exit code {code}")
