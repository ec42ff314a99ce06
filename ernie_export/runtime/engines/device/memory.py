"""Memory that a device's kernels read and write, by plain addresses: the GPU's, or the host's by the same interface.

The GPU's memory is reached through cuda.bindings.runtime, NVIDIA's own Python interface to CUDA's runtime library.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterable
from io import FileIO
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ernie_export.common.errors import Unavailable
from ernie_export.common.manifest import Manifest
from ernie_export.common.provider_memory import WORKING_MEMORY, provider_memory
from ernie_export.common.safetensors_header import read_header
from ernie_export.runtime.engines.device.find_gpu import INSTALLED, Installation, find_gpu

ALIGNMENT = 256  # bytes: of every block, and of every tensor that TensorRT binds
STAGING_BYTES = 64 * 2**20


class Memory(Protocol):
    """One device's memory. Addresses are integers; every call returns when its work is done.

    Attributes:
        device: ONNX Runtime's name for the device.
    """

    device: str

    def allocate(self, nbytes: int) -> int:
        """Return the address of a new block of zeros, freed by `free` or `close`.

        Raises Unavailable if there is too little memory.
        """
        ...

    def free(self, address: int) -> None:
        """Give a block back."""
        ...

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the device."""
        ...

    def read(self, address: int, nbytes: int) -> bytes:
        """Copy from the device."""
        ...

    def copy(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces within the device, in order: (target, source, bytes) of each."""
        ...

    def fill(self, file: FileIO, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces of a file to the device: (target, offset in the file, bytes) of each."""
        ...

    def close(self) -> None:
        """Free every block that is left."""
        ...


class HostMemory:
    """The host's memory as a device's, which a machine without a GPU runs the same code on."""

    device = "cpu"

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}

    def allocate(self, nbytes: int) -> int:
        """Return the address of a new block of zeros."""
        block = np.zeros(nbytes + ALIGNMENT, np.uint8)
        address = -(-block.ctypes.data // ALIGNMENT) * ALIGNMENT
        self._blocks[address] = block
        return address

    def free(self, address: int) -> None:
        """Give a block back."""
        del self._blocks[address]

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the device."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, address: int, nbytes: int) -> bytes:
        """Copy from the device."""
        return ctypes.string_at(address, nbytes)

    def copy(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces within the device, in order."""
        for target, source, nbytes in pieces:
            ctypes.memmove(target, source, nbytes)

    def fill(self, file: FileIO, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces of a file to the device."""
        for address, offset, nbytes in pieces:
            file.seek(offset)
            left = memoryview((ctypes.c_ubyte * nbytes).from_address(address))
            while left and (count := file.readinto(left)):
                left = left[count:]

    def close(self) -> None:
        """Free every block that is left."""
        self._blocks.clear()


class CudaMemory:
    """Memory of the first GPU, and one stream of work on it, which every copy goes through.

    Every call raises Unavailable with CUDA's own words if it fails.
    """

    device = "cuda"

    def __init__(self, library: Any, staging_bytes: int = STAGING_BYTES) -> None:
        """Create the stream.

        Args:
            library: cuda.bindings.runtime, with a GPU to go with it (see `find_gpu`).
            staging_bytes: Size of a piece of a file on its way to the device.
        """
        self._cuda = library
        self._staging_bytes = staging_bytes
        self._blocks: set[int] = set()
        self._graphs: list[Any] = []
        (self._stream,) = self._call("cudaStreamCreate")
        self._close = weakref.finalize(self, _free_all, library, self._blocks, self._graphs, self._stream)

    @classmethod
    def for_bundle(cls, bundle: Path, manifest: Manifest, installation: Installation = INSTALLED) -> Self:
        """Return the first GPU's memory if the bundle can run there. Nothing is loaded yet.

        Args:
            bundle: Folder of the bundle.
            manifest: Its manifest.
            installation: Where the CUDA libraries are looked for.

        Raises:
            Unavailable: If the bundle's precision or target does not run on ONNX Runtime's CUDA provider, there is no
                GPU that it can use (see `find_gpu`), or there is too little free memory for the weights.
        """
        if "cuda" not in manifest.devices:
            raise Unavailable(
                f"{bundle}: expected target onnx in fp16, bf16 or int4-fp16 for --device cuda (export it again "
                f"with --precision), found {manifest.target}, {manifest.precision}"
            )
        memory = cls(find_gpu(installation))
        data = bundle / manifest.data_file
        entries = read_header(data) if data.is_file() else {}  # a missing file is named by the check of all files
        memory.check_fits(bundle, manifest, provider_memory({name: e.nbytes for name, e in entries.items()}))
        return memory

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def check_fits(self, bundle: Path, manifest: Manifest, working: int = WORKING_MEMORY) -> None:
        """Raise Unavailable if the bundle's weights, and the `working` bytes that it takes besides, do not fit.

        Weights that engines hold count with the engines.
        """
        free, total = self.available()
        weights = manifest.files[manifest.data_file].bytes
        if manifest.engines is not None:
            weights += sum(manifest.files[name].bytes for name in manifest.graphs.values())
            constants = manifest.engines.weights.constants
            entries = read_header(bundle / manifest.data_file) if constants else {}
            weights -= sum(entries[name].nbytes for name in constants if name in entries)
        if weights + working > free:
            raise Unavailable(
                f"{bundle}: expected {(weights + working) / 2**30:.1f} GiB free on the GPU (weights "
                f"{weights / 2**30:.1f}, the rest to work in), found {free / 2**30:.1f} of {total / 2**30:.1f}"
            )

    def available(self) -> tuple[int, int]:
        """Return the bytes that are free, and all bytes."""
        free, total = self._call("cudaMemGetInfo")
        return free, total

    def compute_capability(self) -> str:
        """Return the GPU's compute capability, e.g. "8.9"."""
        attributes = self._cuda.cudaDeviceAttr
        (major,) = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMajor, 0)
        (minor,) = self._call("cudaDeviceGetAttribute", attributes.cudaDevAttrComputeCapabilityMinor, 0)
        return f"{major}.{minor}"

    def gpu_name(self) -> str:
        """Return the GPU's name, e.g. "NVIDIA H100"."""
        (properties,) = self._call("cudaGetDeviceProperties", 0)
        return str(properties.name.decode())

    def allocate(self, nbytes: int) -> int:
        """Return the address of a new block of zeros."""
        free, _ = self.available()
        if nbytes > free:
            raise Unavailable(f"GPU memory: expected {nbytes / 2**30:.2f} GiB free, found {free / 2**30:.2f} GiB")
        (address,) = self._call("cudaMalloc", nbytes)
        self._blocks.add(int(address))
        self._call("cudaMemsetAsync", address, 0, nbytes, self._stream)
        self._call("cudaStreamSynchronize", self._stream)
        return int(address)

    def free(self, address: int) -> None:
        """Give a block back."""
        self._blocks.remove(address)
        self._call("cudaFree", address)

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, "HostToDevice", self._stream)
        self._call("cudaStreamSynchronize", self._stream)

    def read(self, address: int, nbytes: int) -> bytes:
        """Copy from the device."""
        target = ctypes.create_string_buffer(nbytes)
        self._copy(ctypes.addressof(target), address, nbytes, "DeviceToHost", self._stream)
        self._call("cudaStreamSynchronize", self._stream)
        return target.raw

    def copy(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces within the device, in order."""
        for target, source, nbytes in pieces:
            self._copy(target, source, nbytes, "DeviceToDevice", self._stream)
        self._call("cudaStreamSynchronize", self._stream)

    def fill(self, file: FileIO, pieces: Iterable[tuple[int, int, int]]) -> None:
        """Copy pieces of a file: one pinned buffer is read into while another is copied to the device."""
        pieces = list(pieces)
        size = min(self._staging_bytes, max((nbytes for _, _, nbytes in pieces), default=0))
        lanes: list[tuple[Any, int]] = []
        try:
            for _ in range(2):
                (buffer,) = self._call("cudaMallocHost", size)
                (stream,) = self._call("cudaStreamCreate")
                lanes.append((stream, int(buffer)))
            turns = cycle(lanes)
            for address, offset, nbytes in pieces:
                file.seek(offset)
                end = address + nbytes
                while address < end:
                    stream, buffer = next(turns)
                    self._call("cudaStreamSynchronize", stream)
                    count = file.readinto((ctypes.c_ubyte * min(size, end - address)).from_address(buffer))
                    if not count:
                        break
                    self._copy(address, buffer, count, "HostToDevice", stream)
                    address += count
            for stream, _ in lanes:
                self._call("cudaStreamSynchronize", stream)
        finally:
            for stream, buffer in lanes:
                self._cuda.cudaStreamDestroy(stream)
                self._cuda.cudaFreeHost(buffer)

    def capture(self, enqueue: Callable[[], None]) -> Any:
        """Record what `enqueue` puts on the stream as a CUDA graph, to `launch`; nothing of it runs now."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self._stream)
            raise
        (recorded,) = self._call("cudaStreamEndCapture", self._stream)
        (graph,) = self._call("cudaGraphInstantiate", recorded, 0)
        self._call("cudaGraphDestroy", recorded)
        self._graphs.append(graph)
        return graph

    def launch(self, graph: Any) -> None:
        """Put a captured graph on the stream."""
        self._call("cudaGraphLaunch", graph, self._stream)

    def drop(self, graph: Any) -> None:
        """Free a captured graph."""
        self._graphs.remove(graph)
        self._call("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free every block that is left."""
        self._close()

    def _copy(self, target: int, source: int, nbytes: int, kind: str, stream: Any) -> None:
        direction = getattr(self._cuda.cudaMemcpyKind, f"cudaMemcpy{kind}")
        self._call("cudaMemcpyAsync", target, source, nbytes, direction, stream)

    def _call(self, name: str, *arguments: object) -> list[Any]:
        values: list[Any]
        code, *values = getattr(self._cuda, name)(*arguments)
        if code:
            _, reason = self._cuda.cudaGetErrorString(code)
            raise Unavailable(f"GPU: {name} failed with error {int(code)}, {reason.decode()}")
        return values


def _free_all(library: Any, blocks: set[int], graphs: list[Any], stream: Any) -> None:
    library.cudaStreamSynchronize(stream)
    while graphs:
        library.cudaGraphExecDestroy(graphs.pop())
    while blocks:
        library.cudaFree(blocks.pop())
    library.cudaStreamDestroy(stream)
