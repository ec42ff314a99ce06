"""TensorRT for RTX: engines built ahead of time, without a GPU, for cards of several compute capabilities at once.

The engines hold no weights. Every weight is an input, bound from the bundle's data file when it is loaded: prefill and
decode share one copy on the card, an engine is a few megabytes whatever the model's size, and building one reads no
checkpoint. A KV cache must have a fixed capacity (the library's KV-cache update asks for it): `max_tokens`.

The library's timing cache does nothing (its documentation says so), and its inspector needs a driver: the report that
a bundle keeps, engines.json, holds what the parsed network and the build say.
"""

import importlib.util
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ernie_export.graphs.build import GraphBuilder
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.errors import UserError
from ernie_export.graphs.manifest import PREFILL_CHUNK, EngineFacts

TARGET = "trt-rtx"
LIBRARY = "tensorrt_rtx_bindings"
# What the library builds for, but for 7.5: Turing has neither bfloat16 nor, in this library, a float32 matrix product.
CAPABILITIES = {"8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}
DEFAULT_CAPABILITIES = "8.0,8.6,8.9,12.0"
MAX_TOKENS = 8192  # of a row of the KV cache, unless the user or the model says otherwise
ROUND_CAPACITY = 64  # tokens: every row of a buffer then begins at a multiple of 256 bytes, which the library asks for
USUAL_PATCHES = 4096  # of a picture: kernels are chosen for this size, where pictures may be as large
REPORT = "engines.json"
BUILDER = (sys.executable, "-m", "ernie_export.exporter.targets.rtx_build")


@dataclass(frozen=True)
class Limits:
    """What a user asks of the engines; None leaves a figure to the model."""

    capabilities: str = DEFAULT_CAPABILITIES
    max_batch: int = 1
    max_tokens: int | None = None
    max_image_tokens: int | None = None


def check(config: ErnieConfig, limits: Limits, image_tokens: tuple[int, int]) -> EngineFacts:
    """What the engines are to be built for; UserError names the option that asks for what cannot be.

    image_tokens: tokens of the smallest and of the largest picture that the processors let through.
    """
    if importlib.util.find_spec(LIBRARY) is None:
        raise UserError(
            f"--target {TARGET}: expected the extra '{TARGET}' (pip install .[export,{TARGET}]), found no {LIBRARY}"
        )
    names = tuple(dict.fromkeys(name.strip() for name in limits.capabilities.split(",")))
    for name in names:
        if name not in CAPABILITIES:
            raise UserError(f"--compute-capability: expected some of {','.join(CAPABILITIES)}, found {name!r}")
    least, most = image_tokens
    positions = config.text.max_positions
    tokens = min(MAX_TOKENS, positions) if limits.max_tokens is None else limits.max_tokens
    image = min(most, tokens - 1) if limits.max_image_tokens is None else limits.max_image_tokens
    if tokens > positions:
        raise UserError(f"--max-tokens: expected at most {positions} (max_position_embeddings), found {tokens}")
    if image < least:
        raise UserError(f"--max-image-tokens: expected at least {least} (the smallest picture), found {image}")
    if tokens <= image:
        raise UserError(f"--max-tokens: expected more than a picture's {image} (--max-image-tokens), found {tokens}")
    return EngineFacts(LIBRARY, "", names, limits.max_batch, tokens, image)


def lower(graphs: dict[str, GraphBuilder], facts: EngineFacts) -> None:
    """Make weights inputs, and give the figures that may not be dynamic: the cache's capacity, one token a decode."""
    capacity = -(-facts.max_tokens // ROUND_CAPACITY) * ROUND_CAPACITY
    fixed: dict[str, dict[str, int]] = {"decoder": {"batch": 1}, "decode": {"sequence": 1}}
    for name, graph in graphs.items():
        graph.bind_at_load()
        graph.fix_dimensions({"capacity": capacity} | fixed.get(name, {}))


def dimensions(graph: str, facts: EngineFacts, config: ErnieConfig) -> dict[str, tuple[int, int, int]]:
    """Least, usual and most of each dynamic dimension of a graph: its optimisation profile.

    The encoder takes one picture, or one pair of a clip's frames, at a time: attention of the largest picture bounds
    the memory that way, and a picture of a few hundred patches fills a card already.
    """
    block = config.vision.spatial_merge_size**2
    patches = facts.max_image_tokens * block
    frames = {"frames": (1, 1, 2), "patches": (block, min(patches, USUAL_PATCHES), patches)}
    chunk = min(PREFILL_CHUNK, facts.max_tokens)
    return {
        "vision": frames,
        "resampler": frames | {"pairs": (1, 1, 1)},
        "decoder": {"sequence": (1, chunk, chunk), "features": (1, chunk, chunk)},
        "decode": {"batch": (1, 1, facts.max_batch)},
    }[graph]


def build_engines(
    folder: Path, names: list[str], facts: EngineFacts, config: ErnieConfig, on_share: Callable[[str, float], None]
) -> EngineFacts:
    """Replace each NAME.onnx of `folder` by NAME.engine and add the report; returns `facts` with the library's version.

    UserError names the node that the library refuses, or says how a build failed or crashed; OSError if an engine
    cannot be written.
    """
    reports: dict[str, dict[str, Any]] = {}
    for name in names:
        request = {
            "onnx": str(folder / f"{name}.onnx"),
            "engine": str(folder / f"{name}.engine"),
            "capabilities": [CAPABILITIES[capability] for capability in facts.compute_capabilities],
            "dimensions": dimensions(name, facts, config),
        }
        reports[name] = build_engine(name, request, partial(on_share, f"Building {name}.engine"))
        (folder / f"{name}.onnx").unlink()
    (folder / REPORT).write_text(json.dumps(reports, indent=1) + "\n")
    return replace(facts, version=reports[names[0]]["version"])


def build_engine(name: str, request: dict[str, Any], on_share: Callable[[float], None]) -> dict[str, Any]:
    """Run rtx_build.py on one request; returns its report."""
    answer: dict[str, Any] = {}
    with subprocess.Popen(BUILDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            for line in process.stdout:
                answer = json.loads(line)
                if "share" in answer:
                    on_share(answer["share"])
        except BrokenPipeError:
            pass  # it died before it read the request: the exit code says how
        finally:
            if sys.exc_info()[0] is not None:  # interrupted: the build is of no use any more
                process.kill()
    if process.returncode:
        code = process.returncode
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        raise UserError(f"{name}.engine: expected an engine from {LIBRARY}, found that it crashed: {how}{hint}")
    if "system" in answer:
        raise OSError(*answer["system"], request["engine"])
    if "refused" in answer:
        node, operator, reason = answer["refused"]
        raise UserError(f"{name}.onnx: {node} ({operator}): refused by {LIBRARY}: {reason}")
    if "built" not in answer:
        raise UserError(f"{name}.engine: expected an engine from {LIBRARY}, found: {answer.get('failed', 'no answer')}")
    return answer["built"]
