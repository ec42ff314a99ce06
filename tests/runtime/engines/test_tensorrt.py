"""The TensorRT engine's own work, on a stand-in for the library over the host's memory.

The stand-in runs the very graphs that engines are built from, in ONNX Runtime, at the addresses it is given; it has no
method that the real bindings lack. What only a card can show (that the library's engines compute the same) has not been
run.
"""

import ctypes
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import tensorrt_rtx_bindings as real
from ernie_export.exporter.export import Progress, export
from ernie_export.exporter.targets import rtx
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import PREFILL_CHUNK, Manifest
from ernie_export.graphs.tensor_file import read_header
from ernie_export.runtime import cli, generation, load
from ernie_export.runtime.engines import find_gpu, tensorrt
from ernie_export.runtime.engines.memory import HostMemory, data_file
from ernie_export.runtime.engines.tensorrt import Tensor, TensorRTEngine, load_weights
from ernie_export.runtime.pipeline import Model, engine_limits
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.scheduler import Limits

ROOT = Path(__file__).parents[3]
MINI = ROOT / "examples" / "mini-ernie"
MEDIA = ROOT / "examples" / "media"
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
]


class Context:
    """Stands in for IExecutionContext. Shapes are held to the profile that the engine would have."""

    def __init__(self, engine: "Engine") -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.results: dict[str, np.ndarray] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        declared = self.engine.inputs[name].shape
        assert len(shape) == len(declared)
        for size, dim in zip(shape, declared):
            least, _, most = self.engine.dimensions[dim] if isinstance(dim, str) else (dim, dim, dim)
            assert least <= size <= most, f"{name}: {shape} for {declared}"
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self.engine.inputs or name in self.engine.outputs
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Of an output: the graph is run for it, on what lies at the inputs' addresses now."""
        if not self.results:
            feed = {}
            for key, declared in self.engine.inputs.items():
                dtype, shape = np.dtype(NUMPY[declared.type]), self.shapes.get(key, declared.shape)
                block = ctypes.string_at(self.addresses[key], int(np.prod(shape)) * dtype.itemsize)
                feed[key] = np.frombuffer(block, dtype).reshape(shape)
            self.results = dict(zip(self.engine.outputs, self.engine.session.run(list(self.engine.outputs), feed)))
        return self.results[name].shape

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == HostCard.STREAM
        for name, address in self.addresses.items():
            if name in self.engine.outputs:
                self.get_tensor_shape(name)
                array = np.ascontiguousarray(self.results[name])
                ctypes.memmove(address, array.ctypes.data, array.nbytes)
        assert self.results.keys() <= self.addresses.keys()
        self.results = {}
        return True


