"""ONNX Runtime's engine on a CPU: which graphs it opens, and when."""

from pathlib import Path

import numpy as np
import pytest
from make_checkpoint import SHAPES, write_checkpoint

from ernie_export.common.errors import InvalidFile, Unavailable
from ernie_export.common.manifest import Manifest
from ernie_export.exporter.export import export
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.ort_common import translate_ort_errors
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine
from tests.progress import QUIET


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("tiny")
    write_checkpoint(folder, SHAPES["tiny"])
    return folder


@pytest.fixture(
    scope="module", params=[("onnx", "fp32"), ("onnx", "int8"), ("onnx", "int4"), ("onnx-portable", "int4")]
)
def bundle(checkpoint, tmp_path_factory, request) -> Path:
    folder: Path = tmp_path_factory.mktemp("bundle") / "bundle"
    target, precision = request.param
    export(checkpoint, folder, target, precision, QUIET)
    return folder


def prompt(start: int, length: int, image: bool) -> PromptChunk:
    """Return a chunk of a prompt, whose third token is an image's if there is one."""
    index = (np.arange(length) == 2) * int(image)
    features = np.random.default_rng(0).standard_normal((1 if image else 0, SHAPES["tiny"]["text"]["hidden_size"]))
    positions = np.tile(np.arange(start, start + length), (3, 1))
    return PromptChunk(np.arange(20, 20 + length), index, index, positions, features.astype(np.float32))


def logits(engine: OrtCpuEngine, with_image: bool = True) -> list[np.ndarray]:
    """Return the logits of a conversation of text, then of one with an image, then of steps of both."""
    cache = engine.new_cache(2, 32)
    found = [engine.prefill(cache, 0, prompt(0, 9, image=False)).full().copy()]
    found += [one.full().copy() for one in engine.decode(cache, np.array([7]), np.full((3, 1), 9))]
    if with_image:
        found.append(engine.prefill(cache, 1, prompt(0, 6, image=True)).full().copy())
        found += [one.full().copy() for one in engine.decode(cache, np.array([8, 9]), np.array([[10, 6]] * 3))]
    return found


def test_media_that_come_later_change_no_logits(bundle):
    """Text goes through another graph until then; keys and values of before stay in use."""
    manifest = Manifest.read(bundle)
    with OrtCpuEngine(bundle, manifest, 1) as engine:
        expected = logits(engine)
    with OrtCpuEngine(bundle, manifest, 1, media=False) as engine:
        found = logits(engine)
    assert len(found) == 5
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_text_alone_opens_one_graph(bundle):
    manifest = Manifest.read(bundle)
    for graph in ("vision", "resampler", "decoder"):
        (bundle / manifest.graphs[graph]).rename(bundle / f"{graph}.away")
    try:
        with OrtCpuEngine(bundle, manifest, 1, media=False) as engine:
            assert len(logits(engine, with_image=False)) == 2
            with pytest.raises(InvalidFile, match=r"decoder\.onnx"):
                logits(engine)
            with pytest.raises(InvalidFile, match=r"vision\.onnx"):
                engine.encode(np.zeros((1, 4, 588), np.float32), np.zeros((4, 2), np.int64), np.zeros((2, 1), np.int64))
    finally:
        for graph in ("vision", "resampler", "decoder"):
            (bundle / f"{graph}.away").rename(bundle / manifest.graphs[graph])


def test_a_bundle_holds_its_text_experts_once(bundle):
    """Where `decoder` decodes too, `decode` is closed before it is opened."""
    manifest = Manifest.read(bundle)
    with OrtCpuEngine(bundle, manifest, 1, media=False) as engine:
        assert engine.open_graphs == {"decode"}
        logits(engine)
        assert engine.open_graphs == {"decoder", manifest.cpu_decode_graph}
    with OrtCpuEngine(bundle, manifest, 1) as engine:
        assert engine.open_graphs == {"vision", "resampler", "decoder", manifest.cpu_decode_graph}


@pytest.mark.parametrize(
    ("message", "raised"),
    [
        ("Failed to allocate memory for requested buffer of size 4096", Unavailable),
        ("CUDA failure 2: out of memory ; GPU=0", Unavailable),
        ("std::bad_alloc", Unavailable),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", Unavailable),
        ("Got invalid dimensions for input: x", InvalidFile),
    ],
)
def test_out_of_memory_is_not_a_broken_graph(message, raised):
    graph = Path("decoder.onnx")
    with pytest.raises(raised, match=f"^{graph}: .*{message.split()[-1]}"), translate_ort_errors(graph):
        raise RuntimeError(message)


def test_an_error_that_is_typed_already_stays():
    with pytest.raises(Unavailable, match="^GPU: "), translate_ort_errors(Path("decoder.onnx")):
        raise Unavailable("GPU: no memory for 3")
