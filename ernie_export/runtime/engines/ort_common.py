"""What both engines of ONNX Runtime share: session options, and errors that name the graph."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort

from ernie_export.common.errors import InvalidFile, Unavailable, UserError

# For the CPU and for CUDA: the first whose CUDA provider reads the routers of bfloat16 graphs in their own type. Before
# that it read float32 there, and chose experts at random.
MIN_VERSION = "1.31.1"
# ONNX Runtime raises the same classes for all failures: only its text tells too little memory from the rest.
OUT_OF_MEMORY = re.compile(r"[Ff]ailed to allocate memory|out of memory|bad_alloc|ALLOC_FAILED")


def check_version(package: str, version: str, install: str) -> None:
    """Raise Unavailable, naming the command to `install` a later one, if a version of ONNX Runtime is too old."""
    found, wanted = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, MIN_VERSION))
    if found < wanted:
        raise Unavailable(f"{package}: expected version {MIN_VERSION} or newer, found {version} ({install})")


def session_options(threads: int | None) -> ort.SessionOptions:
    """Return options of a session. `threads`: cores for one operator; None for all physical cores."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about shapes it infers, not about the results
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


@contextmanager
def translate_ort_errors(path: Path) -> Iterator[None]:
    """Turn what ONNX Runtime and its bindings raise into Unavailable where memory ran out, else into InvalidFile."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:  # ONNX Runtime's own errors have no common base class
        if isinstance(e, MemoryError) or OUT_OF_MEMORY.search(str(e)):
            raise Unavailable(f"{path}: expected memory for it, found too little ({e})") from e
        expected = "a graph of this bundle's model that ONNX Runtime runs"
        raise InvalidFile(path, expected, f"{type(e).__name__}: {e}") from e


def check_shape(array: np.ndarray, shape: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `array` has this shape; None stands for any size."""
    matches = len(array.shape) == len(shape)
    if not matches or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise ValueError(f"an output of shape {array.shape} in place of {shape}")
