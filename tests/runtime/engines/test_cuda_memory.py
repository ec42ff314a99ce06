"""Opening a bundle for `--device cuda`: what is missing there, too little memory, and copies to the GPU."""

import math
import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from ernie_export.common.errors import Unavailable, UserError
from ernie_export.common.manifest import Manifest
from ernie_export.common.provider_memory import WORKING_MEMORY, provider_memory
from ernie_export.common.safetensors_header import read_header
from ernie_export.runtime import load
from ernie_export.runtime.engines.device import find_gpu
from ernie_export.runtime.engines.device.memory import CudaMemory
from ernie_export.runtime.engines.ort_common import MIN_VERSION, check_version
from tests.fakes.installation import CUDA_LIBRARIES, DRIVER, FakeInstallation
from tests.paths import ROOT


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


@pytest.fixture
def half(bundle, tmp_path):
    """A bundle that says it is fp16: enough for what is looked at before anything is loaded."""
    manifest = replace(Manifest.read(bundle), precision="fp16", devices=("cpu", "cuda"))
    manifest.write(tmp_path)
    return tmp_path


def open_memory(bundle: Path, installation: FakeInstallation) -> CudaMemory:
    """Return the GPU's memory, as loading the bundle for `--device cuda` does before anything else."""
    return CudaMemory.for_bundle(bundle, Manifest.read(bundle), installation)


def test_without_onnxruntime_gpu(half):
    if find_gpu.PROVIDER in ort.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed here")
    with pytest.raises(UserError, match="expected onnxruntime-gpu, found onnxruntime .* without its CUDA provider"):
        load(half, device="cuda")


@pytest.mark.parametrize("version", ["1.31.0", "1.31.0rc2", "1.30.4", "1.9.9"])
def test_with_a_version_that_routes_bf16_at_random(half, version, fake_cuda):
    found = re.escape(version)
    with pytest.raises(Unavailable, match=f"onnxruntime-gpu: expected version 1.31.1 or newer, found {found} "):
        open_memory(half, FakeInstallation(fake_cuda(), version=version))


@pytest.mark.parametrize("version", ["1.31.1", "1.32.0", "1.100", "2.0"])
def test_versions_from_the_floor_on_are_taken(half, version, fake_cuda):
    open_memory(half, FakeInstallation(fake_cuda(free=2**33), version=version)).close()


def test_a_cpu_asks_for_the_same_floor():
    """The package asks for it as well."""
    with pytest.raises(Unavailable, match=r"^onnxruntime: expected version 1\.31\.1 or newer, found 1\.31\.0 \(pip"):
        check_version("onnxruntime", "1.31.0", "pip install it")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"onnxruntime>={MIN_VERSION}" in project["dependencies"]


@pytest.mark.parametrize("missing", (DRIVER, *CUDA_LIBRARIES))
def test_without_a_library(half, missing, fake_cuda):
    installation = FakeInstallation(fake_cuda(), missing)
    with pytest.raises(UserError, match=f"--device cuda: expected {missing} .*, found none"):
        open_memory(half, installation)


def test_without_cuda_bindings(half):
    installation = FakeInstallation()
    with pytest.raises(UserError, match=r"--device cuda: expected cuda-bindings \(pip install .\[gpu\]\), found none"):
        open_memory(half, installation)


@pytest.mark.parametrize(
    ("found", "reason"),
    [({"code": 35}, "driver version"), ({"code": 100}, "no CUDA-capable"), ({"devices": 0}, "no device")],
)
def test_without_a_gpu(half, fake_cuda, found, reason):
    installation = FakeInstallation(fake_cuda(**found))
    with pytest.raises(UserError, match=f"expected a GPU that CUDA 13 can use, found none .*{reason}"):
        open_memory(half, installation)


def test_with_too_little_memory(half, fake_cuda):
    installation = FakeInstallation(fake_cuda(free=2**30))
    with pytest.raises(UserError, match=r"expected 2\.0 GiB free on the GPU .*found 1\.0 of 16\.0"):
        open_memory(half, installation)


