"""The TensorRT engine's own work, on fakes of both libraries and for CUDA over the host's memory.

What only a GPU can show (that the libraries' engines compute the same) has not been run.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.export import export
from ernie_export.runtime import load
from ernie_export.runtime.batch import Batch
from ernie_export.runtime.engine_setup import fit_to_engines
from ernie_export.runtime.engines import PrefillChunks, PromptChunk
from ernie_export.runtime.engines.device.memory import ALIGNMENT, CudaMemory
from ernie_export.runtime.engines.device.step import DeviceTensor
from ernie_export.runtime.engines.device.weights import aligned_addresses, load_weights
from ernie_export.runtime.engines.tensorrt.engine import TensorRTEngine
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.fakes.tensorrt_runtime import FAKES, LIBRARIES, OURS, FakeContext
from tests.manifests import engine_info
from tests.mini import VOCABULARY
from tests.paths import MINI, PROGRAMS, tensorrt_api
from tests.progress import QUIET

MEDIA = MINI.parent / "media"
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "How many sides has a triangle?"}],
    [
        {
            "role": "user",
            "content": [
                {"type": "image", "path": str(MEDIA / "shapes.png")},
                {"type": "video", "path": str(MEDIA / "passing.mp4")},
                {"type": "text", "text": "Which shape moves?"},
            ],
        }
    ],
    [{"role": "user", "content": "What is red?"}],
    [{"role": "user", "content": "Name a colour."}],
]


@pytest.fixture(scope="module", params=["trt", "trt-rtx"])
def genuine(request) -> tuple[str, dict[str, Any]]:
    """A target, and its library's own classes: documentation by class and name, read from the real bindings."""
    module = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx_bindings"}[request.param]
    env = dict(os.environ)
    if module == "tensorrt":
        api = tensorrt_api()
        env |= {"PYTHONPATH": str(api), "LD_LIBRARY_PATH": str(api / "stubs")}
    program = [sys.executable, str(PROGRAMS / "describe_bindings.py"), module, *FAKES[request.param]]
    process = subprocess.run(program, capture_output=True, text=True, env=env)
    assert process.returncode == 0, process.stderr
    return request.param, json.loads(process.stdout)


def test_the_fake_has_only_what_the_bindings_have(genuine):
    """Names, and for methods the number of arguments and their names, read off the bindings' signatures."""
    target, described = genuine
    assert vars(LIBRARIES[target]).keys() <= set(described["module"])
    for kind, fake in FAKES[target].items():
        names = {name for base in fake.__mro__[:-1] for name in vars(base) if not name.startswith("_")} - OURS
        assert names
        for name in names:
            assert name in described[kind], (kind, name)
            if inspect.isfunction(ours := getattr(fake, name)):
                documented = re.sub(r"<[^>]*>", "", described[kind][name])  # default values
                signatures = re.findall(rf"{name}\(self: [^,)]+(?:, (.*?))?\) ->", documented)
                arguments = [re.findall(r"(\w+): ", signature) for signature in signatures]
                assert list(inspect.signature(ours).parameters)[1:] in arguments, (name, signatures)


def test_validity_is_asked_of_rtx_alone(genuine):
    """TensorRT's own Python interface has no such question: the manifest is compared with the GPU."""
    target, described = genuine
    assert ("get_engine_validity" in described["Runtime"]) == (target == "trt-rtx")


TARGETS = pytest.mark.parametrize("engine", ["trt", "trt-rtx"], indirect=True)


def model_of(engine: TensorRTEngine, folder: Path) -> Model:
    manifest = Manifest.read(folder)
    limits = fit_to_engines(manifest, SchedulerConfig())
    assert limits.max_num_seqs == 3
    return Model(manifest, Preprocessor.from_folder(folder), engine, limits)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[tuple[int, ...]]:
    """The CPU engine's answers."""
    folder = tmp_path_factory.mktemp("onnx") / "bundle"
    export(MINI, folder, "onnx", "fp32", QUIET)
    with load(folder, threads=1) as model:
        return [result.tokens for result in model.generate(CONVERSATIONS, max_new_tokens=12, min_new_tokens=4)]


