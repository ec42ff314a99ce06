"""Fakes of the TensorRT classes that need its libraries: parser, builder, runtime, plugin registry.

The parser creates every plugin through TensorRT's own Python sources, from a node's attributes as the real one does,
and asks of it what a builder asks. Standard operators it takes for granted. The environment asks for faults:

| FAKE_TENSORRT_FAULT | |
| --- | --- |
| refuse=OPERATOR | the parser refuses the first node of that operator |
| fail=NAME | the graph of that name is not built |
| abort=NAME | building it ends the process |
| unreadable=NAME | its engine can't be read |
| wait=NAME | building it never ends |
| large=NAME | its engine has 3 MiB |
| fused=NAME | it is not built while an attention of it has to be fused |
| shared=NAME | it is not built while a kernel asks for more than 48 KiB of shared memory |
"""

import json
import operator
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from typing import Any

import onnx
import tensorrt_bindings as real

from tests.fakes.tensorrt_builder.checked import Checked
from tests.fakes.tensorrt_builder.plugins import DTYPES, drive

GPU = b"gpu one"
KINDS = {"Attention": "ATTENTION_INPUT"}  # operator -> the kind of its layer, where one asks for it


def fault(kind: str, name: str) -> bool:
    """Whether the environment asks for this fault."""
    return os.environ.get("FAKE_TENSORRT_FAULT") == f"{kind}={name}"


class PluginRegistry(Checked, genuine=real.IPluginRegistry):
    """By name, version and namespace."""

    def __init__(self) -> None:
        self._creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        return self._creators.setdefault((creator.name, creator.plugin_version, plugin_namespace), creator) is creator

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        return self._creators.get((type, version, plugin_namespace))


REGISTRY = PluginRegistry()


def get_plugin_registry() -> PluginRegistry:
    """The one registry."""
    return REGISTRY


class Tensor(Checked, genuine=real.ITensor):
    """An input or output of the network."""

    def __init__(self, value: onnx.ValueInfoProto) -> None:
        self._value = value.type.tensor_type
        self._name = value.name

    name = property(operator.attrgetter("_name"))
    dtype = property(lambda self: DTYPES[self._value.elem_type])
    shape = property(lambda self: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in self._value.shape.dim))

    def get_dimension_name(self, index: int) -> str:
        return self._value.shape.dim[index].dim_param


class Attention(Checked, genuine=real.IAttention):
    """One attention of the network."""

    decomposable = property(operator.attrgetter("_decomposable"))  # set by Checked.__setattr__


class Layer(Checked, genuine=real.ILayer):
    """A layer, as its base class."""

    def __init__(self, node: onnx.NodeProto) -> None:
        self._node = node
        self._attention = Attention()

    type = property(lambda self: getattr(real.LayerType, KINDS.get(self._node.op_type, "IDENTITY")))


class AttentionInputLayer(Checked, genuine=real.IAttentionInputLayer):
    """What a layer is made that is one end of an attention."""

    attention = property(operator.attrgetter("_attention"))


class Network(Checked, genuine=real.INetworkDefinition):
    """What the parser has read."""

    def __init__(self) -> None:
        self._model = onnx.ModelProto()
        self._plugins: list[dict[str, Any]] = []
        self._layers: list[Layer] = []
        self._broken = False

    num_inputs = property(lambda self: len(self._model.graph.input))
    num_outputs = property(lambda self: len(self._model.graph.output))
    num_layers = property(lambda self: len(self._layers))

    def get_layer(self, index: int) -> Layer:
        return self._layers[index]

    def get_input(self, index: int) -> Tensor:
        return Tensor(self._model.graph.input[index])

    def get_output(self, index: int) -> Tensor:
        return Tensor(self._model.graph.output[index])


class ParserError(Checked, genuine=real.ParserError):
    """Why a node was refused."""

    def __init__(self, node: onnx.NodeProto, reason: str) -> None:
        self._node = node
        self._reason = reason

    def node_name(self) -> str:
        return self._node.name

    def node_operator(self) -> str:
        return self._node.op_type

    def node(self) -> int:
        return 0

    def desc(self) -> str:
        return self._reason

    def local_function_stack_size(self) -> int:
        return 0

    def local_function_stack(self) -> list[str]:
        return []


class OnnxParser(Checked, genuine=real.OnnxParser):
    """Reads a model; every plugin in it is created and asked for its shapes, formats and kernels."""

    def __init__(self, network: Network, logger: real.ILogger) -> None:
        assert isinstance(network, Network) and isinstance(logger, real.ILogger)
        self._network = network
        self._errors: list[Any] = []

    def parse_from_file(self, model: str) -> bool:
        self._network._model = parsed = onnx.load(model, load_external_data=False)
        for tensor in parsed.graph.initializer:  # of a file beside the graph, which has to hold them
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                place = {entry.key: entry.value for entry in tensor.external_data}
                size = os.path.getsize(os.path.join(os.path.dirname(model), place["location"]))
                assert int(place["offset"]) + int(place["length"]) <= size, tensor.name
        assert not parsed.functions, "a function by a plugin's name would be inlined in its place"
        for node in parsed.graph.node:
            known = node.domain == "ernie" and find_creator(node) is not None
            if fault("refuse", node.op_type) or not (known or node.domain == ""):
                self._errors.append(ParserError(node, "Plugin not found, or a test wants it so."))
                return False
        try:
            self._network._plugins = drive(parsed, find_creator)
        except ValueError:  # of a plugin: TensorRT prints it and goes on without
            traceback.print_exc()
            self._network._broken = True
        self._network._layers = [Layer(node) for node in parsed.graph.node]
        return True

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


