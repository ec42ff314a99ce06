"""Export ERNIE 4.5 VL MoE to ONNX Runtime and TensorRT, and run what was exported without PyTorch.

    from ernie_export import export, load

    export("checkpoint", "bundle")
    with load("bundle") as model:
        print(model.generate([{"role": "user", "content": "Hello"}]).text)

common     errors, JSON and safetensors readers, the manifest: what all other packages share
graphs     the model: its configuration, its checkpoint, one definition of each ONNX graph and operator
exporter   from a checkpoint to a bundle, for each target; planning and verification
runtime    from a bundle to answers: preprocessing, engines, scheduler, servers
"""

from typing import TYPE_CHECKING, Any

from ernie_export.common.version import __version__

if TYPE_CHECKING:
    from ernie_export.exporter.export import export
    from ernie_export.runtime.pipeline import load

__all__ = ["__version__", "export", "load"]


def __getattr__(name: str) -> Any:
    """Import `export` or `load` at first use, so that importing the package loads neither onnx nor ONNX Runtime."""
    if name == "export":
        from ernie_export.exporter.export import export

        return export
    if name == "load":
        from ernie_export.runtime.pipeline import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
