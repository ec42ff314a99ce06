"""The package as people install it: sdist and wheel in clean environments, each extra alone, without a clone."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from ernie_export.doctor.requirements import normalized
from tests.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HATCHLING = PROJECT["build-system"]["requires"][0]


@dataclass(frozen=True)
class Environment:
    """A clean virtual environment."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> "Environment":
        """Make a virtual environment that has pip."""
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        return cls(folder)

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment outside the clone; returns what it prints."""
        command = [str(self.folder / "bin" / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
        assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def install(self, *requirements: str) -> None:
        """Install requirements in the versions that the checks ran with, without compiling bytecode, to save time."""
        options = ("--quiet", "--no-compile", "--constraint", str(ROOT / "constraints.txt"))
        self.run("python", "-m", "pip", "install", *options, *requirements)


@pytest.fixture(scope="session")
def tools(tmp_path_factory):
    """An environment with what builds and installs packages."""
    environment = Environment.make(tmp_path_factory.mktemp("tools") / "environment")
    environment.install(HATCHLING, "uv")
    return environment


@pytest.fixture
def install_with_uv(tools, tmp_path):
    """install_with_uv(*requirements): a clean environment with them. It takes uv a tenth of pip's time to make one."""

    def call(*requirements: str, python: str = sys.executable) -> Environment:
        environment = Environment(tmp_path / "environment")
        tools.run("uv", "venv", "--quiet", "--python", python, str(environment.folder))
        install = ("pip", "install", "--quiet", "--system-certs", "--python", str(environment.folder))
        tools.run("uv", *install, *requirements)
        tools.run("uv", "pip", "check", "--quiet", "--python", str(environment.folder))
        return environment

    return call


@pytest.fixture(scope="session")
def sdist(tools, tmp_path_factory):
    """The source distribution, built from the tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [tools.folder / "bin" / "python", "-m", "hatchling", "build", "-t", "sdist", "-d", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel(sdist, tmp_path_factory):
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, sdist]
    subprocess.run(command, check=True, cwd=folder)
    return next(folder.glob("*.whl"))


def works(python: str | Path) -> bool:
    """Return whether an interpreter runs."""
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


def test_the_source_distribution_has_what_a_clone_has_and_nothing_else(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "LICENSE",
        "NOTICE",
        "README.md",
        "docs/index.md",
        "tests/paths.py",
        "examples/mini-ernie/config.json",
    ):
        assert name in names
    assert not [
        name for name in names if name.split("/")[0] in ("exporter", "graphs", "runtime", ".venv", "bundles", "site")
    ]
    assert sdist.stat().st_size < 16 * 2**20


def test_the_wheel_has_the_package_its_data_and_the_demo(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ernie_export").rglob("*.py")}
    assert modules <= set(names)
    expected = [
        "ernie_export/py.typed",
        "ernie_export/examples/questions.json",
        "ernie_export/examples/mini-ernie/config.json",
        "ernie_export/runtime/serving/http/static/index.html",
    ]
    assert [name for name in expected if name not in names] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ernie_export"}
    (said,) = re.findall(r"its wheel of (\d+) MB", (ROOT / "docs/quickstart.md").read_text())
    assert round(wheel.stat().st_size / 1e6) == int(said)


def test_a_first_run_needs_no_clone(wheel, install_with_uv):
    environment = install_with_uv("--constraint", str(ROOT / "constraints.txt"), f"{wheel}[export]")
    check_demo(environment)
    for name in PROJECT["project"]["scripts"]:
        assert environment.run(name, "--version").startswith(f"{name} ")
    assert '"export and plan"' in environment.run("ernie-doctor", "--json")


def check_demo(environment: Environment) -> None:
    """Export the small checkpoint in the environment and ask it; all answers are right."""
    table = environment.run("python", "-m", "ernie_export.demo")
    assert "wrong" not in table and table.count(" right │") >= 5


@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("", "ernie_export.runtime.pipeline"),
        ("[export]", "ernie_export.exporter.export"),
        ("[serve]", "ernie_export.runtime.serving.http.app"),
        ("[bench]", "ernie_export.runtime.bench.plot"),
    ],
)
def test_each_extra_alone_brings_what_it_is_for(extra, module, wheel, install_with_uv):
    environment = install_with_uv("--constraint", str(ROOT / "constraints.txt"), f"{wheel}{extra}")
    environment.run("python", "-c", f"import {module}")


@pytest.mark.parametrize("extra", ["gpu", "kernels", "parity", "trt-rtx"])
def test_each_extra_of_gigabytes_can_be_resolved(extra, wheel, tools, tmp_path):
    """Versions that agree, with a wheel for this platform. (`trt` needs NVIDIA's own index for its libraries.)"""
    requirements = tmp_path / "requirements.in"
    requirements.write_text(f"ernie-export[{extra}] @ {wheel.as_uri()}\n")
    options = ("--quiet", "--system-certs", "--only-binary", ":all:")
    resolved = tools.run("uv", "pip", "compile", *options, str(requirements))
    asked = {normalized(re.split(r"[^\w-]", text)[0]) for text in PROJECT["project"]["optional-dependencies"][extra]}
    assert {line.partition("==")[0] for line in resolved.splitlines()} >= asked - {"ernie-export"} | {"numpy"}


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_other_versions_of_python_run_the_demo(version, wheel, install_with_uv):
    candidates = [
        shutil.which(f"python{version}"),
        *Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"),
    ]
    python = next((str(path) for path in candidates if path is not None and works(path)), None)
    if python is None:
        pytest.skip(f"Python {version} is not here")
    check_demo(install_with_uv(f"{wheel}[export]", python=python))
