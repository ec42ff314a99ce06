"""A stand-in for CUDA's runtime library, so that what talks to it runs on machines without a GPU; engines on it."""

import ctypes
import inspect
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import runtime as real

from ernie_export.common.manifest import Manifest
from ernie_export.runtime.engines.device.memory import CudaMemory, HostMemory
from ernie_export.runtime.engines.tensorrt.engine import TensorRTEngine

sys.path.insert(0, str(Path(__file__).parent))

from session_stand_in import LIBRARIES, Runtime, changed, write_bundle

OK = real.cudaError_t.cudaSuccess


class Stream:
    """Work that waits; `recorded` in place of it while the stream is captured."""

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.waiting: list[Callable[[], None]] = []
        self.recorded: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return self.handle


class HostCuda:
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
        self.free, self.devices, self.code = free, devices, real.cudaError_t(code)
        self.capability, self.name = capability, name
        self.memory, self.streams = HostMemory(), {}
        self.graphs: list[list[Callable[[], None]]] = []
        self.launches = 0

    def put(self, stream: Any, work: Callable[[], None]) -> None:
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

    def cudaStreamCreate(self) -> tuple[Any, Stream]:
        stream = self.streams[len(self.streams) + 70] = Stream(len(self.streams) + 70)
        return OK, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Any]:
        assert not stream.waiting
        return (OK,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Any]:
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

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: Stream) -> tuple[Any]:
        self.put(stream, lambda: ctypes.memset(devPtr, value, count))
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Any, stream: Stream) -> tuple[Any]:
        assert isinstance(kind, real.cudaMemcpyKind)
        self.put(stream, lambda: ctypes.memmove(dst, src, count))
        return (OK,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: Any) -> tuple[Any]:
        assert isinstance(mode, real.cudaStreamCaptureMode)
        assert not stream.waiting and stream.recorded is None
        stream.recorded = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Any, list]:
        recorded, stream.recorded = stream.recorded, None
        return OK, recorded

    def cudaGraphInstantiate(self, graph: list, flags: int) -> tuple[Any, list]:
        self.graphs.append(list(graph))
        return OK, self.graphs[-1]

    def cudaGraphDestroy(self, graph: list) -> tuple[Any]:
        return (OK,)

    def cudaGraphLaunch(self, graphExec: list, stream: Stream) -> tuple[Any]:
        assert any(graphExec is graph for graph in self.graphs)
        self.launches += 1
        for work in graphExec:
            self.put(stream, work)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: list) -> tuple[Any]:
        self.graphs = [graph for graph in self.graphs if graph is not graphExec]
        return (OK,)


@pytest.fixture(scope="session")
def host_cuda() -> type[HostCuda]:
    """The stand-in, whose functions are checked to be the real library's."""
    for name, ours in vars(HostCuda).items():
        if name.startswith("cuda") and inspect.isfunction(ours):
            first = getattr(real, name).__doc__.splitlines()[0]
            asked = first[first.index("(") + 1 : first.rindex(")")]
            names = [part.split(":")[0].split()[-1] for part in asked.split(",")] if asked else []
            assert list(inspect.signature(ours).parameters)[1:] == names, first
    return HostCuda


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle in float32 whose engines are graphs, for the stand-in to run."""
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    write_bundle(folder)
    return folder


@pytest.fixture(scope="session")
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
