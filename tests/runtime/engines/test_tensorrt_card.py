"""What is missing, or does not fit a bundle's engines: one line each, before anything is loaded."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tensorrt_rtx_bindings as rtx_module

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import Manifest
from ernie_export.runtime import load
from ernie_export.runtime.cli import run as cli
from ernie_export.runtime.engines.device import find_gpu
from ernie_export.runtime.engines.tensorrt.library import open_tensorrt
from tests.fakes.tensorrt_runtime import LIBRARIES, FakeRtxRuntime, FakeRuntime, changed


def test_an_rtx_engine_for_another_card(opened, bundle, monkeypatch):
    kinds = rtx_module.EngineInvalidityDiagnostics
    monkeypatch.setattr(FakeRtxRuntime, "validity", (rtx_module.EngineValidity.INVALID, int(kinds.UNSUPPORTED_CC)))
    with pytest.raises(UserError, match=r"vision.engine: expected a GPU of .* 8.9, found 9.0 \(UNSUPPORTED_CC\)"):
        opened(bundle)


def test_an_engine_that_the_library_does_not_read(opened, bundles, monkeypatch):
    monkeypatch.setattr(FakeRuntime, "deserialize_cuda_engine", lambda self, plan: None)
    with pytest.raises(UserError, match=r"vision.engine: expected an engine of tensorrt, found that it does not read"):
        opened(bundles["trt"])


def refusal(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """ernie-run's one line, after exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(folder), "What is red?"])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    return printed.err


@pytest.fixture
def on_card(monkeypatch):
    """on_card(cuda, version): as if TensorRT of this version, a driver and this card were here."""

    def on_card(cuda: Any, version: str = "11.4.0.106") -> None:
        library = type(sys)("tensorrt")
        vars(library).update(vars(LIBRARIES["trt"]))
        library.__version__ = version
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        monkeypatch.setattr(find_gpu.ctypes, "CDLL", lambda *_, **__: None)
        monkeypatch.setattr("cuda.bindings.runtime", cuda)

    return on_card


EXACT = "expected NVIDIA H100 (9.0), which its engines were built for, found"
SAME = {"hardware_compatibility": "same-capability"}
AMPERE = {"hardware_compatibility": "ampere-plus"}
CARDS = [
    ({}, {}, ""),
    ({}, {"capability": (8, 9), "name": "L4"}, f"{EXACT} L4 (8.9)"),
    ({}, {"name": "NVIDIA H200"}, f"{EXACT} NVIDIA H200 (9.0)"),
    (SAME, {"name": "NVIDIA H200"}, ""),
    (SAME, {"capability": (10, 0)}, "expected a GPU of compute capability 9.0, which"),
    (AMPERE, {"capability": (12, 0)}, ""),
    (AMPERE, {"capability": (7, 5)}, "expected a GPU of compute capability 8.0 or higher, which"),
    ({}, {"free": 2**30}, "GiB free on the GPU"),
    ({}, {"devices": 0}, "expected a GPU that CUDA 13 can use, found none (no device)"),
]  # fmt: skip


@pytest.mark.parametrize(("engines", "card", "message"), CARDS, ids=lambda value: str(value)[:40])
def test_the_card_is_one_that_the_engines_run_on(bundle, tmp_path, on_card, fake_cuda, engines, card, message):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", **engines)
    on_card(fake_cuda(**card))
    if message:
        with pytest.raises(UserError, match=re.escape(message)):
            load(folder)
    else:
        open_tensorrt(folder, Manifest.read(folder)).memory.close()


VERSIONS = [
    ("11.4.0.106", False, True),
    ("11.5.0.1", False, False),
    ("11.5.0.1", True, True),
    ("11.3.9.1", True, False),
    ("12.0.0.1", True, False),
]


@pytest.mark.parametrize(("version", "compatible", "fine"), VERSIONS)
def test_the_version_is_one_that_runs_the_engines(bundle, tmp_path, on_card, fake_cuda, version, compatible, fine):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", version_compatible=compatible)
    on_card(fake_cuda(), version)
    if fine:
        open_tensorrt(folder, Manifest.read(folder)).memory.close()
    else:
        with pytest.raises(UserError, match=rf"expected tensorrt 11.4.0.106, which built its engines, found {version}"):
            load(folder)


def test_a_bundle_that_waits_for_its_engines(bundle, tmp_path, capsys):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", version="", compute_capabilities=[])
    line = refusal(capsys, folder)
    assert line.endswith(f"(on the machine with the GPU: ernie-export --resume {folder})\n")


def test_without_a_driver(bundle, capsys, monkeypatch):
    def missing(name: str, *_: Any, **__: Any) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(find_gpu.ctypes, "CDLL", missing)
    monkeypatch.setattr(find_gpu, "_in_packages", lambda name: [])
    line = refusal(capsys, bundle)
    assert line.endswith("target trt-rtx: expected libcuda.so.1 (NVIDIA's driver), found none\n")


def test_engines_of_another_version(bundle, tmp_path, capsys):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt-rtx", version="9.8")
    line = refusal(capsys, folder)
    assert "tensorrt_rtx_bindings 9.8" in line and rtx_module.__version__ in line


@pytest.mark.parametrize(("target", "library"), [("trt", "tensorrt"), ("trt-rtx", "tensorrt_rtx_bindings")])
def test_without_the_library(bundles, capsys, monkeypatch, target, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert f"pip install .[{target}]" in refusal(capsys, bundles[target])
