"""Builds one engine of TensorRT or of TensorRT for RTX, in a process of its own (see child.py).

Reads a request (one JSON object) from standard input:

| key | meaning |
| --- | --- |
| library | tensorrt, or tensorrt_rtx_bindings |
| onnx, engine | paths: the graph to read, the engine to write |
| dimensions | name of a dynamic dimension -> [least, usual, most] |
| capabilities | RTX: names of the library's ComputeCapability; one engine serves all of them |
| kernels, shared, hardware, version_compatible, workspace, timing_cache | TensorRT: see tensorrt_build.Options |

Writes one JSON object a line to standard output: {"share": done, 0 to 1} again and again, and at the end one of
{"built": report}, {"refused": [node, operator, reason]}, {"failed": reason} and {"system": [errno, strerror]}.

TensorRT for RTX needs no GPU here: it compiles kernels on the card, when the engine is loaded.
"""

import threading
import time
from pathlib import Path
from typing import Any

from ernie_export.exporter.targets.workers import tensorrt_build
from ernie_export.exporter.targets.workers.process import Tell, serve


def main(request: dict[str, Any], tell: Tell) -> None:
    """Serve one request."""
    try:
        answer = build(tell, **request)
    except OSError as e:
        answer = {"system": [e.errno, e.strerror]}
    tell(answer)


def build(
    tell: Tell, library: str, onnx: str, engine: str, dimensions: dict[str, list[int]], **how: Any
) -> dict[str, Any]:
    """Parse, build and write; returns the closing message. OSError if a file cannot be read or written."""
    if library == "tensorrt":
        import tensorrt as trt

        options = tensorrt_build.Options(**how)
        tensorrt_build.register_plugins(options)
    else:
        import tensorrt_rtx_bindings as trt  # type: ignore[no-redef]

    class Log(trt.ILogger):
        """Keeps what the library complains of, the first complaint first."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    class Monitor(trt.IProgressMonitor):
        """Tells the share of the whole that is done: a phase within another one counts for one step of it.

        The library calls it from several threads.
        """

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.lock = threading.Lock()
            self.phases: dict[str, list[int]] = {}  # steps done, steps in all; outermost first
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.lock:
                self.phases[phase_name] = [0, max(num_steps, 1)]

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.lock:
                self.phases[phase_name][0] = step + 1
                share, width = 0.0, 1.0
                for done, steps in self.phases.values():
                    share += width * done / steps
                    width /= steps
                if share > self.told + 0.01:
                    self.told = share
                    tell({"share": min(share, 1.0)})
            return True

    started, log = time.monotonic(), Log()
    failed = lambda: {"failed": log.errors[0] if log.errors else "no reason given"}  # noqa: E731
    builder = trt.Builder(log)
    flags = trt.NetworkDefinitionCreationFlag
    network = builder.create_network(
        tensorrt_build.network_flags(flags) if library == "tensorrt" else 1 << int(flags.STRONGLY_TYPED)
    )
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(onnx):
        return refusal(parser)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is kept for routers and rotations, where it is needed in full
    if library == "tensorrt":
        cache = tensorrt_build.configure(trt, config, options)
    else:
        config.num_compute_capabilities = len(how["capabilities"])
        for index, name in enumerate(how["capabilities"]):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    profile, shapes = builder.create_optimization_profile(), {}
    for tensor in inputs:
        if -1 in tensor.shape:
            shapes[tensor.name] = ranges(tensor, dimensions)
            profile.set_shape(tensor.name, *shapes[tensor.name])
    config.add_optimization_profile(profile)
    monitor = Monitor()
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return failed()
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    tensors = [describe(tensor, shapes) for tensor in (*inputs, *outputs)]
    report = {"version": trt.__version__, "layers": network.num_layers, "bytes": plan.nbytes}
    report |= {"seconds": round(time.monotonic() - started, 2)}
    report |= {"inputs": tensors[: len(inputs)], "outputs": tensors[len(inputs) :]}
    if library == "tensorrt":
        inspected = tensorrt_build.inspect(trt, log, plan, options)
        if inspected is None:
            return failed()
        report["inspector"] = inspected
        tensorrt_build.keep_timing_cache(cache, options)
    tensorrt_build.write(Path(engine), plan)
    return {"built": report}


def refusal(parser: Any) -> dict[str, Any]:
    """The parser's first error: the node's path in the graph, its operator, the reason.

    A node in the body of one of our operators has no name of its own: then the innermost call's stands for it.
    """
    error = parser.get_error(0)
    calls = [error.local_function_stack()[i] for i in range(error.local_function_stack_size())]
    node = error.node_name() or (calls[-1].split(" (")[0] if calls else f"number {error.node()}")
    return {"refused": [node, error.node_operator(), error.desc()]}


def ranges(tensor: Any, dimensions: dict[str, list[int]]) -> list[tuple[int, ...]]:
    """Least, usual and most shape of an input: a dynamic dimension goes by its name."""
    names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
    return [
        tuple(dimensions[name][which] if size == -1 else size for size, name in zip(tensor.shape, names, strict=True))
        for which in range(3)
    ]


def describe(tensor: Any, shapes: dict[str, list[tuple[int, ...]]]) -> dict[str, Any]:
    """Name, type and shape of an input or output; the profile's three shapes of an input where they differ."""
    facts = {"name": tensor.name, "dtype": tensor.dtype.name.lower(), "shape": list(tensor.shape)}
    return facts | ({"profile": shapes[tensor.name]} if tensor.name in shapes else {})


if __name__ == "__main__":
    serve(main)
