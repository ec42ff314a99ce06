"""An execution context of TensorRT whose refusals are errors."""

from typing import Any


class EngineContext:
    """A context of one engine.

    The library answers a shape outside of the profile, or an address that is not aligned, by returning False, and goes
    on without it: every such answer is raised here, with the tensor's name.

    Attributes:
        graph: The name of its graph.
        shape_changes: How often a shape was changed after it was first set. A context with plugins loads their kernels
            again then, and TensorRT 11.1 and 11.2 never free those of before.
    """

    def __init__(self, graph: str, context: Any) -> None:
        self.graph = graph
        self.shape_changes = 0
        self._context = context
        self._shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, tensor: str, shape: tuple[int, ...]) -> None:
        """Set an input's shape. Raises RuntimeError if the library refuses it."""
        before = self._shapes.get(tensor)
        if before == shape:
            return
        self.shape_changes += before is not None
        if not self._context.set_input_shape(tensor, shape):
            raise RuntimeError(f"{self.graph} engine: input {tensor} does not take the shape {shape}")
        self._shapes[tensor] = shape

    def set_address(self, tensor: str, address: int) -> None:
        """Set where a tensor lies. Raises RuntimeError if the library refuses it."""
        if not self._context.set_tensor_address(tensor, address):
            raise RuntimeError(f"{self.graph} engine: tensor {tensor} does not take the address {address:#x}")

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return a tensor's shape. Raises RuntimeError if the inputs that are set do not say it."""
        shape = tuple(self._context.get_tensor_shape(tensor))
        if any(size < 0 for size in shape):
            raise RuntimeError(f"{self.graph} engine: output {tensor} has the shape {shape}: an input is not set")
        return shape

    def enqueue(self, stream: int) -> None:
        """Put the engine's work on a stream. Raises RuntimeError if the library refuses."""
        if not self._context.execute_async_v3(stream):
            raise RuntimeError(f"TensorRT could not run the {self.graph} engine")
