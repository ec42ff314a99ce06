"""A fake of CUDA's runtime library, so that the code that calls it runs on machines without a GPU."""

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from cuda.bindings import runtime as real

from ernie_export.runtime.engines.device.memory import HostMemory

OK = real.cudaError_t.cudaSuccess


class FakeStream:
    """Work that waits; `recorded` in place of it while the stream is captured."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.waiting: list[Callable[[], object]] = []
        self.recorded: list[Callable[[], object]] | None = None

    def __int__(self) -> int:
        return self.handle


class FakeCuda:
    """cuda.bindings.runtime over the host's memory. Work on a stream is done only when someone waits for the stream.

    Whatever is read, or a buffer used again, before its copy was waited for shows as a wrong number.
    """

    cudaMemcpyKind, cudaDeviceAttr, cudaStreamCaptureMode = (
        getattr(real, name) for name in ("cudaMemcpyKind", "cudaDeviceAttr", "cudaStreamCaptureMode")
    )

    def __init__(
        self,
        free: int = 2**34,
        devices: int = 1,
        code: int = 0,
        capability: tuple[int, int] = (9, 0),
        name: str = "NVIDIA H100",
    ) -> None:
        self.free = free
        self.devices = devices
        self.code = real.cudaError_t(code)
        self.capability = capability
        self.name = name
        self.memory = HostMemory()
        self.streams: dict[int, FakeStream] = {}
        self.graphs: list[list[Callable[[], object]]] = []
        self.launches = 0

    def put(self, stream: Any, work: Callable[[], object]) -> None:
        """Work on a stream, given as an object or by its handle."""
        stream = self.streams[int(stream)]
        (stream.waiting if stream.recorded is None else stream.recorded).append(work)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return real.cudaGetErrorString(error)

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return self.code, self.devices

    def cudaMemGetInfo(self) -> tuple[Any, int, int]:
        return OK, self.free, 2**34

    def cudaDeviceGetAttribute(self, attr: Any, device: int) -> tuple[Any, int]:
        major = attr == real.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
        return OK, self.capability[0 if major else 1]

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        return OK, SimpleNamespace(name=self.name.encode())

    def cudaStreamCreate(self) -> tuple[Any, FakeStream]:
        stream = self.streams[len(self.streams) + 70] = FakeStream(len(self.streams) + 70)
        return OK, stream

    def cudaStreamDestroy(self, stream: FakeStream) -> tuple[Any]:
        assert not stream.waiting
        return (OK,)

    def cudaStreamSynchronize(self, stream: FakeStream) -> tuple[Any]:
        assert stream.recorded is None, "a wait while the stream is captured"
        for work in stream.waiting:
            work()
        stream.waiting.clear()
        return (OK,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        if size > self.free:
            return real.cudaError_t.cudaErrorMemoryAllocation, None
        return OK, self.memory.allocate(size)

    def cudaFree(self, devPtr: int) -> tuple[Any]:
        self.memory.free(devPtr)
        return (OK,)

    def cudaMallocHost(self, size: int) -> tuple[Any, int]:
        return OK, self.memory.allocate(size)

    def cudaFreeHost(self, ptr: int) -> tuple[Any]:
        self.memory.free(ptr)
        return (OK,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: FakeStream) -> tuple[Any]:
        self.put(stream, lambda: ctypes.memset(devPtr, value, count))
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: FakeStream) -> tuple[Any]:
        assert isinstance(kind, real.cudaMemcpyKind)
        self.put(stream, lambda: ctypes.memmove(dst, src, count))
        return (OK,)

    def cudaStreamBeginCapture(self, stream: FakeStream, mode: Any) -> tuple[Any]:
        assert isinstance(mode, real.cudaStreamCaptureMode)
        assert not stream.waiting and stream.recorded is None
        stream.recorded = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: FakeStream) -> tuple[Any, list[Any]]:
        recorded, stream.recorded = stream.recorded, None
        assert recorded is not None
        return OK, recorded

    def cudaGraphInstantiate(self, graph: list, flags: int) -> tuple[Any, list]:
        self.graphs.append(list(graph))
        return OK, self.graphs[-1]

    def cudaGraphDestroy(self, graph: list) -> tuple[Any]:
        return (OK,)

    def cudaGraphLaunch(self, graphExec: list, stream: FakeStream) -> tuple[Any]:
        assert any(graphExec is graph for graph in self.graphs)
        self.launches += 1
        for work in graphExec:
            self.put(stream, work)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: list) -> tuple[Any]:
        self.graphs = [graph for graph in self.graphs if graph is not graphExec]
        for work in graphExec:
            work.context.captured = False  # nothing runs it as it was any more
        return (OK,)
