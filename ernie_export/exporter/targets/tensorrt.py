"""TensorRT: engines with our plugins, built on the card that runs them.

Two halves. `prepare` needs neither TensorRT nor a GPU: graphs lowered to plugins and standard operators, and the
plugins' kernels as PTX for every architecture asked for. `build_engines` needs both, and nothing but what the first
half left: neither the checkpoint nor Triton.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import GRAPHS, EngineInfo, TensorRTInfo
from ernie_export.exporter.targets import engines
from ernie_export.exporter.targets.gpu import Card, find_card
from ernie_export.exporter.targets.kernels import compile_kernels
from ernie_export.exporter.targets.workers.tensorrt_build import Options, write
from ernie_export.graphs.builder import GraphBuilder
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.ptx import TARGETS
from ernie_export.graphs.ops.quantized_linear.plugin import has_float8
from ernie_export.graphs.precision import Precision

TARGET = "trt"
LIBRARY = "tensorrt"
COMPILER = "triton"
MIN_VERSION = (10, 13)  # the first whose engines carry the kernels of Python plugins, as far as is known
TOP_K = 64  # best tokens of a decode step: a top-k of 50, the usual one, with room for ties and barred tokens
TIMING_CACHE = "timing.cache"
PTX_FOR_ALL = 89  # PTX for a later architecture has features of that one alone; a driver translates this for any
SHARED_FOR_ALL = 48 * 1024  # bytes a program: what any card gives, and all that AMPERE_PLUS allows


@dataclass(frozen=True)
class Limits(engines.Limits):
    """What a user asks of these engines. arch: names, by commas; None is this machine's card, or all without one."""

    arch: str | None = None
    hardware: str = "exact"
    version_compatible: bool = False
    workspace: int = 0


@dataclass(frozen=True)
class Machine:
    """What builds engines: TensorRT's version, and the card."""

    version: str
    card: Card


def check(
    config: ErnieConfig,
    limits: Limits,
    image_tokens: tuple[int, int],
    precision: Precision,
    graphs: dict[str, GraphBuilder],
) -> EngineInfo:
    """What the engines of `graphs` are to be built for; UserError names the option, or the figure of the model, that
    cannot be.
    """
    if importlib.util.find_spec(COMPILER) is None:
        raise UserError(
            f"--target {TARGET}: expected the extra 'kernels' (pip install .[export,kernels]), found no {COMPILER}"
        )
    tokens, image = engines.check_limits(config, limits, image_tokens)
    if limits.arch is not None:
        names = tuple(dict.fromkeys(name.strip() for name in limits.arch.split(",")))
    else:
        card, able = find_card(), tuple(arch for arch in TARGETS if not precision.float8 or has_float8(arch))
        own = kernels_for(card, able, limits.hardware) if card else None
        names = (own,) if own else able
    for name in names:
        if name not in TARGETS:
            raise UserError(f"--arch: expected some of {','.join(TARGETS)}, found {name!r}")
    if limits.hardware == "ampere-plus" and "sm80" not in names:
        raise UserError(f"--hardware-compatible ampere-plus: expected sm80 in --arch, found {','.join(names)}")
    sizes_of(config, precision, graphs, names)
    return EngineInfo(
        library=LIBRARY,
        version="",
        compute_capabilities=(),
        max_batch_size=limits.max_batch,
        max_seq_len=tokens,
        max_image_tokens=image,
        prefill_chunk=min(engines.PREFILL_CHUNK, tokens),
        top_k=min(TOP_K, config.text.vocab_size),
        tensorrt=TensorRTInfo(
            device="",
            hardware_compatibility=limits.hardware,
            version_compatible=limits.version_compatible,
            architectures=names,
            plugin_version=plugins.version(),
            workspace_gib=limits.workspace,
        ),
    )


def tensorrt_of(facts: EngineInfo) -> TensorRTInfo:
    """Return what only TensorRT's engines have."""
    assert facts.tensorrt is not None  # `check` made it
    return facts.tensorrt


def sizes_of(
    config: ErnieConfig, precision: Precision, graphs: dict[str, GraphBuilder], archs: tuple[str, ...]
) -> plugins.Sizes:
    """What the plugins of `graphs` are compiled for; UserError as `plugins.Sizes.of`."""
    nodes = (node for graph in graphs.values() for node in graph.graph)
    return plugins.Sizes.of(config.text, precision.dtype.name.lower(), nodes, archs)


def lower(graphs: dict[str, GraphBuilder], facts: EngineInfo) -> None:
    """`engines.lower`; and a decode step ends with its best tokens, so that the host need not read all logits."""
    engines.lower(graphs, facts)
    g = graphs["decode"]
    logits = g.graph.outputs[0]
    best = facts.top_k
    with g.scope("candidates"):
        values, ids = g.op("TopK", logits, g.constant("best", np.array([best])), axis=-1, outputs=2)
        total = g.op("ReduceSum", logits, g.constant("last", np.array([-1])), keepdims=0)
    g.output(ids, "candidate_ids", ir.DataType.INT64, ("batch", best))
    g.output(values, "candidate_values", ir.DataType.FLOAT, ("batch", best))
    g.output(total, "logit_total", ir.DataType.FLOAT, ("batch",))