def find_creator(node: onnx.NodeProto) -> Any:
    """A plugin's creator: by the node's name for its operator, and the namespace that it gives."""
    given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return REGISTRY.get_creator(node.op_type, "1", given.get("plugin_namespace", b"").decode())


class TimingCache(Checked, genuine=real.ITimingCache):
    """Begins with the GPU that it was made on."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> bytes:
        return self._data


class OptimizationProfile(Checked, genuine=real.IOptimizationProfile):
    """Shapes by input."""

    def __init__(self) -> None:
        self._shapes: dict[str, Any] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self._shapes[input] = min, opt, max


class BuilderConfig(Checked, genuine=real.IBuilderConfig):
    """What was set."""

    def __init__(self) -> None:
        self._flags = {"TF32"}
        self._pools: dict[str, int] = {}
        self._profiles: list[OptimizationProfile] = []
        self._cache: Callable[[], TimingCache | None] = lambda: None
        self._progress_monitor = None

    hardware_compatibility_level = profiling_verbosity = progress_monitor = None  # by Checked.__setattr__
    _hardware_compatibility_level: Any
    _profiling_verbosity: Any

    def set_flag(self, flag: Any) -> None:
        self._flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self._flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self._pools[pool.name] = pool_size

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache._data and not cache._data.startswith(GPU) and not ignore_mismatch:
            return False
        cache._data = cache._data or GPU
        self._cache = weakref.ref(cache)  # whoever set it keeps it
        return True

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1


class Plan(bytearray):
    """Stands in for IHostMemory: a buffer that tells its size."""

    nbytes = property(len)


class Builder(Checked, genuine=real.Builder):
    """Builds nothing: its plan is what was asked for, in JSON."""

    def __init__(self, logger: real.ILogger) -> None:
        assert isinstance(logger, real.ILogger)
        self._logger = logger

    def create_network(self, flags: int = 0) -> Network:
        kinds = real.NetworkDefinitionCreationFlag
        assert flags == 1 << int(kinds.STRONGLY_TYPED) | 1 << int(kinds.PREFER_AOT_PYTHON_PLUGINS)
        return Network()

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig()

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: BuilderConfig) -> Plan | None:
        name = network._model.graph.name
        (profile,) = config._profiles
        for tensor in map(Tensor, network._model.graph.input):
            if -1 not in tensor.shape:
                continue
            for shape in profile._shapes[tensor.name]:
                assert all(a in (-1, b) for a, b in zip(tensor.shape, shape, strict=True))
        self._report(config._progress_monitor)
        while fault("wait", name):
            time.sleep(0.05)
        if fault("abort", name):
            os.abort()
        if fault("fail", name):
            self._logger.log(real.ILogger.ERROR, "no implementation for what a test wants so")
            return None
        attentions = [layer._attention for layer in network._layers if layer._node.op_type == "Attention"]
        if fault("fused", name) and not all(attention.decomposable for attention in attentions):
            self._logger.log(real.ILogger.ERROR, "Attention operation was not supported by a dedicated kernel")
            return None
        if network._broken:
            self._logger.log(real.ILogger.ERROR, "what follows from a plugin that failed")
            return None
        if fault("shared", name) and max(plugin["shared"] for plugin in network._plugins) > 48 * 1024:
            self._logger.log(real.ILogger.ERROR, "a launch that a test wants refused")
            return None
        cache = config._cache()
        assert cache is not None, "the timing cache must live until the engine is built"
        cache._data += f" {name}".encode()
        asked = {
            "name": name,
            "flags": sorted(config._flags),
            "pools": config._pools,
            "hardware": config._hardware_compatibility_level.name,
            "verbosity": config._profiling_verbosity.name,
            "plugins": network._plugins,
            "decomposable": [attention.decomposable for attention in attentions],
            "timed": cache._data.decode(),
        }
        return Plan(json.dumps(asked).encode() + b" " * (3 * 2**20 if fault("large", name) else 0))

    def _report(self, monitor: real.IProgressMonitor) -> None:
        """Progress as TensorRT reports it: nested phases, from more than one thread."""
        monitor.phase_start("building", None, 4)
        for step in range(4):
            inner = f"part {step}"
            monitor.phase_start(inner, "building", 10)
            threads = [threading.Thread(target=monitor.step_complete, args=(inner, number)) for number in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            monitor.phase_finish(inner)
            assert monitor.step_complete("building", step) is True
        monitor.phase_finish("building")


class EngineInspector(Checked, genuine=real.EngineInspector):
    """Tells what the plan holds."""

    def __init__(self, plan: bytes) -> None:
        self._plan = plan

    def get_engine_information(self, format: Any) -> str:
        assert format == real.LayerInformationFormat.JSON
        return self._plan.decode()


class Engine(Checked, genuine=real.ICudaEngine):
    """A plan that was read."""

    def __init__(self, plan: bytes) -> None:
        self._plan = plan

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._plan)


class Runtime(Checked, genuine=real.Runtime):
    """Reads plans; those that carry host code only where that is allowed."""

    def __init__(self, logger: real.ILogger) -> None:
        assert isinstance(logger, real.ILogger)
        self._logger = logger
        self._engine_host_code_allowed = False

    engine_host_code_allowed = None  # by Checked.__setattr__

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
        asked = json.loads(bytes(serialized_engine))
        if fault("unreadable", asked["name"]):
            self._logger.log(real.ILogger.ERROR, "a plan that a test wants unreadable")
            return None
        assert self._engine_host_code_allowed == ("VERSION_COMPATIBLE" in asked["flags"])
        return Engine(bytes(serialized_engine))
