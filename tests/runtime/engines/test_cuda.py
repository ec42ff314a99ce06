"""The CUDA engine's own work, on the host's memory: weights shared by the sessions, a cache of addresses, candidates.

What only a GPU can show (the provider's kernels, captured graphs) is measured by benchmarks/gpu.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image

from ernie_export.common.errors import Unavailable, UserError
from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.runtime.batch import Batch
from ernie_export.runtime.engine_setup import warmed
from ernie_export.runtime.engines import PromptChunk
from ernie_export.runtime.engines.device.memory import HostMemory
from ernie_export.runtime.engines.ort_cpu import OrtCpuEngine
from ernie_export.runtime.engines.ort_cuda import TOPK_GRAPH, OrtCudaEngine
from ernie_export.runtime.logits import Logits
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.scheduler_config import SchedulerConfig
from tests.paths import MEDIA, ROOT

SHAPES = Image.open(MEDIA / "shapes.png")
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "How many sides has a triangle?"}],
    [
        {
            "role": "user",
            "content": [{"type": "image", "image": SHAPES}, {"type": "text", "text": "What is in the picture?"}],
        }
    ],
    [{"role": "user", "content": "What is red?"}],
]


@pytest.fixture(scope="module")
def bundle(mini_bundle):
    return mini_bundle


def model(bundle: Path, on_device: bool, limits: SchedulerConfig) -> Model:
    manifest = Manifest.read(bundle)
    engine = OrtCudaEngine(bundle, manifest, 1, HostMemory()) if on_device else OrtCpuEngine(bundle, manifest, 1)
    return Model(manifest, Preprocessor.from_folder(bundle), engine, limits)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_new_tokens": 20, "temperature": 1.0, "seed": 1, "top_k": 5},
        {"min_new_tokens": 20, "temperature": 1.3, "seed": 2, "top_p": 0.9},
        {"min_new_tokens": 8, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_answers_are_the_other_engines(bundle, options):
    """Rows end at different steps, and a cache of two rows takes three conversations: rows move."""
    answers = []
    for on_device in (False, True):
        with model(bundle, on_device, SchedulerConfig(max_num_seqs=2)) as loaded:
            rounds = [loaded.generate(CONVERSATIONS, max_new_tokens=24, **options) for _ in range(2)]
            answers.append([result.tokens for results in rounds for result in results])
    assert answers[0] == answers[1]
    assert len({len(tokens) for tokens in answers[0]}) > 1 or "min_new_tokens" in options


@pytest.fixture
def engine(bundle):
    with OrtCudaEngine(bundle, Manifest.read(bundle), 1, HostMemory()) as opened:
        yield opened


def fill(engine: OrtCudaEngine, cache, row: int, tokens: list[int]) -> Logits:
    count = len(tokens)
    chunk = PromptChunk(
        np.array(tokens),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.tile(np.arange(count), (3, 1)),
        np.zeros((0, engine._info.hidden_size), np.float32),
    )
    return engine.prefill(cache, row, chunk)


def next_logits(engine: OrtCudaEngine, cache, rows: int) -> np.ndarray:
    """Decode one token in each of the first rows; the cache is then as before."""
    positions = np.tile(cache.lengths[:rows], (3, 1))
    logits = np.stack([row.full() for row in engine.decode(cache, np.full(rows, 7), positions)])
    cache.lengths[:rows] -= 1
    return logits


def test_slots_move_and_caches_change_shape(engine):
    cache = engine.new_cache(3, 40)
    assert (cache.num_slots, cache.max_seq_len, cache.token_bytes) == (3, 256, 2 * 6 * 2 * 32 * 4)
    for row, tokens in enumerate([[11, 12, 13], [21, 22], [31, 32, 33, 34]]):
        fill(engine, cache, row, tokens)
    before = next_logits(engine, cache, 3)
    cache.swap_slots(0, 2)
    assert cache.lengths.tolist() == [4, 2, 3]
    np.testing.assert_allclose(next_logits(engine, cache, 3), before[[2, 1, 0]], rtol=0, atol=1e-5)
    cache.copy_slot(0, 1, 4)
    np.testing.assert_allclose(next_logits(engine, cache, 3), before[[2, 2, 0]], rtol=0, atol=1e-5)
    larger = cache.resized([2, 0], 4, 300)
    assert (larger.num_slots, larger.max_seq_len, larger.lengths.tolist()) == (4, 512, [3, 4, 0, 0])
    np.testing.assert_allclose(next_logits(engine, larger, 2), before[[0, 2]], rtol=0, atol=1e-5)


def test_a_cache_takes_up_the_memory_of_one_that_is_gone(engine):
    cache = engine.new_cache(2, 40)
    fill(engine, cache, 0, [1, 2, 3])
    expected = next_logits(engine, cache, 1)
    store = cache.store
    del cache
    again = engine.new_cache(2, 200)
    assert again.store is store and not again.lengths.any()
    fill(engine, again, 0, [1, 2, 3])
    assert np.array_equal(next_logits(engine, again, 1), expected)
    blocks = len(engine._memory._blocks)
    del again
    engine.new_cache(1, 40)
    assert len(engine._memory._blocks) == blocks - 1  # the other's buffers and its step's are gone, new buffers there


class RecordingEngine(OrtCudaEngine):
    """Notes the rows of each call: ("text" or "vision", tokens), or ("decode", sequences)."""

    calls: list[tuple[str, int]]

    def prefill(self, cache, slot, chunk):
        (token_type,) = set(chunk.token_types.tolist())
        self.calls.append((("text", "vision")[token_type], len(chunk.input_ids)))
        return super().prefill(cache, slot, chunk)

    def decode(self, cache, tokens, positions):
        self.calls.append(("decode", len(tokens)))
        return super().decode(cache, tokens, positions)


def test_every_size_is_run_before_the_first_request_the_largest_first(bundle):
    """An expert group gets a row besides its tokens: powers of two. The first cache finds its steps captured."""
    manifest = Manifest.read(bundle)
    manifest = replace(manifest, model=replace(manifest.model, max_positions=63))
    done: list[float] = []
    with RecordingEngine(bundle, manifest, 1, HostMemory()) as engine:
        engine.calls = []
        engine.warm(6, done.append)
        assert engine.calls == [
            *((kind, tokens) for tokens in (63, 31, 15, 7, 3, 1) for kind in ("text", "vision")),
            *(("decode", count) for count in (6, 4, 2, 1)),
        ]
        assert done == sorted(done) and done[0] > 0 and done[-1] == 1.0
        batch = Batch(engine, num_slots=6, max_seq_len=64)
        assert set(engine._bound_stores[batch._cache.store.address].steps) == {6, 4, 2, 1}
        assert not batch._cache.lengths.any()


def test_an_engine_whose_first_calls_fail_is_closed(bundle):
    closed = []

    class Failing(OrtCpuEngine):
        def warm(self, max_num_seqs, on_progress):
            on_progress(0.5)
            raise Unavailable(f"no memory for {max_num_seqs}")

        def close(self):
            closed.append(self)
            super().close()

    engine = Failing(bundle, Manifest.read(bundle), 1)
    shown: list[float] = []
    with pytest.raises(Unavailable, match="no memory for 3"):
        warmed(engine, SchedulerConfig(max_num_seqs=3), shown.append)
    assert shown == [0.5] and closed == [engine]


def test_chunks_are_the_engine_s_unless_the_user_says_otherwise(bundle, engine):
    """An engine that says nothing gets the lengths that suit a CPU; no group gets more rows than were tried."""
    with OrtCpuEngine(bundle, Manifest.read(bundle), 1) as cpu:
        batches = [Batch(e, num_slots=1, max_seq_len=64) for e in (engine, cpu)]
    assert [(b.prefill_chunk, b.prefill_chunk_while_decoding) for b in batches] == [(2047, 1023), (512, 128)]
    asked = Batch(engine, num_slots=1, max_seq_len=64, prefill_chunk=5, prefill_chunk_while_decoding=3)
    assert (asked.prefill_chunk, asked.prefill_chunk_while_decoding) == (5, 3)
    assert Batch(engine, num_slots=1, max_seq_len=64, prefill_chunk=4096).prefill_chunk == 2047


def test_topk_logits_are_the_highest(engine):
    cache = engine.new_cache(2, 40)
    fill(engine, cache, 0, [5, 6])
    fill(engine, cache, 1, [8])
    for row in engine.decode(cache, np.array([1, 2]), np.array([[2, 1]] * 3)):
        whole = row.full()
        order = np.argsort(-whole, kind="stable")[:64]
        best = row.topk()
        assert np.array_equal(best.ids, order) and np.array_equal(best.values, whole[order])
        assert best.total == pytest.approx(whole.sum(), abs=1e-2)


def test_equal_logits_come_in_the_order_of_their_ids_and_small_vocabularies_whole():
    session = ort.InferenceSession(TOPK_GRAPH, providers=["CPUExecutionProvider"])
    logits = np.random.default_rng(0).integers(0, 5, (3, 1000)).astype(np.float32)
    logits[1, 3] = np.nan
    ids, values, total = session.run(["ids", "values", "total"], {"logits": logits})
    for row in (0, 2):
        assert np.array_equal(ids[row], np.argsort(-logits[row], kind="stable")[:64])
    assert np.isfinite(total).tolist() == [True, False, True]
    assert session.run(["ids"], {"logits": logits[:1, :10]})[0].shape == (1, 10)


def test_the_topk_graph_is_what_its_tool_writes():
    source = (ROOT / "tools" / "make_topk.py").read_text()
    names: dict = {"__file__": str(ROOT / "tools" / "make_topk.py"), "__name__": "make_topk"}
    exec(compile(source, "make_topk.py", "exec"), names)
    assert onnx.load(TOPK_GRAPH) == names["model"]()


def test_closing_frees_the_memory(bundle):
    memory = HostMemory()
    with OrtCudaEngine(bundle, Manifest.read(bundle), 1, memory) as engine:
        engine.new_cache(1, 8)
        assert memory._blocks
    assert not memory._blocks


def test_a_graph_that_does_not_open_frees_the_memory(bundle):
    memory = HostMemory()
    manifest = Manifest.read(bundle)
    with pytest.raises(UserError, match="none.onnx: expected a graph"):
        OrtCudaEngine(bundle, replace(manifest, graphs=manifest.graphs | {"decode": "none.onnx"}), 1, memory)
    assert not memory._blocks


class CudaHostMemory(HostMemory):
    """The host's memory under the GPU's name."""

    device = "cuda"


def test_each_session_gets_the_provider_s_options(bundle):
    """Float32 products in full, an arena of what is asked for, and graphs captured where shapes stay as they are."""
    given: dict[str, Any] = {}

    class OnHost(OrtCudaEngine):
        """Notes what each session would be given on a GPU, and opens it on the host."""

        def _providers(self, graph):
            given[graph] = super()._providers(graph)
            return ["CPUExecutionProvider"]

    # Without weights of the device's: the host's sessions read those of the data file.
    OnHost(bundle, Manifest.read(bundle), 1, CudaHostMemory(), lambda memory, path: {}).close()
    captured = {"vision": "0", "resampler": "0", "decoder": "0", "decode": "1", "topk": "1"}
    assert set(captured) == {*GRAPHS, "topk"}
    options = {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"}
    assert given == {
        graph: [("CUDAExecutionProvider", options | {"enable_cuda_graph": capture}), "CPUExecutionProvider"]
        for graph, capture in captured.items()
    }


def test_a_session_on_the_host_gets_no_options_of_the_provider(engine):
    assert [engine._providers(graph) for graph in GRAPHS] == [["CPUExecutionProvider"]] * len(GRAPHS)
