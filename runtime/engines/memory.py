"""Memory that a device's kernels read and write, by plain addresses: the GPU's, or the host's under the same interface.

The GPU's is reached through CUDA's own runtime library, the one that ONNX Runtime's provider has loaded, with ctypes:
nine C functions, no further package.
"""

import ctypes
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import Manifest
from ernie_export.runtime.engines.find_gpu import find_gpu

STAGING = 64 * 2**20  # a piece of a file on its way to the device
# The provider's attention takes 16-bit floats only.
PRECISIONS = ("fp16", "bf16")
# Besides weights: ONNX Runtime's working memory and its libraries' own, and a small KV cache.
WORKING_MEMORY = 2 * 2**30
COMPUTE_CAPABILITY = 75, 76  # cudaDevAttrComputeCapabilityMajor and …Minor
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind


class Memory(Protocol):
    """One device's memory. Addresses are integers; every call returns when its work is done."""

    device: str

    def allocate(self, nbytes: int) -> int:
        """Address of a new block of zeros. Raises UserError if there is no room; freed with `free` or `close`."""
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
        """Copy within the device, in order: (target, source, bytes) of each piece."""
        ...

    def close(self) -> None:
        """Free every block that is left."""
        ...


def data_file(bundle: Path, manifest: Manifest) -> Path:
    """The bundle's one file of weights."""
    return bundle / next(name for name in manifest.files if name.endswith(".safetensors"))


def read_file(memory: Memory, address: int, path: Path, start: int, nbytes: int | None = None) -> None:
    """Copy `nbytes` (all that follow, unless given) of a file from `start` on to `address`, in pieces."""
    nbytes = path.stat().st_size - start if nbytes is None else nbytes
    piece = memoryview(bytearray(min(STAGING, nbytes)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while nbytes and (count := file.readinto(piece[:nbytes])):
            memory.write(address, np.frombuffer(piece, np.uint8, count))
            address, nbytes = address + count, nbytes - count


class HostMemory:
    """The host's memory as a device's: what a machine without a GPU runs the same code on."""

    device = "cpu"

    def __init__(self) -> None:
        self._blocks: dict[int, np.ndarray] = {}

    def allocate(self, nbytes: int) -> int:
        """See `Memory.allocate`."""
        block = np.zeros(nbytes + 64, np.uint8)
        address = (block.ctypes.data + 63) // 64 * 64
        self._blocks[address] = block
        return address

    def free(self, address: int) -> None:
        """See `Memory.free`."""
        del self._blocks[address]

    def write(self, address: int, array: np.ndarray) -> None:
        """See `Memory.write`."""
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def read(self, address: int, nbytes: int) -> bytes:
        """See `Memory.read`."""
        return ctypes.string_at(address, nbytes)

    def copy(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """See `Memory.copy`."""
        for target, source, nbytes in pieces:
            ctypes.memmove(target, source, nbytes)

    def close(self) -> None:
        """See `Memory.close`."""
        self._blocks.clear()


class CudaMemory:
    """Memory of the first GPU."""

    device = "cuda"

    def __init__(self, library: ctypes.CDLL) -> None:
        """`library`: CUDA's runtime, with a GPU to go with it (see `find_gpu`)."""
        self._cuda = library
        self._cuda.cudaGetErrorString.restype = ctypes.c_char_p
        self._blocks: set[int] = set()
        self._close = weakref.finalize(self, _free_all, library, self._blocks)

    @classmethod
    def for_bundle(cls, bundle: Path, manifest: Manifest) -> Self:
        """The first GPU's memory, after a look at whether the bundle can run there. Nothing is loaded yet.

        Raises UserError if the bundle's precision or target doesn't run on ONNX Runtime's CUDA provider, there is no
        GPU that it can use (see `find_gpu`), or there is too little free memory for the weights.
        """
        if manifest.target != "onnx" or manifest.precision not in PRECISIONS:
            raise UserError(
                f"{bundle}: expected target onnx and one of {', '.join(PRECISIONS)} for --device cuda (export it again "
                f"with --precision), found {manifest.target}, {manifest.precision}"
            )
        memory = cls(find_gpu())
        memory.check_room(bundle, manifest)
        return memory

    def check_room(self, bundle: Path, manifest: Manifest) -> None:
        """UserError if the bundle's weights, and what it takes to work with them, don't fit."""
        free, total = self.available()
        weights = manifest.files[data_file(bundle, manifest).name].bytes
        if weights + WORKING_MEMORY > free:
            raise UserError(
                f"{bundle}: expected {(weights + WORKING_MEMORY) / 2**30:.1f} GiB free on the GPU (weights "
                f"{weights / 2**30:.1f}, the rest to work in), found {free / 2**30:.1f} of {total / 2**30:.1f}"
            )

    def available(self) -> tuple[int, int]:
        """Bytes free, and bytes in all."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def compute_capability(self) -> str:
        """Of the GPU, such as 8.9."""
        figures = []
        for attribute in COMPUTE_CAPABILITY:
            figure = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(figure), attribute, 0)
            figures.append(str(figure.value))
        return ".".join(figures)

    def new_stream(self) -> int:
        """Handle of a stream, which this object's copies wait for; it lives as long as the process."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        assert stream.value is not None
        return stream.value

    def allocate(self, nbytes: int) -> int:
        """See `Memory.allocate`."""
        free, _ = self.available()
        if nbytes > free:
            raise UserError(f"GPU memory: expected {nbytes / 2**30:.2f} GiB free, found {free / 2**30:.2f} GiB")
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(nbytes))
        assert address.value is not None
        self._blocks.add(address.value)
        self._call("cudaMemset", address, 0, ctypes.c_size_t(nbytes))
        return address.value

    def free(self, address: int) -> None:
        """See `Memory.free`."""
        self._blocks.remove(address)
        self._call("cudaFree", ctypes.c_void_p(address))

    def write(self, address: int, array: np.ndarray) -> None:
        """See `Memory.write`."""
        self._copy(address, array.ctypes.data, array.nbytes, TO_DEVICE)
        self._call("cudaDeviceSynchronize")

    def read(self, address: int, nbytes: int) -> bytes:
        """See `Memory.read`."""
        target = ctypes.create_string_buffer(nbytes)
        self._copy(ctypes.addressof(target), address, nbytes, TO_HOST)
        return target.raw

    def copy(self, pieces: Iterable[tuple[int, int, int]]) -> None:
        """See `Memory.copy`."""
        for target, source, nbytes in pieces:
            self._copy(target, source, nbytes, ON_DEVICE)
        # Copies within the device return early, and ONNX Runtime's streams don't wait for the default one.
        self._call("cudaDeviceSynchronize")

    def close(self) -> None:
        """See `Memory.close`."""
        self._close()

    def _copy(self, target: int, source: int, nbytes: int, kind: int) -> None:
        self._call("cudaMemcpy", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(nbytes), kind)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            reason = self._cuda.cudaGetErrorString(code).decode()
            raise UserError(f"GPU: {name} failed with error {code}, {reason}")


def _free_all(library: ctypes.CDLL, blocks: set[int]) -> None:
    while blocks:
        library.cudaFree(ctypes.c_void_p(blocks.pop()))
