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

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.export import Progress, export
from ernie_export.exporter.targets import kernels, tensorrt
from ernie_export.exporter.targets.gpu import Card
from ernie_export.graphs.ops.plugins import Sizes
from tests.fakes.tensorrt_builder import ON_PATH
from tests.paths import MINI, ROOT, tensorrt_api


class Steps(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.shares: dict[str, list[float]] = {}
        self.reasons: list[str] = []
        take = lambda name, done: self.shares.setdefault(name, []).append(done)  # noqa: E731
        super().__init__(lambda name, total: None, lambda count: None, take, self.reasons.append)


@pytest.fixture(scope="session")
def new_steps() -> type[Steps]:
    """new_steps(): a `Progress` that keeps what it is told."""
    return Steps


@pytest.fixture(scope="session")
def few_kernels():
    """A replacement of `kernels.spread` that compiles the first tactic of each plugin alone, and once for all tests.

    All of them would take most of a minute.
    """
    compiled: dict[Any, dict[Any, dict[str, Any]]] = {}
    whole = kernels.spread

    def spread(work: kernels.Work, sizes: Sizes, dtype: str, *rest: Any) -> dict[Any, dict[str, Any]]:
        known = compiled.setdefault((sizes, dtype), {})
        missing = [piece for piece in work if piece[2] == 1 and piece not in known]
        known.update(whole(missing, sizes, dtype, *rest) if missing else {})
        return {piece: known.get(piece, {"misfit": 0}) for piece in work}

    return spread


@pytest.fixture(scope="session")
def make(tmp_path_factory, few_kernels):
    """make(precision, arch): a bundle of the mini checkpoint that waits for engines, and what its export reported."""

    def call(precision: str, arch: str) -> tuple[Path, Manifest, Steps]:
        folder, steps = tmp_path_factory.mktemp("trt") / "bundle", Steps()
        limits = tensorrt.Limits(max_batch=3, max_tokens=600, max_image_tokens=64, arch=arch)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(kernels, "spread", few_kernels)
            patched.setattr(tensorrt, "find_card", lambda: None)
            return folder, export(MINI, folder, "trt", precision, steps, limits), steps

    return call


@pytest.fixture(scope="session")
def made(make):
    """Such a bundle in bf16 for two architectures."""
    return make("bf16", "sm80, sm90")


@pytest.fixture(scope="session", params=["int4", "fp8"])
def coded(request, make):
    """Such a bundle with weights in codes, for one architecture."""
    return make(request.param, "sm90")


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
def environment(driver):
    """Where processes find the fake TensorRT, and the fake driver."""
    api = tensorrt_api()
    path = os.pathsep.join(map(str, (ROOT, ON_PATH, api)))
    return {"PYTHONPATH": path, "LD_LIBRARY_PATH": f"{driver}:{api / 'stubs'}"}


@pytest.fixture
def machine(environment, monkeypatch):
    """A machine with TensorRT and a GPU, as far as this process and its children can see."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tensorrt, "find_card", lambda: Card("Fake H100", (9, 0)))