@TARGETS
def test_answers_are_the_other_engines(engine, bundle, expected):
    """Four conversations in three rows of a fixed capacity: rows move; pictures, a clip, text; and again, reusing."""
    model = model_of(engine, bundle)
    for _ in range(2):
        results = model.generate(CONVERSATIONS, max_new_tokens=12, min_new_tokens=4)
        assert [result.tokens for result in results] == expected
    assert len({*expected}) >= 3


def test_answers_of_engines_that_hold_their_projections(opened, bundle, baked, expected):
    """The same, and the device holds less: what engines hold is not loaded a second time."""
    used = {}
    for folder in (bundle, baked):
        engine, cuda = opened(folder)
        constants = engine_info(folder).weights.constants
        with engine:
            assert engine._weights.keys() == read_header(folder / "weights.safetensors").keys() - set(constants)
            used[folder] = sum(len(block) for block in cuda.memory._blocks.values())
            results = model_of(engine, folder).generate(CONVERSATIONS, max_new_tokens=12, min_new_tokens=4)
            assert [result.tokens for result in results] == expected
    assert used[baked] < 0.7 * used[bundle]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        (
            lambda names: names[1:],
            "weights.safetensors: expected model.vision_model.blocks.0.norm1.weight to be an input",
        ),
        (
            lambda names: [*names, "lm_head.weight", "model.embed_tokens.weight"],
            "expected model.embed_tokens.weight to be a constant",
        ),
    ],
)
def test_engines_that_take_other_weights_than_the_manifest_says_are_refused(opened, bundle, tmp_path, change, refused):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    document = json.loads((folder / "manifest.json").read_text())
    document["engines"]["weights"]["constants"] = change(document["engines"]["weights"]["constants"])
    (folder / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=re.escape(refused)):
        opened(folder)


def test_decode_steps_are_captured_once_and_replayed(opened, bundles):
    """Of each number of rows the first step runs as it is, then all are launches; the host reads candidates alone."""
    engine, cuda = opened(bundles["trt"])
    with engine:
        cache = engine.new_cache(3, 64)
        positions = np.zeros((3, 3), np.int64)
        for rows in (2, 3, 2, 3, 3):
            found = engine.decode(cache, np.arange(rows), positions[:, :rows])
            assert [len(row.topk().values) for row in found] == [64] * rows
        assert (len(cuda.graphs), cuda.launches) == (2, 3)
        assert cache.lengths.tolist() == [5, 5, 3]
        whole = found[2].full()
        best = found[2].topk()
        assert np.array_equal(best.ids, np.argsort(-whole, kind="stable")[:64])
        assert np.array_equal(best.values, whole[best.ids])
        del cache
        engine.new_cache(1, 64)
        assert not cuda.graphs, "what was captured goes with the cache that it writes to"


@TARGETS
def test_no_context_ever_changes_its_shapes(engine):
    """Chunks of every length, after any past up to the cache's end; steps of any number; one cache after another.

    A chunk is padded to a length that has a context of its own, and what is behind it does not count.
    """
    if not engine._prefill_contexts:
        raise AssertionError("no contexts to look at")
    rng = np.random.default_rng(0)
    vocab = 400
    for _ in range(2):
        cache = engine.new_cache(2, 500)
        for length in (1, 63, 64, 65, 130, 100, 70):
            assert engine.prefill(cache, 0, words(rng.integers(0, vocab, length))).full().shape == (VOCABULARY,)
        assert cache.lengths[0] == 493
        for _ in range(7):
            assert engine.prefill(cache, 0, words(rng.integers(0, vocab, 1))).full().shape == (VOCABULARY,)
        engine.prefill(cache, 1, words(rng.integers(0, vocab, 5)))
        for rows in (1, 2, 1):
            engine.decode(cache, np.arange(rows), np.zeros((3, rows), np.int64))
        del cache
        engine.new_cache(1, 500)
    contexts = [*engine._prefill_contexts.values(), *(c for spare in engine._spare_contexts.values() for c in spare)]
    assert [context.shape_changes for context in contexts] == [0] * len(contexts)
    assert len(engine._prefill_contexts) == 4 and len(contexts) == 4 + 2, "steps' contexts are kept and used again"


