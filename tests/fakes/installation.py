"""A fake of what is installed: GPU libraries that need not be here."""

from dataclasses import dataclass
from typing import Any

from ernie_export.runtime.engines.device.find_gpu import PROVIDER, Installation

DRIVER = "libcuda.so.1"
CUDA_LIBRARIES = ("libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")


@dataclass
class FakeInstallation(Installation):
    """onnxruntime-gpu, the driver and all of CUDA's libraries but `missing`.

    `cuda`: for cuda.bindings.runtime; None: it is not installed. `version`: ONNX Runtime's.
    """

    cuda: Any = None
    missing: str = ""
    version: str = "1.31.1"

    def providers(self) -> list[str]:
        return [PROVIDER]

    def onnxruntime_version(self) -> str:
        return self.version

    def cuda_version(self) -> str:
        return "13.0"

    def import_cuda(self) -> Any:
        if self.cuda is None:
            raise ModuleNotFoundError("No module named 'cuda'", name="cuda")
        return self.cuda

    def load_library(self, name: str) -> None:
        if name == self.missing or name not in (DRIVER, *CUDA_LIBRARIES):
            raise OSError(f"{name}: cannot open shared object file")