def prepare(
    folder: Path,
    facts: EngineInfo,
    config: ErnieConfig,
    precision: Precision,
    graphs: dict[str, GraphBuilder],
    on_share: Callable[[str, float], None],
) -> None:
    """Write kernels-ARCH.json into `folder` for every architecture; UserError as in `compile_kernels`."""
    architectures = tensorrt_of(facts).architectures
    sizes, dtype = sizes_of(config, precision, graphs, architectures), precision.dtype.name.lower()
    for arch, kernels in compile_kernels(sizes, dtype, architectures, partial(on_share, "Compiling kernels")).items():
        kernels.write(folder / kernels_file(arch))


def prepared_files(facts: EngineInfo) -> list[str]:
    """Names of the files that engines are built from, and that are of no use once they are."""
    return [*(f"{name}.onnx" for name in GRAPHS), *map(kernels_file, tensorrt_of(facts).architectures)]


def kernels_file(arch: str) -> str:
    """Name of the file with the kernels for an architecture."""
    return f"kernels-{arch}.json"


def find_machine(facts: EngineInfo) -> Machine:
    """What is here to build engines with; UserError says what is missing, or that no kernels are there for the card."""
    version, expected = installed(), f"expected TensorRT {'.'.join(map(str, MIN_VERSION))} or later"
    if version is None:
        raise UserError(f"{expected} (pip install .[export,trt]), found none")
    if tuple(map(int, version.split(".")[:2])) < MIN_VERSION:
        raise UserError(f"{expected}, found {version}")
    card = find_card()
    if card is None:
        raise UserError("expected an NVIDIA GPU and its driver, found none")
    if kernels_for(card, tensorrt_of(facts).architectures, tensorrt_of(facts).hardware_compatibility) is None:
        own, found = "sm{}{}".format(*card.capability), ",".join(tensorrt_of(facts).architectures)
        raise UserError(f"expected kernels for {card.name} ({own}), found them for {found} (--arch)")
    return Machine(version, card)


def installed() -> str | None:
    """TensorRT's version; None where it is not installed. UserError where it is, and cannot be loaded.

    Asked of another process: loading it takes seconds and gigabytes.
    """
    program = "import tensorrt; print(tensorrt.__version__)"
    process = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    if process.returncode == 0:
        return process.stdout.split()[-1]
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    if lines[-1].startswith("ModuleNotFoundError: No module named 'tensorrt'"):
        return None
    raise UserError(f"expected TensorRT, found that it does not load: {lines[-1]}")


def kernels_for(card: Card, architectures: tuple[str, ...], hardware: str) -> str | None:
    """Which architecture's kernels the engines for a card take: its own, or else the latest that a driver translates.

    Engines for all cards from Ampere on take Ampere's.
    """
    number = card.capability[0] * 10 + card.capability[1]
    if hardware == "ampere-plus":
        return "sm80" if "sm80" in architectures and number >= 80 else None
    if f"sm{number}" in architectures:
        return f"sm{number}"
    older = [arch for arch in architectures if TARGETS[arch] <= min(number, PTX_FOR_ALL)]
    return max(older, key=lambda arch: TARGETS[arch], default=None)


def build_engines(
    folder: Path,
    into: Path,
    names: list[str],
    facts: EngineInfo,
    machine: Machine,
    merge: int,
    on_share: Callable[[str, float], None],
) -> EngineInfo:
    """Build NAME.engine in `into` from each NAME.onnx of `folder`, with the timing cache and the report.

    What an interrupted build has left in `into` is taken up if it was asked for in the same way. merge: as in
    `engines.dimensions`. Returns `facts` with what is now known. Raises as `engines.build_engine` does.
    """
    info = tensorrt_of(facts)
    arch = kernels_for(machine.card, info.architectures, info.hardware_compatibility)
    assert arch is not None  # find_machine saw to it
    options = Options(
        kernels=str(folder / kernels_file(arch)),
        shared=SHARED_FOR_ALL if info.hardware_compatibility == "ampere-plus" else 2**20,
        hardware=info.hardware_compatibility,
        version_compatible=info.version_compatible,
        workspace=info.workspace_gib,
        timing_cache=str(into / TIMING_CACHE),
    )
    reports: dict[str, Any] = {}
    for name in names:
        request = {
            "library": LIBRARY,
            "onnx": str(folder / f"{name}.onnx"),
            "engine": str(into / f"{name}.engine"),
            "dimensions": engines.dimensions(name, facts, merge),
            **vars(options),
        }
        reports[name] = build_or_take_up(name, request, machine, partial(on_share, f"Building {name}.engine"))
    for name in names:
        report_of(into, name).unlink()
    engines.write_report(into, reports)
    major, minor = machine.card.capability
    capabilities = (f"{major}.{minor}",)
    tensorrt = replace(tensorrt_of(facts), device=machine.card.name)
    return replace(facts, version=machine.version, compute_capabilities=capabilities, tensorrt=tensorrt)


def build_or_take_up(
    name: str, request: dict[str, Any], machine: Machine, on_share: Callable[[float], None]
) -> dict[str, Any]:
    """The report of an engine, built now or before an interruption."""
    asked = json.loads(json.dumps([request, machine.version, machine.card.name]))
    path = report_of(Path(request["engine"]).parent, name)
    if path.is_file() and Path(request["engine"]).is_file():
        found = json.loads(path.read_bytes())
        if found["asked"] == asked:
            return found["report"]
    report = engines.build_engine(name, request, on_share)
    write(path, json.dumps({"asked": asked, "report": report}).encode())
    return report


def report_of(folder: Path, name: str) -> Path:
    """Where an engine's report waits for the other engines."""
    return folder / f"{name}.json"
