"""The version that commands, the package and its metadata report."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ernie_export
from tests.paths import PROGRAMS

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", PROJECT["scripts"])
def test_every_command_reports_the_version_of_the_package(name):
    module, _, function = PROJECT["scripts"][name].partition(":")
    assert function == "main"
    command = [sys.executable, str(PROGRAMS / "run_command.py"), name, module, "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{name} {ernie_export.__version__}\n"


def test_the_licence_files_exist():
    root = Path(__file__).parents[2]
    assert "Version 2.0, January 2004" in (root / "LICENSE").read_text()
    assert all((root / name).is_file() for name in PROJECT["license-files"])
    assert PROJECT["license"] == "Apache-2.0"