def test_the_provider_s_own_memory_is_counted_before_anything_is_loaded(half, bundle, fake_cuda):
    """Its copies of scales and the weights that it tries kernels on: the data file's header says how much."""
    shutil.copyfile(bundle / "weights.safetensors", half / "weights.safetensors")
    manifest = Manifest.read(half)
    weights = manifest.files["weights.safetensors"].bytes
    own = provider_memory({name: e.nbytes for name, e in read_header(half / "weights.safetensors").items()})
    tried = 2 * 8 * 2 * 96 * 128 * 4  # by two sessions: 8 experts' gate and up of 96 by 128, in float32 here
    assert own == WORKING_MEMORY + tried
    open_memory(half, FakeInstallation(fake_cuda(free=weights + own))).close()
    with pytest.raises(Unavailable, match=r"expected 2\.0 GiB free on the GPU .*found 2\.0 of 16\.0"):
        open_memory(half, FakeInstallation(fake_cuda(free=weights + own - 1)))


def test_copied_scales_are_those_that_the_stand_ins_counted():
    """At load int4-fp16 takes 61,440 bytes more than fp16 there: two sparse layers of the shape `tiny`."""
    scales = {"text.gate_up_proj": (8, 256, 2), "text.down_proj": (8, 128, 2)}
    scales |= {"vision.gate_up_proj": (8, 128, 2), "vision.down_proj": (8, 128, 1)}
    sizes = {
        f"model.layers.{layer}.mlp.experts.{name}_scales": 2 * math.prod(shape)
        for layer in (1, 2)
        for name, shape in scales.items()
    }
    assert provider_memory(sizes) - WORKING_MEMORY == 61440


def test_a_cache_that_does_not_fit(fake_cuda):
    with pytest.raises(UserError, match=r"GPU memory: expected 3\.00 GiB free, found 1\.00 GiB"):
        CudaMemory(fake_cuda(free=2**30)).allocate(3 * 2**30)
    cuda = fake_cuda(free=2**30)
    cuda.cudaMalloc = lambda size: (type(cuda.code)(2), None)
    with pytest.raises(UserError, match="cudaMalloc failed with error 2, out of memory"):
        CudaMemory(cuda).allocate(2**20)


def test_copies_are_waited_for(fake_cuda, tmp_path):
    """Files of several pieces by two pinned buffers in turn, arrays, and moves within the device; and all is freed."""
    cuda = fake_cuda()
    gpu = CudaMemory(cuda, staging_bytes=1000)
    content = np.random.default_rng(0).integers(0, 256, 4321, np.uint8)
    (tmp_path / "file").write_bytes(content.tobytes())
    address = gpu.allocate(8000)
    with (tmp_path / "file").open("rb", buffering=0) as file:
        gpu.fill(file, [(address, 21, 1500), (address + 1500, 1521, 1), (address + 1501, 1522, 2799)])
        gpu.fill(file, [(address + 6000, 300, 40), (address + 6040, 4000, 10)])
    assert gpu.read(address, 4300) == content[21:].tobytes()
    assert gpu.read(address + 6000, 50) == content[300:340].tobytes() + content[4000:4010].tobytes()
    gpu.copy([(address + 4300, address + 5, 100), (address + 4400, address + 4300, 50)])
    assert gpu.read(address + 4300, 150) == content[26:126].tobytes() + content[26:76].tobytes()
    gpu.write(address, content)
    assert gpu.read(address, 4321) == content.tobytes()
    graph = gpu.capture(lambda: None)
    gpu.launch(graph)
    gpu.close()
    assert not cuda.graphs and not cuda.memory._blocks


def test_a_bundle_that_the_provider_cannot_run(bundle):
    """The manifest says which devices run the bundle; that of fp32 runs on a CPU alone."""
    with pytest.raises(UserError, match="expected target onnx in fp16, bf16 or int4-fp16 .*found onnx, fp32"):
        load(bundle, device="cuda")


def test_an_unknown_device(half):
    with pytest.raises(UserError, match="device: expected cpu or cuda, found 'tpu'"):
        load(half, device="tpu")
