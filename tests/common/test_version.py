"""The version that commands, the package and its metadata report."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ernie_export

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_command_reports_the_version_of_the_package(name):
    module, _, function = PROJECT["scripts"][name].partition(":")
    program = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name} {ernie_export.__version__}\n"


def test_the_licence_files_exist():
    root = Path(__file__).parents[2]
    assert "Version 2.0, January 2004" in (root / "LICENSE").read_text()
    assert all((root / name).is_file() for name in PROJECT["license-files"])
    assert PROJECT["license"] == "Apache-2.0"
