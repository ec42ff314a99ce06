"""A worker (see process.py) that builds one engine of TensorRT or of TensorRT for RTX.

Reads a request (one JSON object) from standard input:

| key | meaning |
| --- | --- |
| library | tensorrt, or tensorrt_rtx_bindings |
| onnx, engine | paths: the graph to read, the engine to write |
| dimensions | name of a dynamic dimension -> [minimum, optimum, maximum] |
| decomposable | whether attention may be built of several kernels; one fused kernel must serve it otherwise |
| log | path of a file for every message of the library; may be missing |
| options | the fields of the library's options: tensorrt_build.TensorRTOptions or rtx_build.RtxOptions |

Writes one JSON object a line to standard output: {"progress": fraction done} again and again, and at the end one of
{"built": report}, {"refused": [node, operator, reason]}, {"failed": reason} and {"system": [errno, strerror]}.

TensorRT's own API, without Polygraphy: one driver serves both libraries, and every call of it can be checked against
TensorRT's bindings.
"""

import time
from pathlib import Path
from typing import Any, Protocol

from ernie_export.exporter.targets.workers.callbacks import make_log, make_monitor
from ernie_export.exporter.targets.workers.files import write
from ernie_export.exporter.targets.workers.process import Emit, Message, run_worker
from ernie_export.exporter.targets.workers.rtx_build import RtxLibrary
from ernie_export.exporter.targets.workers.tensorrt_build import TensorRTLibrary

Dimensions = dict[str, list[int]]
Shape = tuple[int, ...]


class Library(Protocol):
    """What the two libraries do differently while they build an engine. `module` is the library's Python module."""

    @property
    def module(self) -> Any: ...

    def network_flags(self) -> int:
        """Return the bits of `NetworkDefinitionCreationFlag`."""
        ...

    def configure(self, config: Any) -> None:
        """Set the options on the builder's configuration."""
        ...

    def inspect(self, log: Any, plan: Any) -> Message:
        """Return what else to report of the engine, once it is written."""
        ...

    def failures(self) -> list[str]:
        """Return what went wrong in our own code that the library called."""
        ...


LIBRARIES: dict[str, Any] = {"tensorrt": TensorRTLibrary, "tensorrt_rtx_bindings": RtxLibrary}


class BuildRefused(Exception):
    """The build ended without an engine; `message` is the closing message."""

    def __init__(self, message: Message) -> None:
        self.message = message
        super().__init__(str(message))


def main(request: Message, emit: Emit) -> None:
    """Serve one request."""
    try:
        library = LIBRARIES[request["library"]].from_request(request["options"])
        report = build(library, request, emit)
        emit({"built": report})
    except BuildRefused as e:
        emit(e.message)
    except OSError as e:
        emit({"system": [e.errno, e.strerror]})


def build(library: Library, request: Message, emit: Emit) -> Message:
    """Parse the graph, build the engine and write it; return the report.

    Raises BuildRefused if the library refuses a node or fails, OSError if a file cannot be read or written.
    """
    started = time.monotonic()
    trt = library.module
    log = make_log(trt, request.get("log"))
    builder = trt.Builder(log)
    network = parse(library, builder, log, request["onnx"])
    attentions = mark_attention(trt, network, request["decomposable"])
    config = configure(library, builder)
    shapes = add_profile(builder, config, network, request["dimensions"])
    config.progress_monitor = make_monitor(trt, emit)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildRefused({"failed": "; ".join(library.failures() or log.errors[:1]) or "no reason given"})
    write(Path(request["engine"]), plan)  # before anything else can fail: it may have taken an hour
    report = describe_network(network, shapes) | {"version": trt.__version__, "bytes": plan.nbytes}
    report["attention"] = {"layers": attentions, "decomposable": request["decomposable"]}
    report["seconds"] = round(time.monotonic() - started, 2)
    return report | library.inspect(log, plan)


def parse(library: Library, builder: Any, log: Any, onnx: str) -> Any:
    """Return the network of the graph in the file `onnx`. Raises BuildRefused, naming the node that is refused."""
    network = builder.create_network(library.network_flags())
    parser = library.module.OnnxParser(network, log)
    if not parser.parse_from_file(onnx):
        raise BuildRefused(describe_refusal(parser))
    return network


def mark_attention(trt: Any, network: Any, decomposable: bool) -> int:
    """Say of every attention whether it may be built of several kernels; return how many there are.

    The ONNX attribute that would say so is one that other runtimes refuse, so it is said of the network. Raises
    BuildRefused if the library does not take it.
    """
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # layers come as their base class
            layer.attention.decomposable = decomposable
            if layer.attention.decomposable != decomposable:  # the library's answer is not seen from Python
                raise BuildRefused({"failed": f"{layer.name}: attention cannot be marked decomposable={decomposable}"})
            count += 1
    return count


def describe_refusal(parser: Any) -> Message:
    """Return the parser's first error: the node's path in the graph, its operator, the reason.

    A node in the body of one of our operators has no name of its own: the innermost call's is given instead.
    """
    error = parser.get_error(0)
    calls = [error.local_function_stack()[i] for i in range(error.local_function_stack_size())]
    node = error.node_name() or (calls[-1].split(" (")[0] if calls else f"number {error.node()}")
    return {"refused": [node, error.node_operator(), error.desc()]}


def configure(library: Library, builder: Any) -> Any:
    """Return the builder's configuration."""
    config = builder.create_builder_config()
    # float32 is kept for routers and rotations, where it is needed in full.
    config.clear_flag(library.module.BuilderFlag.TF32)
    library.configure(config)
    return config


def add_profile(builder: Any, config: Any, network: Any, dimensions: Dimensions) -> dict[str, list[Shape]]:
    """Add the optimization profile; return the three shapes of each input that has dynamic dimensions."""
    profile = builder.create_optimization_profile()
    shapes = {}
    for tensor in inputs_of(network):
        if -1 in tensor.shape:
            shapes[tensor.name] = profile_shapes(tensor, dimensions)
            profile.set_shape(tensor.name, *shapes[tensor.name])
    config.add_optimization_profile(profile)
    return shapes


def profile_shapes(tensor: Any, dimensions: Dimensions) -> list[Shape]:
    """Return the minimum, optimum and maximum shape of an input, whose dynamic dimensions go by their names."""
    names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
    return [
        tuple(dimensions[name][which] if size == -1 else size for size, name in zip(tensor.shape, names, strict=True))
        for which in range(3)
    ]


def inputs_of(network: Any) -> list[Any]:
    """Return the network's input tensors."""
    return [network.get_input(i) for i in range(network.num_inputs)]


def describe_network(network: Any, shapes: dict[str, list[Shape]]) -> Message:
    """Return the number of layers, and the inputs and outputs."""
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "layers": network.num_layers,
        "inputs": [describe_tensor(tensor, shapes) for tensor in inputs_of(network)],
        "outputs": [describe_tensor(tensor, shapes) for tensor in outputs],
    }


def describe_tensor(tensor: Any, shapes: dict[str, list[Shape]]) -> Message:
    """Return name, type and shape of an input or output, and its profile's three shapes if it is dynamic."""
    info = {"name": tensor.name, "dtype": tensor.dtype.name.lower(), "shape": list(tensor.shape)}
    return info | ({"profile": shapes[tensor.name]} if tensor.name in shapes else {})


if __name__ == "__main__":
    run_worker(main)
