"""What the targets of compiled engines share: limits, the graphs' last changes, profiles, and the building process.

The engines hold no weights. Every weight is an input, bound from the bundle's data file when it is loaded: prefill and
decode share one copy on the card, an engine is a few megabytes whatever the model's size, and building one reads no
checkpoint. A KV cache must have a fixed capacity (the libraries' KV-cache update asks for it): `max_tokens`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import EngineInfo
from ernie_export.exporter.targets.workers.process import PYTHON, Crashed, answers
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig

PREFILL_CHUNK = 512  # prompt tokens in one call, at most
MAX_TOKENS = 8192  # of a row of the KV cache, unless the user or the model says otherwise
ROUND_CAPACITY = 64  # tokens: every row of a buffer then begins at a multiple of 256 bytes, which the libraries ask for
USUAL_PATCHES = 4096  # of a picture: kernels are chosen for this size, where pictures may be as large
REPORT = "engines.json"
BUILDER = (*PYTHON, "ernie_export.exporter.targets.workers.engine_build")


@dataclass(frozen=True)
class Limits:
    """What a user asks of engines; None leaves a figure to the model."""

    max_batch: int = 1
    max_tokens: int | None = None
    max_image_tokens: int | None = None


def check_limits(config: ErnieConfig, limits: Limits, image_tokens: tuple[int, int]) -> tuple[int, int]:
    """Tokens of a conversation and of a picture; UserError names the option that asks for what cannot be.

    image_tokens: tokens of the smallest and of the largest picture that the processors let through.
    """
    least, most = image_tokens
    positions = config.text.max_positions
    tokens = min(MAX_TOKENS, positions) if limits.max_tokens is None else limits.max_tokens
    image = min(most, tokens - 1) if limits.max_image_tokens is None else limits.max_image_tokens
    if tokens <= least:
        raise UserError(f"--max-tokens: expected more than the {least} of the smallest picture, found {tokens}")
    if tokens > positions:
        raise UserError(f"--max-tokens: expected at most {positions} (max_position_embeddings), found {tokens}")
    if image < least:
        raise UserError(f"--max-image-tokens: expected at least {least} (the smallest picture), found {image}")
    if tokens <= image:
        raise UserError(f"--max-tokens: expected more than a picture's {image} (--max-image-tokens), found {tokens}")
    return tokens, image


def lower(graphs: dict[str, GraphBuilder], facts: EngineInfo) -> None:
    """Make weights inputs, and give the figures that may not be dynamic: the cache's capacity, one token a decode."""
    capacity = -(-facts.max_seq_len // ROUND_CAPACITY) * ROUND_CAPACITY
    fixed: dict[str, dict[str, int]] = {"decoder": {"batch": 1}, "decode": {"sequence": 1}}
    for name, graph in graphs.items():
        graph.bind_at_load()
        graph.fix_dimensions({"capacity": capacity} | fixed.get(name, {}))


def dimensions(graph: str, facts: EngineInfo, merge: int) -> dict[str, tuple[int, int, int]]:
    """Least, usual and most of each dynamic dimension of a graph: its optimisation profile.

    merge: patches of a token, along one side. The encoder takes one picture, or one pair of a clip's frames, at a time:
    attention of the largest picture bounds the memory that way, and a picture of a few hundred patches fills a card
    already.
    """
    block = merge**2
    patches = facts.max_image_tokens * block
    frames = {"frames": (1, 1, 2), "patches": (block, min(patches, USUAL_PATCHES), patches)}
    chunk = facts.prefill_chunk
    return {
        "vision": frames,
        "resampler": frames | {"pairs": (1, 1, 1)},
        "decoder": {"sequence": (1, chunk, chunk), "features": (1, chunk, chunk)},
        "decode": {"batch": (1, 1, facts.max_batch_size)},
    }[graph]


def build_engine(name: str, request: dict[str, Any], on_share: Callable[[float], None]) -> dict[str, Any]:
    """Run engine_build.py on one request; returns its report.

    UserError names the node that the library refuses, or says how the build failed or crashed; OSError if the engine
    cannot be written.
    """
    answer: dict[str, Any] = {}
    expected = f"{name}.engine: expected an engine from {request['library']}"
    try:
        for answer in answers(BUILDER, request):
            if "share" in answer:
                on_share(answer["share"])
    except Crashed as e:
        raise UserError(f"{expected}, found that it crashed: {e}") from e
    if "system" in answer:
        raise OSError(*answer["system"], request["engine"])
    if "refused" in answer:
        node, operator, reason = answer["refused"]
        raise UserError(f"{name}.onnx: {node} ({operator}): refused by {request['library']}: {reason}")
    if "built" not in answer:
        raise UserError(f"{expected}, found: {answer.get('failed', 'no answer')}")
    return answer["built"]


def write_report(folder: Path, reports: dict[str, Any]) -> None:
    """Write what the builds tell of each engine."""
    (folder / REPORT).write_text(json.dumps(reports, indent=1) + "\n")
