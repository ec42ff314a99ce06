"""The TensorRT engine's own work, on stand-ins for both libraries and for CUDA over the host's memory.

The stand-ins run the very graphs that engines are built from, in ONNX Runtime, at the addresses they are given, when
someone waits for the stream; they have no method that the real bindings lack. What only a card can show (that the
libraries' engines compute the same) has not been run.
"""

import ctypes
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import tensorrt_rtx_bindings as rtx_module
from ernie_export.exporter.export import Progress, export
from ernie_export.exporter.targets import engines, rtx
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import PREFILL_CHUNK, Manifest
from ernie_export.graphs.precision import ONNX, PRECISIONS
from ernie_export.graphs.tensor_file import read_header
from ernie_export.runtime import cli, generation, load
from ernie_export.runtime.engines import find_gpu, memory
from ernie_export.runtime.engines.memory import ALIGNMENT, CudaMemory
from ernie_export.runtime.engines.tensorrt import Tensor, TensorRTEngine, load_weights
from ernie_export.runtime.engines.tensorrt_library import find_card
from ernie_export.runtime.pipeline import Model, engine_limits
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.scheduler import Limits

ROOT = Path(__file__).parents[3]
MINI = ROOT / "examples" / "mini-ernie"
MEDIA = ROOT / "examples" / "media"
API = Path(sys.prefix, "tensorrt_api")
QUIET = Progress(lambda name, total: None, lambda count: None)
NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
CONVERSATIONS = [
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


class Context:
    """Stands in for IExecutionContext. Shapes are held to the profile that the engine would have."""

    def __init__(self, engine: "Engine", managed: bool) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = not managed  # whether it has memory to work in
        self.ran = self.captured = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0 and size >= self.engine.SCRATCH[self.engine.number]
        self.scratch = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.captured, "a captured graph's context may not change"
        declared = self.engine.inputs[name].shape
        assert len(shape) == len(declared)
        for size, dim in zip(shape, declared):
            least, _, most = self.engine.dimensions[dim] if isinstance(dim, str) else (dim, dim, dim)
            assert least <= size <= most, f"{name}: {shape} for {declared}"
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert not self.captured, "a captured graph's context may not change"
        assert name in self.engine.inputs or name in self.engine.outputs
        assert memory % ALIGNMENT == 0
        self.addresses[name] = memory
        return True

    def results(self) -> dict[str, np.ndarray]:
        """What the graph makes of what lies at the inputs' addresses now."""
        feed = {}
        for key, declared in self.engine.inputs.items():
            dtype, shape = np.dtype(NUMPY[declared.type]), self.shapes.get(key, declared.shape)
            block = ctypes.string_at(self.addresses[key], int(np.prod(shape)) * dtype.itemsize)
            feed[key] = np.frombuffer(block, dtype).reshape(shape)
        results = dict(zip(self.engine.graph_outputs, self.engine.session.run(self.engine.graph_outputs, feed)))
        if self.engine.best:
            order = np.argsort(results["logits"], kind="stable")[
                :, : -self.engine.best - 1 : -1
            ]  # of equals the higher id
            results |= {"candidate_ids": order, "logit_total": results["logits"].sum(-1)}
            results["candidate_values"] = np.take_along_axis(results["logits"], order, -1)
        return results

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output: the graph is run for it, on whatever the inputs are."""
        return self.results()[name].shape

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda = self.engine.runtime.cuda
        assert self.scratch and self.engine.outputs.keys() <= self.addresses.keys()

        def run() -> None:
            for name, array in self.results().items():
                array = np.ascontiguousarray(array)
                ctypes.memmove(self.addresses[name], array.ctypes.data, array.nbytes)

        if cuda.streams[stream_handle].recorded is not None:
            assert self.ran, "a context has to run once before it is captured"
            self.captured = True
        self.ran = True
        cuda.put(stream_handle, run)
        return True


class Engine:
    """Stands in for ICudaEngine; its plan is the dynamic dimensions' bounds in JSON, a line break, and the graph."""

    SCRATCH = [3000, 500, 70000, 4000]

    def __init__(self, plan: bytes, runtime: Any, number: int) -> None:
        head, graph = plan.split(b"\n", 1)
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.runtime, self.number = runtime, number
        self.dimensions = json.loads(head)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.graph_outputs = [value.name for value in self.session.get_outputs()]
        self.best = 64 if runtime.full and "input_ids" in self.inputs and "features" not in self.inputs else 0
        self.outputs = dict.fromkeys(self.graph_outputs)
        if self.best:
            self.outputs |= dict.fromkeys(("candidate_ids", "candidate_values", "logit_total"))

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> Any:
        return {"tensor(float)": rtx_module.float32}[self.inputs[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(dim, str) else dim for dim in self.inputs[name].shape)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        assert profile_index == 0
        return self.SCRATCH[self.number]

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy == rtx_module.ExecutionContextAllocationStrategy.USER_MANAGED
        return Context(self, managed=True)


class RtxEngine(Engine):
    """The same of TensorRT for RTX."""

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig()

    def create_execution_context(self, runtime_config: "RuntimeConfig") -> Context:
        assert isinstance(runtime_config, RuntimeConfig)
        wanted = rtx_module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if "features" not in self.inputs else None
        assert "past_lengths" not in self.inputs or runtime_config.cuda_graph_strategy == wanted
        return Context(self, managed=False)


class RuntimeConfig:
    """Stands in for IRuntimeConfig."""

    cuda_graph_strategy: Any = None


class Runtime:
    """Stands in for Runtime. `cuda`: the card that it runs on."""

    cuda: Any = None
    full = True
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, rtx_module.Logger)
        self.loaded = 0

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine:
        self.loaded += 1
        return (Engine if self.full else RtxEngine)(serialized_engine, self, self.loaded - 1)


class RtxRuntime(Runtime):
    """The same of TensorRT for RTX."""

    full = False
    validity = (rtx_module.EngineValidity.VALID, 0)

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return self.validity


# Of both libraries; they are equal in either.
BOTH = ("Logger", "ExecutionContextAllocationStrategy", "float32", "bfloat16", "float16")
RTX_ONLY = ("CudaGraphStrategy", "EngineValidity", "EngineInvalidityDiagnostics")
LIBRARIES = {
    "trt": SimpleNamespace(Runtime=Runtime, **{name: getattr(rtx_module, name) for name in BOTH}),
    "trt-rtx": SimpleNamespace(Runtime=RtxRuntime, **{name: getattr(rtx_module, name) for name in (*BOTH, *RTX_ONLY)}),
}
STAND_INS = {
    "trt": {"IExecutionContext": Context, "ICudaEngine": Engine, "Runtime": Runtime},
    "trt-rtx": {
        "IExecutionContext": Context,
        "ICudaEngine": RtxEngine,
        "Runtime": RtxRuntime,
        "IRuntimeConfig": RuntimeConfig,
    },
}
OURS = {"cuda", "full", "validity", "SCRATCH", "results"}  # what stand-ins have besides the library's names
DESCRIBE = """
import json, sys, MODULE as trt
kinds = sys.argv[1:]
print(json.dumps({kind: {n: getattr(getattr(trt, kind), n).__doc__ or "" for n in dir(getattr(trt, kind))}
                  for kind in kinds} | {"module": dir(trt)}))
"""


@pytest.fixture(scope="module", params=["trt", "trt-rtx"])
def genuine(request) -> tuple[str, dict[str, Any]]:
    """A target, and its library's own classes: documentation by class and name, read from the real bindings."""
    module = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx_bindings"}[request.param]
    env = dict(os.environ)
    if module == "tensorrt":
        assert API.is_dir(), f"{API} is missing: python tools/tensorrt_api.py {API}, which `make test` runs"
        env |= {"PYTHONPATH": str(API), "LD_LIBRARY_PATH": str(API / "stubs")}
    program = [sys.executable, "-c", DESCRIBE.replace("MODULE", module), *STAND_INS[request.param]]
    process = subprocess.run(program, capture_output=True, text=True, env=env)
    assert process.returncode == 0, process.stderr
    return request.param, json.loads(process.stdout)


def test_the_stand_in_has_only_what_the_bindings_have(genuine):
    """Names, and for methods the number of arguments and their names, read off the bindings' signatures."""
    target, described = genuine
    assert vars(LIBRARIES[target]).keys() <= set(described["module"])
    for kind, stand_in in STAND_INS[target].items():
        names = {name for base in stand_in.__mro__[:-1] for name in vars(base) if not name.startswith("_")} - OURS
        assert names
        for name in names:
            assert name in described[kind], (kind, name)
            if inspect.isfunction(ours := getattr(stand_in, name)):
                documented = re.sub(r"<[^>]*>", "", described[kind][name])  # default values
                signatures = re.findall(rf"{name}\(self: [^,)]+(?:, (.*?))?\) ->", documented)
                arguments = [re.findall(r"(\w+): ", signature) for signature in signatures]
                assert list(inspect.signature(ours).parameters)[1:] in arguments, (name, signatures)


def test_validity_is_asked_of_rtx_alone(genuine):
    """TensorRT's own Python interface has no such question: the manifest is compared with the card."""
    target, described = genuine
    assert ("get_engine_validity" in described["Runtime"]) == (target == "trt-rtx")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """What ernie-export writes, in float32, but for the engines: each is its graph, for the stand-in to run."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"

    def keep_graph(name: str, request: dict[str, Any], on_share: Any) -> dict[str, Any]:
        head = json.dumps(request["dimensions"]).encode()
        Path(request["engine"]).write_bytes(head + b"\n" + Path(request["onnx"]).read_bytes())
        return {"version": rtx_module.__version__}

    limits = rtx.Limits(capabilities="8.9", max_batch=3, max_tokens=500, max_image_tokens=16)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engines, "build_engine", keep_graph)
        patched.setitem(PRECISIONS, "trt-rtx", ONNX)  # in float32, which ONNX Runtime computes in on a CPU
        export(MINI, folder, "trt-rtx", "fp32", QUIET, limits)
    return folder


FULL = {
    "library": "tensorrt",
    "version": "11.4.0.106",
    "compute_capabilities": ["9.0"],
    "device": "NVIDIA H100",
    "hardware": "exact",
}


def changed(bundle: Path, target: str, **engines: Any) -> Path:
    """The bundle with another manifest: of `target`, and with other figures of its engines."""
    document = json.loads((bundle / "manifest.json").read_text())
    document["target"] = target
    document["engines"] |= (FULL if target == "trt" else {}) | engines
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


@pytest.fixture(scope="module")
def bundles(bundle, tmp_path_factory) -> dict[str, Path]:
    """A bundle by target: the same graphs, of which the full library's stand-in finds candidates besides."""
    full = shutil.copytree(bundle, tmp_path_factory.mktemp("trt") / "bundle")
    return {"trt": changed(full, "trt"), "trt-rtx": bundle}


@pytest.fixture
def opened(monkeypatch, host_cuda):
    """opened(folder): its engine on a card that the stand-ins make up, and that card."""

    def opened(folder: Path) -> tuple[TensorRTEngine, Any]:
        manifest, cuda = Manifest.read(folder), host_cuda()
        monkeypatch.setattr(Runtime, "cuda", cuda)
        return TensorRTEngine(folder, manifest, LIBRARIES[manifest.target], CudaMemory(cuda)), cuda

    return opened


@pytest.fixture
def engine(opened, bundles, request):
    """An engine of the target that the test is parametrised by, trt unless it says so; all is freed after it."""
    engine, cuda = opened(bundles[getattr(request, "param", "trt")])
    with engine:
        yield engine
    assert not cuda.memory._blocks and not cuda.graphs


TARGETS = pytest.mark.parametrize("engine", ["trt", "trt-rtx"], indirect=True)


def model_of(engine: TensorRTEngine, folder: Path) -> Model:
    manifest = Manifest.read(folder)
    limits = engine_limits(manifest, Limits())
    assert limits.rows == 3
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


def test_decode_steps_are_captured_once_and_replayed(opened, bundles):
    """Of each number of rows the first step runs as it is, then all are launches; the host reads candidates alone."""
    engine, cuda = opened(bundles["trt"])
    with engine:
        cache, positions = engine.new_cache(3, 64), np.zeros((3, 3), np.int64)
        for rows in (2, 3, 2, 3, 3):
            found = engine.decode(cache, np.arange(rows), positions[:, :rows])
            assert [len(row.values) for row in found] == [64] * rows
        assert (len(cuda.graphs), cuda.launches) == (2, 3)
        assert cache.lengths.tolist() == [5, 5, 3]
        whole = found[2].whole()
        assert np.array_equal(found[2].ids, np.argsort(-whole, kind="stable")[:64])
        assert np.array_equal(found[2].values, whole[found[2].ids])
        del cache
        engine.new_cache(1, 64)
        assert not cuda.graphs, "what was captured goes with the cache that it writes to"


def test_equal_candidates_stand_in_the_order_of_their_ids(engine, monkeypatch):
    """TopK of the library promises no order among equals; the stand-in's is the other way round."""
    plain = Context.results
    flat = lambda self: {n: np.round(a) if n in ("logits", "candidate_values") else a for n, a in plain(self).items()}  # noqa: E731
    monkeypatch.setattr(Context, "results", flat)
    (row,) = engine.decode(engine.new_cache(1, 64), np.array([5]), np.zeros((3, 1), np.int64))
    pairs = list(zip(-row.values, row.ids))
    assert pairs == sorted(pairs) and len(set(row.values)) < 64


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
    assert (cache.store.address, cache.rows, cache.capacity) == (address, 2, 512)
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


def test_chunks_of_a_prompt_fit_the_profile():
    assert generation.CHUNK <= PREFILL_CHUNK


def test_weights_lie_aligned_and_whole(bundle, host_cuda, monkeypatch):
    """Read in pieces of a few pages; tensors that begin off the alignment in the file are moved."""
    monkeypatch.setattr(memory, "STAGING", 3 * 2**13)
    card, path = CudaMemory(host_cuda()), bundle / Manifest.read(bundle).data_file
    addresses, entries, content = load_weights(card, path), read_header(path), path.read_bytes()
    assert addresses.keys() == entries.keys()
    assert any(entry.offset % ALIGNMENT for entry in entries.values())
    for name, entry in entries.items():
        assert addresses[name] % ALIGNMENT == 0
        stored = content[entry.offset : entry.offset + entry.nbytes]
        assert card.read(addresses[name], entry.nbytes) == stored
    card.close()


@pytest.mark.parametrize(("kind", "dtype"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_half_precision_passes_through_the_host_unchanged(engine, kind, dtype):
    values = np.random.default_rng(0).standard_normal((3, 1, 8)).astype(dtype)
    engine._float = kind
    stored = engine._as_stored(values.astype(np.float32))
    assert np.array_equal(stored.view(np.uint16), values.view(np.uint16))
    address = engine._memory.allocate(stored.nbytes)
    engine._memory.write(address, stored)
    assert np.array_equal(engine._fetch(Tensor(address, values.shape)), values.astype(np.float32))


# What is missing or does not fit, one line each, before anything is loaded.


def test_an_rtx_engine_for_another_card(opened, bundle, monkeypatch):
    kinds = rtx_module.EngineInvalidityDiagnostics
    monkeypatch.setattr(RtxRuntime, "validity", (rtx_module.EngineValidity.INVALID, int(kinds.UNSUPPORTED_CC)))
    with pytest.raises(UserError, match=r"vision.engine: expected a GPU of .* 8.9, found 9.0 \(UNSUPPORTED_CC\)"):
        opened(bundle)


def test_an_engine_that_the_library_does_not_read(opened, bundles, monkeypatch):
    monkeypatch.setattr(Runtime, "deserialize_cuda_engine", lambda self, plan: None)
    with pytest.raises(UserError, match=r"vision.engine: expected an engine of tensorrt, found that it does not read"):
        opened(bundles["trt"])


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """ernie-run's one line, after exit code 2."""
    monkeypatch.setattr(sys, "argv", ["ernie-run", str(folder), "What is red?"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    return printed.err


@pytest.fixture
def on_card(monkeypatch):
    """on_card(cuda, version): as if TensorRT of this version, a driver and this card were here."""

    def on_card(cuda: Any, version: str = "11.4.0.106") -> None:
        library = type(sys)("tensorrt")
        library.__version__ = version
        monkeypatch.setitem(sys.modules, "tensorrt", library)
        monkeypatch.setattr(find_gpu.ctypes, "CDLL", lambda *_, **__: None)
        monkeypatch.setattr("cuda.bindings.runtime", cuda)

    return on_card


EXACT = "expected NVIDIA H100 (9.0), which its engines were built for, found"
CARDS = [
    ({}, {}, ""),
    ({}, {"capability": (8, 9), "name": "L4"}, f"{EXACT} L4 (8.9)"),
    ({}, {"name": "NVIDIA H200"}, f"{EXACT} NVIDIA H200 (9.0)"),
    ({"hardware": "same-capability"}, {"name": "NVIDIA H200"}, ""),
    ({"hardware": "same-capability"}, {"capability": (10, 0)}, "expected a GPU of compute capability 9.0, which"),
    ({"hardware": "ampere-plus"}, {"capability": (12, 0)}, ""),
    ({"hardware": "ampere-plus"}, {"capability": (7, 5)}, "expected a GPU of compute capability 8.0 or higher, which"),
    ({}, {"free": 2**30}, "GiB free on the GPU"),
    ({}, {"devices": 0}, "expected a GPU that CUDA 13 can use, found none (no device)"),
]  # fmt: skip


@pytest.mark.parametrize(("engines", "card", "message"), CARDS, ids=lambda value: str(value)[:40])
def test_the_card_is_one_that_the_engines_run_on(bundle, tmp_path, on_card, host_cuda, engines, card, message):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", **engines)
    on_card(host_cuda(**card))
    if message:
        with pytest.raises(UserError, match=re.escape(message)):
            load(folder)
    else:
        _, memory = find_card(folder, Manifest.read(folder))
        memory.close()


VERSIONS = [
    ("11.4.0.106", False, True),
    ("11.5.0.1", False, False),
    ("11.5.0.1", True, True),
    ("11.3.9.1", True, False),
    ("12.0.0.1", True, False),
]


@pytest.mark.parametrize(("version", "compatible", "fine"), VERSIONS)
def test_the_version_is_one_that_runs_the_engines(bundle, tmp_path, on_card, host_cuda, version, compatible, fine):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", version_compatible=compatible)
    on_card(host_cuda(), version)
    if fine:
        find_card(folder, Manifest.read(folder))[1].close()
    else:
        with pytest.raises(UserError, match=rf"expected tensorrt 11.4.0.106, which built its engines, found {version}"):
            load(folder)


def test_a_bundle_that_waits_for_its_engines(bundle, tmp_path, capsys, monkeypatch):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt", version="", compute_capabilities=[])
    line = refusal(capsys, monkeypatch, folder)
    assert line.endswith(f"(on the machine with the GPU: ernie-export --resume {folder})\n")


def test_without_a_driver(bundle, capsys, monkeypatch):
    def missing(name: str, *_: Any, **__: Any) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(find_gpu.ctypes, "CDLL", missing)
    monkeypatch.setattr(find_gpu, "_in_packages", lambda name: [])
    line = refusal(capsys, monkeypatch, bundle)
    assert line.endswith("target trt-rtx: expected libcuda.so.1 (NVIDIA's driver), found none\n")


def test_engines_of_another_version(bundle, tmp_path, capsys, monkeypatch):
    folder = changed(shutil.copytree(bundle, tmp_path / "bundle"), "trt-rtx", version="9.8")
    line = refusal(capsys, monkeypatch, folder)
    assert "tensorrt_rtx_bindings 9.8" in line and rtx_module.__version__ in line


@pytest.mark.parametrize(("target", "library"), [("trt", "tensorrt"), ("trt-rtx", "tensorrt_rtx_bindings")])
def test_without_the_library(bundles, capsys, monkeypatch, target, library):
    monkeypatch.setitem(sys.modules, library, None)
    assert f"pip install .[{target}]" in refusal(capsys, monkeypatch, bundles[target])