@TARGETS
def test_padding_changes_no_logits(engine):
    """One chunk of 70 tokens, padded to 128, against the same tokens one by one, each padded to 64."""
    ids = np.random.default_rng(1).integers(0, 400, 70)
    cache = engine.new_cache(2, 500)
    whole = engine.prefill(cache, 0, words(ids)).full()
    for position, token in enumerate(ids):
        last = engine.prefill(cache, 1, words(np.array([token]), position)).full()
    np.testing.assert_allclose(last, whole, rtol=0, atol=2e-5)


def words(ids: np.ndarray, start: int = 0) -> PromptChunk:
    """Text tokens at consecutive positions."""
    zeros = np.zeros(len(ids), np.int64)
    positions = np.tile(np.arange(start, start + len(ids)), (3, 1))
    return PromptChunk(ids, zeros, zeros, positions, np.zeros((0, 128), np.float32))


class RefusesShape(FakeContext):
    """Answers False to a shape of one input, and would go on without."""

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return name != "input_ids" and super().set_input_shape(name, shape)


class RefusesAddress(FakeContext):
    """Answers False to an address of one output, and would go on without."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        return name != "present_value.2" and super().set_tensor_address(name, memory)


def test_a_shape_that_the_library_refuses_is_named_by_its_tensor(opened, bundles):
    engine, _ = opened(bundles["trt"], context=RefusesShape)
    with engine, pytest.raises(RuntimeError, match=r"decode engine: input input_ids does not take the shape \(1, 1\)"):
        engine.decode(engine.new_cache(1, 64), np.array([5]), np.zeros((3, 1), np.int64))


def test_an_address_that_the_library_refuses_is_named_by_its_tensor(opened, bundles):
    engine, _ = opened(bundles["trt"], context=RefusesAddress)
    with engine, pytest.raises(RuntimeError, match="tensor present_value.2 does not take the address 0x"):
        engine.prefill(engine.new_cache(1, 64), 0, words(np.array([5])))


def test_engines_that_do_not_update_the_cache_in_place_are_refused(opened, bundles):
    with pytest.raises(
        UserError, match="decoder.engine: expected present_key.0 to lie where past_key.0 lies, found mem"
    ):
        opened(bundles["trt"], aliases=False)


class RoundsLogits(FakeContext):
    """Finds many logits equal, since it rounds them to whole numbers."""

    def results(self) -> dict[str, np.ndarray]:
        rounded = ("logits", "candidate_values")
        return {name: np.round(array) if name in rounded else array for name, array in super().results().items()}


def test_equal_logits_stand_in_the_order_of_their_ids(opened, bundles):
    """TopK of the library promises no order among equals; the fake's is the other way round."""
    engine, _ = opened(bundles["trt"], context=RoundsLogits)
    with engine:
        (row,) = engine.decode(engine.new_cache(1, 64), np.array([5]), np.zeros((3, 1), np.int64))
        best = row.topk()
    pairs = list(zip(-best.values, best.ids))
    assert pairs == sorted(pairs) and len(set(best.values)) < 64


@TARGETS
def test_a_picture_past_the_limit_is_refused(engine):
    with pytest.raises(UserError, match=r"at most 16 tokens .*--max-image-tokens.* 20"):
        engine.encode(np.zeros((1, 80, 588), np.float32), np.zeros((80, 2), np.int64), np.zeros((2, 1), np.int64))


