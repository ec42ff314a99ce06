"""Fakes of both TensorRT libraries' runtimes, and bundles whose engines they read.

They run the very graphs that engines are built from, in ONNX Runtime, at the addresses they are given, when someone
waits for the stream; they have no method that the real bindings lack.
"""

import ctypes
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import tensorrt_rtx_bindings as rtx_module

from ernie_export.exporter.export import export
from ernie_export.exporter.targets.target import ExportJob
from ernie_export.exporter.targets.trt_rtx import RTX_BODIES, RtxBuildOptions, TensorRTForRtx
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.precision import ONNX, Precision
from ernie_export.runtime.engines.device.memory import ALIGNMENT
from tests.paths import MINI
from tests.progress import QUIET

NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(int32)": np.int32}


class FakeContext:
    """Fake of IExecutionContext. Shapes are held to the profile that the engine would have."""

    def __init__(self, engine: "FakeCudaEngine", managed: bool) -> None:
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
            dtype = np.dtype(NUMPY[declared.type])
            shape = self.shapes.get(key, declared.shape)
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
        run.context = self  # type: ignore[attr-defined]
        cuda.put(stream_handle, run)
        return True


class FakeCudaEngine:
    """Fake of ICudaEngine; its plan is the dynamic dimensions' bounds in JSON, a line break, and the graph."""

    SCRATCH = [3000, 500, 70000, 4000]

    def __init__(self, plan: bytes, runtime: Any, number: int) -> None:
        head, graph = plan.split(b"\n", 1)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self.runtime = runtime
        self.number = number
        self.dimensions = json.loads(head)
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.graph_outputs = [value.name for value in self.session.get_outputs()]
        self.best = (
            runtime.top_k if runtime.full and "input_ids" in self.inputs and "features" not in self.inputs else 0
        )
        self.outputs = dict.fromkeys(self.graph_outputs)
        if self.best:
            self.outputs |= dict.fromkeys(("candidate_ids", "candidate_values", "logit_total"))

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        return name.replace("present_", "past_") if name.startswith("present_") and self.runtime.aliases else None

    def get_tensor_dtype(self, name: str) -> Any:
        return {"tensor(float)": rtx_module.float32}[self.inputs[name].type]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(-1 if isinstance(dim, str) else dim for dim in self.inputs[name].shape)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        assert profile_index == 0
        return self.SCRATCH[self.number]

    def create_execution_context(self, strategy: Any) -> FakeContext:
        assert strategy == rtx_module.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.runtime.context(self, managed=True)


class FakeRtxEngine(FakeCudaEngine):
    """The same of TensorRT for RTX."""

    def create_runtime_config(self) -> "FakeRuntimeConfig":
        return FakeRuntimeConfig()

    def create_execution_context(self, runtime_config: "FakeRuntimeConfig") -> FakeContext:
        assert isinstance(runtime_config, FakeRuntimeConfig)
        wanted = rtx_module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE if "features" not in self.inputs else None
        assert "past_lengths" not in self.inputs or runtime_config.cuda_graph_strategy == wanted
        return self.runtime.context(self, managed=False)


class FakeRuntimeConfig:
    """Fake of IRuntimeConfig."""

    cuda_graph_strategy: Any = None


class FakeRuntime:
    """Fake of Runtime.

    Attributes:
        cuda: The fake CUDA that it runs on.
        top_k: Of the decode engine, as the manifest says.
        validity: What `get_engine_validity` answers.
        reads_plans: Whether it takes any plan.
        aliases: Whether its engines update caches in place.
        context: Class of the execution contexts.
    """

    cuda: Any = None
    top_k = 0
    validity = (rtx_module.EngineValidity.VALID, 0)
    reads_plans = True
    aliases = True
    context = FakeContext
    full = True
    engine_host_code_allowed = False

    def __init__(self, logger: Any) -> None:
        assert isinstance(logger, rtx_module.Logger)
        self.loaded = 0

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeCudaEngine | None:
        if not self.reads_plans:
            return None
        self.loaded += 1
        return (FakeCudaEngine if self.full else FakeRtxEngine)(serialized_engine, self, self.loaded - 1)


class FakeRtxRuntime(FakeRuntime):
    """The same of TensorRT for RTX."""

    full = False

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        return self.validity


