"""What the tests of TensorRT's target share: a bundle that waits for its engines, and a machine that could build them.

The machine is a fake (tests/fakes/tensorrt_builder): it holds every call to TensorRT 11.4's real bindings, and creates
the plugins through TensorRT's own Python sources.

Checkpoints that several tests write are made by tools, which are scripts beside one another, not a package.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ernie_export.common.gpu import Gpu
from ernie_export.common.manifest import Manifest
from ernie_export.exporter.export import export
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets import TARGETS, kernels, register
from ernie_export.exporter.targets.tensorrt import TensorRT, TensorRTBuildOptions
from ernie_export.graphs.ops.plugins import Sizes
from tests.fakes.tensorrt_builder import ON_PATH
from tests.paths import MINI, ROOT, tensorrt_api


class Steps(Progress):
    """Keeps what is reported: fractions by phase, and why engines are deferred."""

    def __init__(self) -> None:
        self.shares: dict[str, list[float]] = {}
        self.reasons: list[str] = []

    def update(self, name: str, fraction: float) -> None:
        self.shares.setdefault(name, []).append(fraction)

    def on_engines_deferred(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture(scope="session")
def new_steps() -> type[Steps]:
    """new_steps(): a `Progress` that keeps what is reported."""
    return Steps


@pytest.fixture(scope="session")
def few_kernels():
    """A replacement of `kernels.run_parallel` that compiles one small tactic of each plugin, and once for all.

    All of them would take most of a minute.
    """
    compiled: dict[tuple[Sizes, str], kernels.Results] = {}

    def run_few(
        pieces: list[kernels.Piece], sizes: Sizes, dtype: str, on_progress: kernels.OnProgress
    ) -> kernels.Results:
        known = compiled.setdefault((sizes, dtype), {})
        lowest = {piece[:2]: min(p[2] for p in pieces if p[:2] == piece[:2]) for piece in pieces}
        missing = [piece for piece in pieces if piece[2] == lowest[piece[:2]] and piece not in known]
        known.update(kernels.run_parallel(missing, sizes, dtype, on_progress) if missing else {})
        return {piece: known.get(piece, {"misfit": 0}) for piece in pieces}

    return run_few


@pytest.fixture(scope="session")
def without_gpu(few_kernels):
    """The target trt on a machine without a GPU, with few kernels."""
    return TensorRT(detect_gpu=lambda: None, run_pieces=few_kernels)


@pytest.fixture(scope="session")
def make(tmp_path_factory, without_gpu):
    """make(precision, arch, **options): a bundle of the mini checkpoint that waits for engines, and its reports."""

    def call(precision: str, arch: str, **changes: Any) -> tuple[Path, Manifest, Steps]:
        folder = tmp_path_factory.mktemp("trt") / "bundle"
        steps = Steps()
        limits = {"max_batch_size": 3, "max_seq_len": 600, "max_image_tokens": 64} | changes
        options = TensorRTBuildOptions(arch=arch, **limits)
        return folder, export(MINI, folder, without_gpu, precision, steps, options), steps

    return call


@pytest.fixture(scope="session")
def made(make):
    """Such a bundle in bf16 for two architectures."""
    return make("bf16", "sm80, sm90")


@pytest.fixture(scope="session")
def baked(make):
    """Such a bundle whose engines are to hold the matrices of linear layers."""
    return make("bf16", "sm90", bakes_projections=True)


@pytest.fixture(scope="session", params=["int4", "fp8"])
def coded(request, make):
    """Such a bundle with quantized weights, for one architecture and two sequences."""
    return make(request.param, "sm90", max_batch_size=2)


@pytest.fixture
def waiting(made, tmp_path):
    """A copy of that bundle."""
    return shutil.copytree(made[0], tmp_path / "bundle")


@pytest.fixture(scope="session")
def driver(tmp_path_factory):
    """A folder with a library in place of NVIDIA's driver, which knows of one GPU."""
    folder = tmp_path_factory.mktemp("driver")
    source = ROOT / "tests" / "fakes" / "libcuda.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    return folder


@pytest.fixture(scope="session")
def environment_of(driver):
    """environment_of(version): where processes find the fake TensorRT on bindings of this version, and the driver."""

    def call(version: str = "") -> dict[str, str]:
        api = tensorrt_api(version)
        path = os.pathsep.join(map(str, (ROOT, ON_PATH, api)))
        return {"PYTHONPATH": path, "LD_LIBRARY_PATH": f"{driver}:{api / 'stubs'}"}

    return call


@pytest.fixture(scope="session")
def environment(environment_of):
    """The same of the newest version."""
    return environment_of()


@pytest.fixture
def register_target():
    """register_target(target): for the rest of this test, exports find this target by its name."""
    before = dict(TARGETS)
    yield register
    TARGETS.clear()
    TARGETS.update(before)


@pytest.fixture
def machine(environment, few_kernels, monkeypatch, register_target):
    """A machine with TensorRT and a GPU, as far as this process and its children can see."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    register_target(TensorRT(detect_gpu=lambda: Gpu("Fake H100", (9, 0)), run_pieces=few_kernels))