def test_a_prompt_past_the_limit_is_refused(engine, bundle):
    with pytest.raises(UserError, match="fewer than 500 tokens"):
        model_of(engine, bundle).generate([{"role": "user", "content": "What is red? " * 200}])


@TARGETS
def test_a_dropped_cache_leaves_its_memory_to_the_next(engine):
    address = engine.new_cache(2, 64).store.address
    cache = engine.new_cache(2, 500)
    assert (cache.store.address, cache.num_slots, cache.max_seq_len) == (address, 2, 576)
    other = engine.new_cache(1, 64)
    assert other.store.address != address


def test_contexts_take_turns_in_one_block(opened, bundles):
    """As large as the hungriest engine asks for, whatever the number of captured steps."""
    engine, cuda = opened(bundles["trt"])
    with engine:
        cache = engine.new_cache(3, 64)
        before = len(cuda.memory._blocks)
        for rows in (1, 2, 3):
            engine.decode(cache, np.arange(rows), np.zeros((3, rows), np.int64))
        assert len(cuda.memory._blocks) == before + 3, "a step's block each, and no more to work in"


def test_chunks_of_a_prompt_fit_the_profile(engine, bundle):
    """The engines say in the manifest how long a chunk may be; a batch that is asked for longer ones keeps to it."""
    assert engine.max_prefill_chunk == engine_info(bundle).prefill_chunk == 500
    batch = Batch(engine, num_slots=1, max_seq_len=500, prefill_chunk=4096)
    assert batch.prefill_chunk == 500


def test_chunks_are_as_long_as_the_engines_allow(engine):
    """A CPU's 128 tokens while others decode would read every expert for a quarter of the work."""
    batch = Batch(engine, num_slots=1, max_seq_len=500)
    assert (batch.prefill_chunk, batch.prefill_chunk_while_decoding) == (500, 500)


def test_chunks_are_padded_to_a_few_lengths_and_shorter_while_others_decode(opened, bundle, tmp_path):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["engines"]["prefill_chunk"] = 1024
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with opened(folder)[0] as engine:
        assert engine.prefill_chunks == PrefillChunks(alone=1024, while_decoding=512)
        assert list(engine._prefill_contexts) == [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("without_some", [False, True])
def test_weights_lie_aligned_and_whole(bundle, fake_cuda, without_some):
    """Read in pieces of a few pages; tensors that begin off the alignment in the file are moved."""
    gpu = CudaMemory(fake_cuda(), staging_bytes=3 * 2**13)
    path = bundle / Manifest.read(bundle).data_file
    entries = read_header(path)
    content = path.read_bytes()
    left_out = {name for name in entries if "norm" in name or ".4." in name or "experts.vision" in name}
    if without_some:
        entries = {name: entry for name, entry in entries.items() if name not in left_out}
    addresses = aligned_addresses(gpu, load_weights(gpu, path, left_out if without_some else ()))
    assert addresses.keys() == entries.keys()
    assert any(entry.offset % ALIGNMENT for entry in entries.values())
    for name, entry in entries.items():
        assert addresses[name] % ALIGNMENT == 0
        stored = content[entry.offset : entry.offset + entry.nbytes]
        assert gpu.read(addresses[name], entry.nbytes) == stored
    gpu.close()


@pytest.mark.parametrize(("kind", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_half_precision_passes_through_the_host_unchanged(engine, kind, dtype):
    values = np.random.default_rng(0).standard_normal((3, 1, 8)).astype(dtype)
    engine._dtype = kind
    stored = engine._to_device_dtype(values.astype(np.float32))
    assert np.array_equal(stored.view(np.uint16), values.view(np.uint16))
    address = engine._memory.allocate(stored.nbytes)
    engine._memory.write(address, stored)
    assert np.array_equal(engine._fetch(DeviceTensor(address, values.shape)), values.astype(np.float32))
