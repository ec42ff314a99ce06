"""What ernie-verify reads of compiled engines, on the fakes of both libraries: every stage, against PyTorch.

On a GPU the same calls read the engines themselves, which has not been done.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.verify.bundle_side import ENGINE_VALUES, BundleSide, Tracer
from ernie_export.exporter.verify.comparison import compare_probes, compare_tokens
from ernie_export.exporter.verify.conversations import TEXT, ask
from ernie_export.exporter.verify.reference_weights import CheckpointTensors
from ernie_export.exporter.verify.results import Conversation
from ernie_export.exporter.verify.torch_side import Reference
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.runtime.engines.device.memory import CudaMemory
from ernie_export.runtime.engines.tensorrt import library as libraries
from ernie_export.runtime.engines.tensorrt.engine import TensorRTEngine
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Preprocessor
from tests.fakes.cuda import FakeCuda
from tests.fakes.tensorrt_runtime import changed, fake_library, write_bundle
from tests.manifests import engine_info
from tests.paths import MEDIA, MINI

TOKENS = 4
STAGES = ["vision encoder", "resampler", "logits", "decode logits"]
DAMAGED = "resampler_model.spatial_linear.0.weight"
PICTURE = {"type": "image", "path": str(MEDIA / "shapes.png")}
CLIP = {"type": "video", "path": str(MEDIA / "passing.mp4")}
CONVERSATIONS = {"text": TEXT, "picture and clip": ask("Which shape moves?", PICTURE, CLIP)}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> dict[str, Path]:
    """A bundle by target, in float32; its engines are the graphs, for the fakes to run."""
    folder = tmp_path_factory.mktemp("engines")
    write_bundle(folder / "trt-rtx")
    return {"trt-rtx": folder / "trt-rtx", "trt": changed(shutil.copytree(folder / "trt-rtx", folder / "trt"), "trt")}


@contextmanager
def opened(bundle: Path) -> Iterator[BundleSide]:
    """Open the bundle's engines as `BundleSide.open` does, on the fakes."""
    manifest = Manifest.read(bundle)
    engines = engine_info(manifest)
    cuda = FakeCuda()
    module = fake_library(manifest.target, cuda=cuda, top_k=engines.top_k)
    library = libraries.LIBRARIES[engines.library](module, engines, CudaMemory(cuda))
    tracer = Tracer(dict(ENGINE_VALUES))
    with TensorRTEngine(bundle, manifest, library, tracer.keep) as engine:
        yield BundleSide(Model(manifest, Preprocessor.from_folder(bundle), engine), tracer)


def compare(bundle: Path) -> tuple[dict[str, float], list[Conversation]]:
    """Return the error of each stage, and how the next tokens agree."""
    with opened(bundle) as side:
        preprocessor = side.model.preprocessor
        prepared = {name: preprocessor.prepare(each) for name, each in CONVERSATIONS.items()}
        found = {name: side.answer(each, TOKENS) for name, each in prepared.items()}
    prompts = {name: each.arrays for name, each in prepared.items()}
    reference = Reference(MINI, CheckpointTensors(Checkpoint.open(MINI)))
    runs = reference.run(prompts, {name: answered.tokens for name, answered in found.items()})
    probes = compare_probes(runs, found, prompts, every_token=True)
    tokens = [compare_tokens(name, runs[name].logits, found[name].logits, preprocessor.chat.decode) for name in found]
    return {name: probe.error for name, probe in probes.items()}, tokens


@pytest.mark.parametrize("target", ["trt", "trt-rtx"])
def test_every_stage_of_engines_is_compared(bundles, target):
    errors, tokens = compare(bundles[target])
    assert list(errors) == STAGES
    assert max(errors.values()) < 1e-5
    assert all(each.agreed == each.tokens == TOKENS for each in tokens)


def test_a_fault_is_found_at_its_stage(bundles, tmp_path):
    """A weight of the resampler is zero on the device: the encoder before it is right, what follows is not."""
    bundle = shutil.copytree(bundles["trt"], tmp_path / "bundle")
    data = bundle / Manifest.read(bundle).data_file
    (entry,) = (entry for name, entry in read_header(data).items() if name.endswith(DAMAGED))
    np.memmap(data, np.uint8, "r+", entry.offset, entry.nbytes)[:] = 0
    errors, _ = compare(bundle)
    assert errors["vision encoder"] < 1e-5 and errors["resampler"] > 0.1
