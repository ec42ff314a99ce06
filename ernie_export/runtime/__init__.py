"""Bundle to answers, without torch.

from ernie_export.runtime import load

with load("bundle") as model:
    print(model.generate([{"role": "user", "content": "Hello"}]).text)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ernie_export.runtime.pipeline import Model, load
    from ernie_export.runtime.result import Result

__all__ = ["Model", "Result", "load"]


def __getattr__(name: str) -> Any:
    """Import the pipeline, and with it ONNX Runtime, only when it is used: commands start at once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ernie_export.runtime import pipeline

    return getattr(pipeline, name)
