"""int4-fp16 for ONNX Runtime: experts lie as CUDA's kernels read them, and answers are those of the same rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_checkpoint import SHAPES, write_checkpoint

from ernie_export.common.errors import InvalidFile
from ernie_export.common.expert_layout import to_rows
from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.export import export
from ernie_export.runtime.engines import Engine, PromptChunk
from ernie_export.runtime.engines.device.memory import HostMemory
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine
from ernie_export.runtime.engines.ort_cuda import OrtCudaEngine
from tests.progress import QUIET


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, SHAPES["tiny"])
    return folder


@pytest.fixture(scope="module")
def bundles(checkpoint, tmp_path_factory) -> dict[str, Path]:
    """By target; that of standard operators holds the same weights as rows."""
    folder = tmp_path_factory.mktemp("bundles")
    for target in ("onnx", "onnx-portable"):
        export(checkpoint, folder / target, target, "int4-fp16", QUIET)
    return {target: folder / target for target in ("onnx", "onnx-portable")}


def tensors(bundle: Path) -> dict[str, np.ndarray]:
    path = bundle / "weights.safetensors"
    return {
        name: np.fromfile(path, np.uint8, entry.nbytes, offset=entry.offset).reshape(entry.shape)
        for name, entry in read_header(path).items()
        if entry.dtype == "U8"
    }


def test_the_experts_alone_are_tiled_and_hold_the_same_values(bundles):
    tiled = Manifest.read(bundles["onnx"]).tiled
    assert Manifest.read(bundles["onnx-portable"]).tiled == ()
    found = tensors(bundles["onnx"])
    rows = tensors(bundles["onnx-portable"])
    assert set(tiled) == {name for name in rows if ".experts." in name} and len(tiled) == 8
    for name, expected in rows.items():
        own = to_rows(found[name]) if name in tiled else found[name]
        assert np.array_equal(own, expected), name
        assert name not in tiled or not np.array_equal(found[name], expected)


def answers(engine: Engine[Any]) -> np.ndarray:
    """Return the logits after a prompt of text and vision tokens, and after each of many tokens that may follow."""
    with engine:
        cache = engine.new_cache(1, 16)
        types = np.array([0, 1, 1, 0, 1])
        chunk = PromptChunk(np.arange(20, 25), types, types * 0, np.tile(np.arange(5), (3, 1)), np.zeros((0, 128), "f"))
        found = [engine.prefill(cache, 0, chunk).full().copy()]
        for token in range(5, 25):
            cache.lengths[0] = 5
            (logits,) = engine.decode(cache, np.array([token]), np.full((3, 1), 5))
            found.append(logits.full().copy())
        return np.stack(found)


def test_answers_are_those_of_the_rows(bundles):
    """Of the engine for a CPU, and of that for CUDA over the host's memory.

    Only that the fused kernels round their rows to 8 bits is between them: where two experts are about as probable,
    that may exchange them, which moves a logit by as much as a wrong weight.
    """
    expected = answers(OrtCpuEngine(bundles["onnx-portable"], Manifest.read(bundles["onnx-portable"]), 1))
    manifest = Manifest.read(bundles["onnx"])
    for engine in (
        OrtCpuEngine(bundles["onnx"], manifest, 1),
        OrtCudaEngine(bundles["onnx"], manifest, 1, HostMemory()),
    ):
        errors = np.linalg.norm(answers(engine) - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert np.median(errors) < 0.04 and np.mean(errors < 0.08) > 0.8, errors


@pytest.mark.parametrize("name", ["model.norm.weight", "nothing", "lm_head.weight"])
def test_a_manifest_that_names_other_tensors_is_refused(bundles, name):
    manifest = replace(Manifest.read(bundles["onnx"]), tiled=(name,))
    with pytest.raises(InvalidFile, match=f"tiled: expected names of 4-bit weights of experts in .*, found {name}"):
        OrtCpuEngine(bundles["onnx"], manifest, 1)
    memory = HostMemory()
    with pytest.raises(InvalidFile, match="tiled: expected names of 4-bit weights"):
        OrtCudaEngine(bundles["onnx"], manifest, 1, memory)
    assert not memory._blocks
