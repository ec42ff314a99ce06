"""Builds one TensorRT-for-RTX engine, in a process of its own: a crash of the library ends this process alone.

Reads a request (one JSON object) from standard input:

| key | meaning |
| --- | --- |
| onnx, engine | paths: the graph to read, the engine to write |
| capabilities | names of the library's ComputeCapability: one engine serves all of them |
| dimensions | name of a dynamic dimension -> [least, usual, most] |

Writes one JSON object a line to standard output: {"share": done, 0 to 1} again and again, and at the end one of
{"built": report}, {"refused": [node, operator, reason]}, {"failed": reason} and {"system": [errno, strerror]}.

Nothing here needs a GPU: kernels are compiled on the card, when the engine is loaded.
"""

import json
import sys
import time
from typing import Any


def main() -> None:
    """Serve one request."""
    try:
        answer = build(**json.load(sys.stdin))
    except OSError as e:
        answer = {"system": [e.errno, e.strerror]}
    tell(answer)


def tell(message: dict[str, Any]) -> None:
    """One line to whoever started this process."""
    print(json.dumps(message), flush=True)


def build(onnx: str, engine: str, capabilities: list[str], dimensions: dict[str, list[int]]) -> dict[str, Any]:
    """Parse, build and write; returns the closing message. OSError if the engine cannot be written."""
    import tensorrt_rtx_bindings as trt

    class Log(trt.ILogger):
        """Keeps what the library complains of, the first complaint first."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    class Monitor(trt.IProgressMonitor):
        """Tells the share of the whole that is done: a phase within another one counts for one step of it."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, list[int]] = {}  # steps done, steps in all; outermost first
            self.told = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = [0, max(num_steps, 1)]

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
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
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(onnx):
        return refusal(parser)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is kept for routers and rotations, where it is needed in full
    config.num_compute_capabilities = len(capabilities)
    for index, name in enumerate(capabilities):
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
        return {"failed": log.errors[0] if log.errors else "no reason given"}
    with open(engine, "xb") as file:
        file.write(plan)
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    tensors = [describe(tensor, shapes) for tensor in (*inputs, *outputs)]
    report = {"version": trt.__version__, "layers": network.num_layers, "bytes": plan.nbytes}
    report |= {"seconds": round(time.monotonic() - started, 2)}
    return {"built": report | {"inputs": tensors[: len(inputs)], "outputs": tensors[len(inputs) :]}}


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
    main()
