"""What is missing, or does not fit a bundle's engines: one line each, before anything is loaded."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx_bindings as rtx_module

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import Manifest
from ernie_export.runtime.cli import run as cli
from ernie_export.runtime.engines.tensorrt.library import TensorRT, open_tensorrt
from tests.fakes.installation import DRIVER, FakeInstallation
from tests.fakes.tensorrt_runtime import LIBRARIES, changed


def test_an_rtx_engine_for_another_gpu(opened, bundle):
    kinds = rtx_module.EngineInvalidityDiagnostics
    validity = (rtx_module.EngineValidity.INVALID, int(kinds.UNSUPPORTED_CC))
    with pytest.raises(UserError, match=r"vision.engine: expected a GPU of .* 8.9, found 9.0 \(UNSUPPORTED_CC\)"):
        opened(bundle, validity=validity)


def test_an_engine_that_the_library_does_not_read(opened, bundles):
    with pytest.raises(UserError, match=r"vision.engine: expected an engine of tensorrt, found that it does not read"):
        opened(bundles["trt"], reads_plans=False)


def refusal(capsys: pytest.CaptureFixture[str], folder: Path) -> str:
    """ernie-run's one line, after exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(folder), "What is red?"])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    return printed.err


def open_with(folder: Path, cuda: Any, version: str = "11.4.0.106") -> TensorRT:
    """Open TensorRT of this version on this GPU for a bundle, as loading it does before anything else."""
    module = SimpleNamespace(**vars(LIBRARIES["trt"]), __version__=version)
    return open_tensorrt(folder, Manifest.read(folder), FakeInstallation(cuda), lambda: module)


EXACT = "expected NVIDIA H100 (9.0), which its engines were built for, found"
SAME = {"hardware_compatibility": "same-capability"}
AMPERE = {"hardware_compatibility": "ampere-plus"}
GPUS = [
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


@pytest.mark.parametrize(("engines", "gpu", "message"), GPUS, ids=lambda value: str(value)[:40])
def test_the_gpu_is_one_that_the_engines_run_on(bundle, tmp_path, fake_cuda, engines, gpu, message):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", **engines)
    cuda = fake_cuda(**gpu)
    if message:
        with pytest.raises(UserError, match=re.escape(message)):
            open_with(folder, cuda)
    else:
        open_with(folder, cuda).memory.close()


VERSIONS = [
    ("11.4.0.106", False, True),
    ("11.5.0.1", False, False),
    ("11.5.0.1", True, True),
    ("11.3.9.1", True, False),
    ("12.0.0.1", True, False),
]


@pytest.mark.parametrize(("version", "compatible", "fine"), VERSIONS)
def test_the_version_is_one_that_runs_the_engines(bundle, tmp_path, fake_cuda, version, compatible, fine):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", version_compatible=compatible)
    if fine:
        open_with(folder, fake_cuda(), version).memory.close()
    else:
        with pytest.raises(UserError, match=rf"expected tensorrt 11.4.0.106, which built its engines, found {version}"):
            open_with(folder, fake_cuda(), version)


def test_a_bundle_that_waits_for_its_engines(bundle, tmp_path, capsys):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", version="", compute_capabilities=[])
    line = refusal(capsys, folder)
    assert line.endswith(f"(on the machine with the GPU: ernie-export --resume {folder})\n")


def test_without_a_driver(bundle):
    with pytest.raises(UserError) as caught:
        open_tensorrt(bundle, Manifest.read(bundle), FakeInstallation(missing=DRIVER))
    assert str(caught.value) == f"{bundle}: target trt-rtx: expected libcuda.so.1 (NVIDIA's driver), found none"


def test_engines_of_another_version(bundle, tmp_path, capsys):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt-rtx", version="9.8")
    line = refusal(capsys, folder)
    assert "tensorrt_rtx_bindings 9.8" in line and rtx_module.__version__ in line


def missing_library() -> Any:
    raise ModuleNotFoundError("No module named 'tensorrt'", name="tensorrt")


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_without_the_library(bundles, target):
    with pytest.raises(UserError) as caught:
        open_tensorrt(bundles[target], Manifest.read(bundles[target]), FakeInstallation(), missing_library)
    assert f"pip install .[{target}]" in str(caught.value) and "\n" not in str(caught.value)