class Engine:
    """Stands in for ICudaEngine; its plan is the dynamic dimensions' bounds in JSON, a line break, and the graph."""

    def __init__(self, plan: bytes) -> None:
        head, graph = plan.split(b"\n", 1)
        options = ort.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        self.dimensions = json.loads(head)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = {value.name: value for value in self.session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        return real.TensorIOMode.INPUT if name in self.inputs else real.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return {"tensor(float)": real.float32}[self.inputs[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(dim, str) else dim for dim in self.inputs[name].shape)

    def create_runtime_config(self) -> "RuntimeConfig":
        return RuntimeConfig()

    def create_execution_context(self, runtime_config: "RuntimeConfig") -> Context:
        assert isinstance(runtime_config, RuntimeConfig)
        return Context(self)


class RuntimeConfig:
    """Stands in for IRuntimeConfig."""

    cuda_graph_strategy: Any = None


class Runtime:
    """Stands in for Runtime."""

    validity = (real.EngineValidity.VALID, 0)

    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, real.Logger)

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return self.validity

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine:
        return Engine(serialized_engine)


class HostCard(HostMemory):
    """The host's memory as a GPU's."""

    STREAM = 77

    def new_stream(self) -> int:
        return self.STREAM

    def compute_capability(self) -> str:
        return "9.0"


PLAIN = ("Logger", "TensorIOMode", "CudaGraphStrategy", "EngineValidity", "EngineInvalidityDiagnostics")
LIBRARY = SimpleNamespace(
    Runtime=Runtime, float32=real.float32, bfloat16=real.bfloat16, **{name: getattr(real, name) for name in PLAIN}
)
STAND_INS = {
    Context: real.IExecutionContext,
    Engine: real.ICudaEngine,
    Runtime: real.Runtime,
    RuntimeConfig: real.IRuntimeConfig,
}


@pytest.mark.parametrize("stand_in", STAND_INS, ids=lambda stand_in: stand_in.__name__)
def test_the_stand_in_has_only_what_the_bindings_have(stand_in):
    """Names, and for methods the number of arguments and their names, read off the bindings' signatures."""
    genuine = STAND_INS[stand_in]
    names = [name for name in vars(stand_in) if not name.startswith("_") and name != "validity"]
    assert names
    for name in names:
        assert hasattr(genuine, name)
        if inspect.isfunction(ours := getattr(stand_in, name)):
            signatures = re.findall(rf"{name}\(self: [^,)]+(?:, (.*?))?\) ->", getattr(genuine, name).__doc__)
            arguments = [re.findall(r"(\w+): ", signature) for signature in signatures]
            assert list(inspect.signature(ours).parameters)[1:] in arguments, (name, signatures)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """What ernie-export writes, in float32, but for the engines: each is its graph, for the stand-in to run."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"

    def keep_graph(name: str, request: dict[str, Any], on_share: Any) -> dict[str, Any]:
        head = json.dumps(request["dimensions"]).encode()
        Path(request["engine"]).write_bytes(head + b"\n" + Path(request["onnx"]).read_bytes())
        return {"version": real.__version__}

    limits = rtx.Limits("8.9", max_batch=2, max_tokens=500, max_image_tokens=16)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rtx, "build_engine", keep_graph)
        export(MINI, folder, "trt-rtx", "fp32", QUIET, limits)
    return folder


def open_engine(folder: Path) -> TensorRTEngine:
    return TensorRTEngine(folder, Manifest.read(folder), LIBRARY, HostCard())


def open_model(folder: Path) -> Model:
    manifest = Manifest.read(folder)
    limits = engine_limits(manifest, Limits())
    assert limits.rows == 2
    return Model(manifest, Preprocessor.from_folder(folder), open_engine(folder), limits)


def test_answers_are_the_other_engines(bundle, tmp_path_factory):
    """Three conversations in two rows of a fixed capacity: rows move; pictures, a clip and text; and again, reusing."""
    other = tmp_path_factory.mktemp("onnx") / "bundle"
    export(MINI, other, "onnx", "fp32", QUIET)
    answers = []
    for model in (open_model(bundle), load(other, threads=1)):
        with model:
            rounds = [model.generate(CONVERSATIONS, max_new_tokens=12, min_new_tokens=4) for _ in range(2)]
            answers.append([result.tokens for results in rounds for result in results])
    assert answers[0] == answers[1]
    assert len({*answers[0]}) == 3


def test_a_picture_past_the_limit_is_refused(bundle):
    with open_engine(bundle) as engine, pytest.raises(UserError, match=r"at most 16 tokens .*--max-image-tokens.* 20"):
        engine.encode(np.zeros((1, 80, 588), np.float32), np.zeros((80, 2), np.int64), np.zeros((2, 1), np.int64))


def test_a_prompt_past_the_limit_is_refused(bundle):
    with open_model(bundle) as model, pytest.raises(UserError, match="fewer than 500 tokens"):
        model.generate([{"role": "user", "content": "What is red? " * 200}])


def test_a_dropped_cache_leaves_its_memory_to_the_next(bundle):
    with open_engine(bundle) as engine:
        address = engine.new_cache(2, 64).store.address
        cache = engine.new_cache(2, 500)
        assert (cache.store.address, cache.rows, cache.capacity) == (address, 2, 512)
        other = engine.new_cache(1, 64)
        assert other.store.address != address


def test_chunks_of_a_prompt_fit_the_profile():
    assert generation.CHUNK <= PREFILL_CHUNK


def test_weights_lie_aligned_and_whole(bundle):
    memory, path = HostCard(), data_file(bundle, Manifest.read(bundle))
    addresses, entries, content = load_weights(memory, path), read_header(path), path.read_bytes()
    assert addresses.keys() == entries.keys()
    first = min(addresses.values())
    for name, entry in entries.items():
        assert (addresses[name] - first) % tensorrt.ALIGNMENT == 0
        stored = content[entry.offset : entry.offset + entry.nbytes]
        assert memory.read(addresses[name], entry.nbytes) == stored
    memory.close()


def test_bfloat16_passes_through_the_host_unchanged(bundle):
    values = np.random.default_rng(0).standard_normal((3, 1, 8)).astype(ml_dtypes.bfloat16)
    with open_engine(bundle) as engine:
        engine._bits = 16
        stored = engine._as_stored(values.astype(np.float32))
        assert np.array_equal(stored, values.view(np.uint16))
        address = engine._memory.allocate(stored.nbytes)
        engine._memory.write(address, stored)
        assert np.array_equal(engine._fetch(Tensor(address, values.shape)), values.astype(np.float32))


def test_an_engine_for_another_card(bundle, monkeypatch):
    kinds = real.EngineInvalidityDiagnostics
    monkeypatch.setattr(Runtime, "validity", (real.EngineValidity.INVALID, int(kinds.UNSUPPORTED_CC)))
    with pytest.raises(UserError, match=r"vision.engine: expected a GPU of .* 8.9, found 9.0 \(UNSUPPORTED_CC\)"):
        open_engine(bundle)


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path) -> str:
    """ernie-run's one line, after exit code 2."""
    monkeypatch.setattr(sys, "argv", ["ernie-run", str(folder), "What is red?"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    return printed.err


def test_without_a_driver(bundle, capsys, monkeypatch):
    def missing(name: str, *_: Any, **__: Any) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(find_gpu.ctypes, "CDLL", missing)
    monkeypatch.setattr(find_gpu, "_in_packages", lambda name: [])
    line = refusal(capsys, monkeypatch, bundle)
    assert line.endswith("target trt-rtx: expected libcuda.so.1 (NVIDIA's driver), found none\n")


def test_engines_of_another_version(bundle, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(bundle, tmp_path / "bundle")
    document = json.loads((folder / "manifest.json").read_text())
    document["engines"]["version"] = "9.8"
    (folder / "manifest.json").write_text(json.dumps(document))
    line = refusal(capsys, monkeypatch, folder)
    assert "tensorrt_rtx_bindings 9.8" in line and real.__version__ in line


def test_without_the_library(bundle, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    assert "pip install .[trt-rtx]" in refusal(capsys, monkeypatch, bundle)
