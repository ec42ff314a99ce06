"""ernie-doctor: versions against the floors, what is missing, and the form of its answer."""

import json
import sys
import types
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from ernie_export.common.processor import read_cpuinfo
from ernie_export.doctor import capabilities, cli
from ernie_export.doctor.requirements import Requirement, installed_version, read_requirements


@pytest.mark.parametrize(
    ("bounds", "installed", "is_met"),
    [
        (">=1.20", "1.20.0", True),
        (">=1.20", "1.19.9", False),
        (">=1.20", None, False),
        (">=13,<14", "13.2.1", True),
        (">=13,<14", "14.0", False),
        ("==2.13.0", "2.13.0+cpu", True),
        ("==2.13.0", "2.13.1", False),
        (">=2", "2.0rc1", True),
        ("", "0.1", True),
    ],
)
def test_a_version_is_compared_with_its_bounds(bounds, installed, is_met):
    assert Requirement("package", bounds, installed).is_met is is_met


def test_extras_are_read_with_those_that_they_include():
    names = {entry.name for entry in read_requirements("parity")}
    assert {"torch", "transformers", "onnx", "onnx-ir"} <= names
    assert "numpy" in {entry.name for entry in read_requirements()}
    assert not names & {entry.name for entry in read_requirements()}
    assert read_requirements("no such extra") == []


def test_a_requirement_of_another_platform_does_not_count():
    linux = {"sys_platform": "linux", "platform_machine": "x86_64"}
    assert [entry.name for entry in read_requirements("kernels", linux)] == ["triton"]
    assert read_requirements("kernels", linux | {"sys_platform": "darwin"}) == []


def test_a_package_that_stands_for_another_counts():
    def version(name: str) -> str:
        if name == "onnxruntime-gpu":
            return "1.31.1"
        raise metadata.PackageNotFoundError(name)

    assert installed_version("onnxruntime", version) == "1.31.1"
    assert installed_version("numpy", version) is None


def test_tensorrt_is_found_without_the_metadata_of_a_wheel(monkeypatch):
    fake = types.ModuleType("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    vars(fake)["__version__"] = "10.14.1.48"
    assert capabilities.has_tensorrt() == "tensorrt >=10.15.1 (found 10.14.1.48)"
    vars(fake)["__version__"] = "10.15.1.29"
    assert capabilities.has_tensorrt() == ""


def test_the_json_answer_names_machine_capabilities_and_what_to_install():
    result = CliRunner().invoke(cli.command, ["--json"])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["machine"]["cores"] >= 1 and answer["machine"]["memory"] > 2**28
    first = answer["capabilities"][0]
    assert first == {"name": "run bundles on the CPU", "extra": "", "missing": [], "install": ""}
    for entry in answer["capabilities"]:
        assert not (entry["install"] and not entry["missing"])


def test_without_a_base_package_the_exit_code_is_1_and_the_package_is_named(monkeypatch):
    def without_numpy(extra: str = "") -> list[Requirement]:
        return [
            replace(entry, installed=None) if entry.name == "numpy" else entry for entry in read_requirements(extra)
        ]

    monkeypatch.setattr(capabilities, "read_requirements", without_numpy)
    result = CliRunner().invoke(cli.command, [])
    assert result.exit_code == 1
    assert "run bundles on the CPU: numpy >=" in result.output and "(found none)" in result.output


def test_cpuinfo_is_read_where_there_is_one(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: A processor\nflags\t\t: avx2 avx512f\n\nmodel name\t: Another\n")
    assert read_cpuinfo(path) == {"model name": "A processor", "flags": "avx2 avx512f"}
    assert read_cpuinfo(Path("/nonexistent")) == {}