# Of both libraries; they are equal in either.
BOTH = ("Logger", "ExecutionContextAllocationStrategy", "float32", "bfloat16", "float16")
RTX_ONLY = ("CudaGraphStrategy", "EngineValidity", "EngineInvalidityDiagnostics")
LIBRARIES = {
    "trt": SimpleNamespace(Runtime=FakeRuntime, **{name: getattr(rtx_module, name) for name in BOTH}),
    "trt-rtx": SimpleNamespace(
        Runtime=FakeRtxRuntime, **{name: getattr(rtx_module, name) for name in (*BOTH, *RTX_ONLY)}
    ),
}


def fake_library(target: str, **attributes: Any) -> SimpleNamespace:
    """Return the fake library of a target whose Runtime has these class attributes (see `FakeRuntime`)."""
    library = LIBRARIES[target]
    return SimpleNamespace(**vars(library) | {"Runtime": type("Runtime", (library.Runtime,), attributes)})


FAKES = {
    "trt": {"IExecutionContext": FakeContext, "ICudaEngine": FakeCudaEngine, "Runtime": FakeRuntime},
    "trt-rtx": {
        "IExecutionContext": FakeContext,
        "ICudaEngine": FakeRtxEngine,
        "Runtime": FakeRtxRuntime,
        "IRuntimeConfig": FakeRuntimeConfig,
    },
}
OURS = {
    "cuda",
    "full",
    "top_k",
    "validity",
    "reads_plans",
    "aliases",
    "context",
    "SCRATCH",
    "results",
}  # what the fakes have besides the library's names


# What TensorRT's engines have and those of TensorRT for RTX have not.
TENSORRT = {
    "device": "NVIDIA H100",
    "hardware_compatibility": "exact",
    "version_compatible": False,
    "architectures": ["sm90"],
    "plugin_version": "0123456789ab",
    "workspace_gib": 0,
}


def changed(bundle: Path, target: str, **engines: Any) -> Path:
    """Return the bundle with another manifest: of `target`, and with other fields of its engines."""
    document = json.loads((bundle / "manifest.json").read_text())
    document["target"] = target
    if target == "trt":
        document["engines"] |= {"library": "tensorrt", "version": "11.4.0.106", "compute_capabilities": ["9.0"]}
        document["engines"] |= {"top_k": 64, "tensorrt": TENSORRT | {k: v for k, v in engines.items() if k in TENSORRT}}
    document["engines"] |= {name: value for name, value in engines.items() if name not in TENSORRT}
    (bundle / "manifest.json").write_text(json.dumps(document))
    return bundle


@dataclass(frozen=True, kw_only=True)
class LoweredTarget(TensorRTForRtx):
    """TensorRT for RTX with other bodies, and with those of `decode_bodies` in the decode graph."""

    decode_bodies: OpBodies = RTX_BODIES

    def bodies(self, job: ExportJob) -> dict[str, OpBodies]:
        return super().bodies(job) | {"decode": self.decode_bodies}


def write_bundle(
    folder: Path,
    precision: Precision = ONNX["fp32"],
    filled: Callable[[bytes], bytes] = bytes,
    op_bodies: OpBodies = RTX_BODIES,
    bakes_projections: bool = False,
    decode_bodies: OpBodies = RTX_BODIES,
) -> None:
    """What ernie-export writes for TensorRT for RTX, but for the engines: each is its graph, for the fake to run.

    `precision` computes in float32, which ONNX Runtime does on a CPU. `filled`: what else a graph needs to run.
    """

    def keep_graph(name: str, request: dict[str, Any], on_share: Any) -> dict[str, Any]:
        head = json.dumps(request["dimensions"]).encode()
        graph = onnx.load(request["onnx"]).SerializeToString()  # with its constants
        Path(request["engine"]).write_bytes(head + b"\n" + filled(graph))
        return {"version": rtx_module.__version__}

    options = RtxBuildOptions(3, 500, 16, bakes_projections, compute_capabilities="8.9")
    target = LoweredTarget(build_engine=keep_graph, op_bodies=op_bodies, decode_bodies=decode_bodies)
    export(MINI, folder, target, precision, QUIET, options)
