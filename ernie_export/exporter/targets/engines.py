"""What the targets of compiled engines share: options, the graphs' last changes, profiles, and the building process.

Nearly all weights are inputs of the engines, bound from the bundle's data file when it is loaded: prefill and decode
share one copy on the GPU, and an engine is some megabytes whatever the model's size. `choose_binding` says which are. A
KV cache must have a fixed length (the libraries' KV-cache update asks for it): `max_seq_len`.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ernie_export.common.errors import BuildFailed, InvalidValue, NodeRefused
from ernie_export.common.manifest_sections import EngineInfo, WeightBinding
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.onnx import target_for_cpu
from ernie_export.exporter.targets.options import CommandLineOption, TargetOptions, option
from ernie_export.exporter.targets.target import ExportJob, Target
from ernie_export.exporter.targets.workers.process import PYTHON, WorkerCrashed, call_worker
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.precision import Precision

if TYPE_CHECKING:
    from ernie_export.graphs.builder import GraphBuilder
    from ernie_export.graphs.weight_spec import Weight

MAX_SEQ_LEN = 8192  # of a slot of the KV cache, unless the user or the model says otherwise
CACHE_MULTIPLE = 64  # tokens: every slot of a buffer then begins at a multiple of 256 bytes, as the libraries require
USUAL_PATCHES = 4096  # of an image: kernels are chosen for this size, where images may be as large
SCORE_BYTES = 3 * 2**29  # 1.5 GiB: the most that an attention of the largest image forms by default
REPORT = "engines.json"
CONSTANTS_FILE = "constants.safetensors"  # of weights that engines hold, while they are built within an export
WITHOUT_PLUGINS = ("vision", "resampler")  # graphs of standard operators for every target
BUILDER = (*PYTHON, "ernie_export.exporter.targets.workers.engine_build")

Request = dict[str, Any]
Report = dict[str, Any]
# Builds one engine: takes the engine's name, the request for engine_build.py and a callback for the fraction done.
BuildEngine = Callable[[str, Request, Callable[[float], None]], Report]


@dataclass(frozen=True)
class BuildOptions(TargetOptions):
    """What a user asks of engines; None leaves a size to the model.

    Attributes:
        max_batch_size: Sequences of one decode step.
        max_seq_len: Tokens of one conversation, prompt and answer.
        max_image_tokens: Decoder tokens of one image.
        bakes_projections: Whether engines hold the matrices of linear layers.
    """

    max_batch_size: int = option(
        1, CommandLineOption("--max-batch", "rows of one decode step.  [default: 1]", click.IntRange(1, 256))
    )
    max_seq_len: int | None = option(
        None,
        CommandLineOption(
            "--max-tokens", f"tokens of a conversation.  [default: up to {MAX_SEQ_LEN}]", click.IntRange(1)
        ),
    )
    max_image_tokens: int | None = option(
        None,
        CommandLineOption(
            "--max-image-tokens",
            "decoder tokens of one picture; larger ones are scaled down.  [default: as attention of 1.5 GiB allows]",
            click.IntRange(1),
        ),
    )
    bakes_projections: bool = option(
        False,
        CommandLineOption(
            "--bake-projections",
            "engines hold linear layers' matrices, for a library that mishandles them as inputs.",
            is_flag=True,
        ),
    )


@dataclass(frozen=True)
class EngineBuilder:
    """Builds one engine with the worker engine_build.py.

    Attributes:
        program: The command that runs the worker.
        log_folder: Where every message of the library is written, to NAME.log; None for nowhere.
    """

    program: tuple[str, ...] = BUILDER
    log_folder: Path | None = None

    def __call__(self, name: str, request: Request, on_progress: Callable[[float], None]) -> Report:
        """Build the engine of the graph `name`; return the worker's report.

        Raises NodeRefused, which names the node; BuildFailed, which says how the build failed or crashed; OSError if
        the engine cannot be written.
        """
        answer: dict[str, Any] = {}
        library = request["library"]
        expected = f"{name}.engine: expected an engine from {library}"
        if self.log_folder is not None:
            request = request | {"log": str(self.log_folder / f"{name}.log")}
        try:
            for answer in call_worker(self.program, request):
                if "progress" in answer:
                    on_progress(answer["progress"])
        except WorkerCrashed as e:
            raise BuildFailed(f"{expected}, found that it crashed: {e}") from e
        if "system" in answer:
            raise OSError(*answer["system"], request["engine"])
        if "refused" in answer:
            node, operator, reason = answer["refused"]
            raise NodeRefused(f"{name}.onnx: {node} ({operator}): refused by {library}: {reason}")
        if "built" not in answer:
            raise BuildFailed(f"{expected}, found: {answer.get('failed', 'no answer')}")
        report: Report = answer["built"]
        return report


@dataclass(frozen=True)
class Attempt:
    """One way to build an engine. `note`: what it gives up, empty for nothing; `request`: for the worker."""

    note: str
    request: Request


def build_first(build_engine: BuildEngine, name: str, attempts: Iterable[Attempt], progress: Progress) -> Report:
    """Build the engine `name` in the first way that does not fail; the report says what that way gives up, and why.

    Raises NodeRefused, and BuildFailed with the first failure where every way fails.
    """
    failures: list[BuildFailed] = []
    for attempt in attempts:
        phase = f"Building {name}.engine" + (f", {attempt.note}" if attempt.note else "")
        try:
            report = build_engine(name, attempt.request, partial(progress.update, phase))
        except NodeRefused:
            raise
        except BuildFailed as e:
            failures.append(e)
            continue
        if failures:
            report |= {"built": attempt.note, "because": [str(e) for e in failures]}
        return report
    raise failures[0]


@dataclass(frozen=True, kw_only=True)
class EngineTarget(Target):
    """A target whose graphs a library compiles to engines for GPUs.

    Attributes:
        library: Python module of the library.
        build_engine: Builds one engine.
    """

    options_type: type[TargetOptions] = BuildOptions
    compiles_engines: bool = True
    library: str
    build_engine: BuildEngine = field(default_factory=EngineBuilder)

    def devices(self, precision: Precision) -> tuple[str, ...]:
        """Return CUDA: engines run nowhere else."""
        return ("cuda",)

    def weight_binding(self, weights: "Iterable[Weight]", options: TargetOptions) -> WeightBinding:
        """Return which weights the engines take as inputs."""
        assert isinstance(options, BuildOptions)  # `export` holds them to options_type
        return choose_binding(weights, options.bakes_projections)

    def cpu_target(self, config: ErnieConfig) -> Target:
        """Return the target for ONNX Runtime: the quantized weights are the same."""
        return target_for_cpu(config)


def resolve_sizes(config: ErnieConfig, options: BuildOptions, image_tokens: tuple[int, int]) -> tuple[int, int]:
    """Return the tokens of a conversation and of an image that engines are built for.

    Args:
        config: The model.
        options: What the user asks for.
        image_tokens: Tokens of the smallest and of the largest image that the processors let through.

    Raises:
        InvalidValue: An option asks for what cannot be.
    """
    smallest, largest = image_tokens
    positions = config.text.max_positions
    tokens = min(MAX_SEQ_LEN, positions) if options.max_seq_len is None else options.max_seq_len
    image = options.max_image_tokens
    if image is None:
        image = max(min(largest, tokens - 1, usual_image_tokens(config)), smallest)
    if tokens <= smallest:
        raise InvalidValue("--max-tokens", f"more than the {smallest} of the smallest picture", tokens)
    if tokens > positions:
        raise InvalidValue("--max-tokens", f"at most {positions} (max_position_embeddings)", tokens)
    if image < smallest:
        raise InvalidValue("--max-image-tokens", f"at least {smallest} (the smallest picture)", image)
    if tokens <= image:
        raise InvalidValue("--max-tokens", f"more than a picture's {image} (--max-image-tokens)", tokens)
    return tokens, image


def usual_image_tokens(config: ErnieConfig) -> int:
    """Return the tokens of the largest image whose attention stays within SCORE_BYTES if no kernel fuses it.

    Its scores are then formed whole: patches by patches for each head and each of a video pair's two frames.
    """
    vision = config.vision
    patches = math.isqrt(SCORE_BYTES // (2 * vision.num_heads * 2))
    return patches // vision.spatial_merge_size**2


def choose_binding(weights: "Iterable[Weight]", bakes_projections: bool) -> WeightBinding:
    """Return which of `weights` engines take as inputs: those whose copies would count, and what plugins read.

    As constants, prefill and decode would have a copy each, and two engines of the released model's experts fit no GPU.
    Norms, biases and routers are small, and a builder fuses what it knows.
    """
    from ernie_export.graphs.weight_spec import Role

    bound = (Role.EXPERT, Role.EMBEDDING, Role.HEAD) + (() if bakes_projections else (Role.PROJECTION,))
    names = [weight.name for weight in weights if weight.role not in bound and not weight.is_quantized]
    return WeightBinding(bakes_projections, tuple(names))


@contextmanager
def written_constants(
    folder: Path, job: ExportJob, engines: EngineInfo, progress: Progress
) -> Iterator[Mapping[str, int]]:
    """Write the weights that engines hold to CONSTANTS_FILE, which is there until the block ends.

    Engines are built before the data file is written, so that a refused graph is found before that has taken its time.

    Yields:
        The weights' offsets in the file.

    Raises:
        CannotWrite: The disk is full.
        UserError: The checkpoint cannot be read.
    """
    from ernie_export.exporter.weights import writer
    from ernie_export.graphs.build import all_weights

    names = frozenset(engines.weights.constants)
    layout = writer.plan([weight for weight in all_weights(job.graphs) if weight.name in names])
    progress.begin("Writing the engines' constants", layout.nbytes)
    path = folder / CONSTANTS_FILE
    writer.write(layout, job.checkpoint, path, progress.advance)
    yield layout.offsets
    path.unlink()


def cache_capacity(max_seq_len: int) -> int:
    """Return the tokens of a slot of the KV cache.

    A chunk is padded to CACHE_MULTIPLE tokens at least, and the padding of the last one needs a place, too.
    """
    return (-(-max_seq_len // CACHE_MULTIPLE) + 1) * CACHE_MULTIPLE


def bind_weights(graphs: "dict[str, GraphBuilder]", engines: EngineInfo) -> None:
    """Make weights inputs, and fix the sizes that may not be dynamic: the cache's length, one token a decode step."""
    fixed: dict[str, dict[str, int]] = {
        "decoder": {"batch": 1, "features": engines.prefill_chunk},
        "decode": {"sequence": 1},
    }
    for name, graph in graphs.items():
        graph.bind_at_load(engines.weights.constants)
        graph.fix_dimensions({"capacity": cache_capacity(engines.max_seq_len)} | fixed.get(name, {}))


def profile_dimensions(graph: str, engines: EngineInfo, merge: int) -> dict[str, tuple[int, int, int]]:
    """Return minimum, optimum and maximum of each dynamic dimension of a graph: its optimization profile.

    `merge`: patches of a token, along one side. The encoder takes one image, or one pair of a video's frames, at a
    time: attention of the largest image bounds the memory that way, and an image of a few hundred patches fills a GPU
    already.
    """
    block = merge**2
    patches = engines.max_image_tokens * block
    frames = {"frames": (1, 1, 2), "patches": (block, min(patches, USUAL_PATCHES), patches)}
    chunk = engines.prefill_chunk
    return {
        "vision": frames,
        "resampler": frames | {"pairs": (1, 1, 1)},
        "decoder": {"sequence": (1, chunk, chunk)},
        "decode": {"batch": (1, 1, engines.max_batch_size)},
    }[graph]


def write_report(folder: Path, reports: dict[str, Report]) -> None:
    """Write the report of each engine's build into `folder`."""
    (folder / REPORT).write_text(json.dumps(reports, indent=1) + "\n")
