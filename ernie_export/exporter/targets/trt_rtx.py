"""TensorRT for RTX: engines built ahead of time, without a GPU, for cards of several compute capabilities at once.

The library's timing cache does nothing (its documentation says so), and its inspector needs a driver: the report that
a bundle keeps, engines.json, holds what the parsed network and the build say.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import EngineInfo
from ernie_export.exporter.targets import engines
from ernie_export.graphs.config import ErnieConfig

TARGET = "trt-rtx"
LIBRARY = "tensorrt_rtx_bindings"
# What the library builds for, but for 7.5: Turing has neither bfloat16 nor, in this library, a float32 matrix product.
CAPABILITIES = {"8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}
DEFAULT_CAPABILITIES = "8.0,8.6,8.9,12.0"


@dataclass(frozen=True)
class Limits(engines.Limits):
    """What a user asks of these engines."""

    capabilities: str = DEFAULT_CAPABILITIES


def check(config: ErnieConfig, limits: Limits, image_tokens: tuple[int, int]) -> EngineInfo:
    """What the engines are to be built for; UserError names the option that asks for what cannot be.

    image_tokens: as in `engines.check_limits`.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise UserError(
            f"--target {TARGET}: expected the extra '{TARGET}' (pip install .[export,{TARGET}]), found no {LIBRARY}"
        )
    names = tuple(dict.fromkeys(name.strip() for name in limits.capabilities.split(",")))
    for name in names:
        if name not in CAPABILITIES:
            raise UserError(f"--compute-capability: expected some of {','.join(CAPABILITIES)}, found {name!r}")
    tokens, image = engines.check_limits(config, limits, image_tokens)
    chunk = min(engines.PREFILL_CHUNK, tokens)
    return EngineInfo(LIBRARY, "", names, limits.max_batch, tokens, image, chunk, top_k=0)


def build_engines(
    folder: Path, names: list[str], facts: EngineInfo, merge: int, on_share: Callable[[str, float], None]
) -> EngineInfo:
    """Replace each NAME.onnx of `folder` by NAME.engine and add the report; returns `facts` with the library's version.

    merge: as in `engines.dimensions`. Raises as `engines.build_engine` does.
    """
    reports: dict[str, dict[str, Any]] = {}
    for name in names:
        request = {
            "library": LIBRARY,
            "onnx": str(folder / f"{name}.onnx"),
            "engine": str(folder / f"{name}.engine"),
            "dimensions": engines.dimensions(name, facts, merge),
            "capabilities": [CAPABILITIES[capability] for capability in facts.compute_capabilities],
        }
        reports[name] = engines.build_engine(name, request, partial(on_share, f"Building {name}.engine"))
        (folder / f"{name}.onnx").unlink()
    engines.write_report(folder, reports)
    return replace(facts, version=reports[names[0]]["version"])
