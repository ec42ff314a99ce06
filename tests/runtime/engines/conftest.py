"""Engines on fakes of TensorRT's libraries and of CUDA."""

import inspect
import shutil
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import runtime as real

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines.device.memory import CudaMemory
from ernie_export.runtime.engines.tensorrt import library as libraries
from ernie_export.runtime.engines.tensorrt.engine import TensorRTEngine
from tests.fakes.cuda import FakeCuda
from tests.fakes.tensorrt_runtime import changed, fake_library, write_bundle
from tests.manifests import engine_info


@pytest.fixture(scope="session")
def fake_cuda() -> type[FakeCuda]:
    """The fake, whose functions are checked to be the real library's."""
    for name, ours in vars(FakeCuda).items():
        if name.startswith("cuda") and inspect.isfunction(ours):
            first = getattr(real, name).__doc__.splitlines()[0]
            asked = first[first.index("(") + 1 : first.rindex(")")]
            names = [part.split(":")[0].split()[-1] for part in asked.split(",")] if asked else []
            assert list(inspect.signature(ours).parameters)[1:] == names, first
    return FakeCuda


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle in float32 whose engines are graphs, for the fake to run."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    write_bundle(folder)
    return folder


@pytest.fixture(scope="session")
def baked(tmp_path_factory) -> Path:
    """The same, whose engines hold the matrices of linear layers."""
    folder = tmp_path_factory.mktemp("baked") / "bundle"
    write_bundle(folder, bakes_projections=True)
    return folder


@pytest.fixture(scope="session")
def bundles(bundle, tmp_path_factory) -> dict[str, Path]:
    """A bundle by target: the same graphs, of which the full library's fake finds candidates besides."""
    full = shutil.copytree(bundle, tmp_path_factory.mktemp("trt") / "bundle")
    return {"trt": changed(full, "trt"), "trt-rtx": bundle}


@pytest.fixture
def opened(fake_cuda):
    """opened(folder): its engine on a fake GPU, and that GPU's CUDA. More arguments are attributes of `FakeRuntime`."""

    def opened(folder: Path, **attributes: Any) -> tuple[TensorRTEngine, Any]:
        manifest = Manifest.read(folder)
        engines = engine_info(manifest)
        cuda = fake_cuda()
        module = fake_library(manifest.target, cuda=cuda, top_k=engines.top_k, **attributes)
        library = libraries.LIBRARIES[engines.library](module, engines, CudaMemory(cuda))
        return TensorRTEngine(folder, manifest, library), cuda

    return opened


@pytest.fixture
def engine(opened, bundles, request):
    """An engine of the target that the test is parametrised by, trt unless it says so; all is freed after it."""
    engine, cuda = opened(bundles[getattr(request, "param", "trt")])
    with engine:
        yield engine
    assert not cuda.memory._blocks and not cuda.graphs
