"""TensorRT: engines with our plugins, built on the GPU that runs them.

The export needs neither TensorRT nor a GPU: it writes graphs of plugins and standard operators, and the plugins'
kernels as PTX for every architecture asked for. Engines are built from these files alone (tensorrt_engines.py): within
the export where TensorRT and its GPU are, or later with `ernie-export --resume`.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ernie_export.common.errors import InvalidValue, Unavailable
from ernie_export.common.gpu import Gpu, detect_gpu
from ernie_export.common.manifest_sections import HARDWARE_COMPATIBILITY, EngineInfo, TensorRTInfo
from ernie_export.exporter.processor_files import limit_image_tokens
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.engines import (
    CONSTANTS_FILE,
    BuildOptions,
    EngineTarget,
    bind_weights,
    cache_capacity,
    resolve_sizes,
    written_constants,
)
from ernie_export.exporter.targets.options import CommandLineOption, TargetOptions, option
from ernie_export.exporter.targets.target import DATA_FILE, DeferredBuild, ExportJob
from ernie_export.exporter.targets.tensorrt_engines import (
    AMPERE_PLUS,
    TensorRTBuild,
    kernels_file,
    kernels_for,
    tensorrt_info,
)
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.cached_attention import function as cached_attention
from ernie_export.graphs.ops.cached_attention import function_tensorrt as cached_attention_tensorrt
from ernie_export.graphs.ops.moe_dispatch import function_tensorrt as moe_dispatch
from ernie_export.graphs.ops.moe_dispatch.plugin_few import FEW
from ernie_export.graphs.ops.mrope import function_tensorrt as mrope
from ernie_export.graphs.ops.ptx import TARGETS as ARCHITECTURES
from ernie_export.graphs.ops.quantized_linear.plugin import has_float8
from ernie_export.graphs.ops.residual_norm import function as residual_norm
from ernie_export.graphs.ops.vision_attention import function as vision_attention
from ernie_export.graphs.precision import TENSORRT, Precision

if TYPE_CHECKING:
    from ernie_export.exporter.targets.kernels import RunPieces
    from ernie_export.graphs.builder import GraphBuilder
    from ernie_export.graphs.ops.plugins import Sizes

# Prompt tokens in one call, at most. From some 100 tokens on a call reads every expert, which binds it up to about
# 3,000 in bf16. Longer chunks read the weights less often, but need more memory to work in: 1,024 tokens 0.06 GiB for
# experts, and 0.3 GiB if TensorRT's attention forms scores over 8,192 tokens.
PREFILL_CHUNK = 1024
# What is not named here is a plugin as it stands.
TENSORRT_BODIES = OpBodies(
    "tensorrt",
    (
        cached_attention.portable,
        moe_dispatch.tensorrt,
        mrope.tensorrt,
        residual_norm.standard,
        vision_attention.portable,
    ),
    inlined=True,
)
# One token of each row attends to the tokens that are there, where the library's attention reads the whole cache.
DECODE_BODIES = TENSORRT_BODIES.replacing(
    "tensorrt-decode", cached_attention.portable, cached_attention_tensorrt.decode
)
DECODE_FEW_BODIES = DECODE_BODIES.replacing("tensorrt-decode-few", moe_dispatch.tensorrt, moe_dispatch.tensorrt_few)
TOP_K = 64  # best tokens of a decode step: a top-k of 50, the usual one, leaves some for ties and suppressed tokens


@dataclass(frozen=True)
class TensorRTBuildOptions(BuildOptions):
    """What a user asks of these engines.

    Attributes:
        arch: Architectures to compile kernels for, with commas between; None for this machine's GPU, or all without.
        hardware_compatibility: One of HARDWARE_COMPATIBILITY.
        version_compatible: Whether later versions of TensorRT are to run the engines.
        workspace_gib: Memory that one layer may use; 0 for no limit.
    """

    arch: str | None = option(
        None,
        CommandLineOption("--arch", "kernels for these, as sm80,sm90.  [default: this GPU, or all]", metavar="LIST"),
    )
    hardware_compatibility: str = option(
        HARDWARE_COMPATIBILITY[0],
        CommandLineOption(
            "--hardware-compatible",
            "engines for every GPU of the same compute capability, or for any from Ampere on.",
            click.Choice(HARDWARE_COMPATIBILITY[1:]),
        ),
    )
    version_compatible: bool = option(
        False, CommandLineOption("--version-compatible", "engines for later versions of TensorRT, too.", is_flag=True)
    )
    workspace_gib: int = option(
        0, CommandLineOption("--workspace", "memory that a layer may work in.", click.IntRange(1, 1024), "GIB")
    )


@dataclass(frozen=True, kw_only=True)
class TensorRT(EngineTarget):
    """TensorRT with our plugins.

    Attributes:
        compiler: Python module that compiles the plugins' kernels.
        detect_gpu: Returns this machine's GPU.
        run_pieces: Compiles single kernels; None for `kernels.run_parallel`.
    """

    name: str = "trt"
    summary: str = "TensorRT, engines built here where it and its GPU are, or later with --resume."
    precisions: tuple[Precision, ...] = tuple(TENSORRT.values())
    op_bodies: OpBodies = TENSORRT_BODIES
    options_type: type[TargetOptions] = TensorRTBuildOptions
    library: str = "tensorrt"
    compiler: str = "triton"
    detect_gpu: Callable[[], Gpu | None] = detect_gpu
    run_pieces: "RunPieces | None" = None
    deferred_build: DeferredBuild = field(init=False)

    def __post_init__(self) -> None:
        """Make what builds the engines, on the same machine as the target sees."""
        build = TensorRTBuild(self.library, self.detect_gpu, self.build_engine)
        object.__setattr__(self, "deferred_build", build)

    def plan_engines(self, job: ExportJob) -> EngineInfo:
        """Return what the engines are to be built for. Raises Unavailable without the compiler, InvalidValue."""
        from ernie_export.graphs.build import all_weights
        from ernie_export.graphs.ops import plugins

        if importlib.util.find_spec(self.compiler) is None:
            extra = "expected the extra 'kernels' (pip install .[export,kernels])"
            raise Unavailable(f"--target {self.name}: {extra}, found no {self.compiler}")
        options = job.options
        assert isinstance(options, TensorRTBuildOptions)  # `export` holds them to options_type
        tokens, image = resolve_sizes(job.config, options, job.image_tokens())
        architectures = self.choose_architectures(options, job.precision)
        plugin_sizes(job, architectures, tokens, options.max_batch_size)
        return EngineInfo(
            library=self.library,
            version="",
            compute_capabilities=(),
            max_batch_size=options.max_batch_size,
            max_seq_len=tokens,
            max_image_tokens=image,
            prefill_chunk=min(PREFILL_CHUNK, tokens),
            top_k=min(TOP_K, job.config.text.vocab_size),
            tensorrt=TensorRTInfo(
                device="",
                hardware_compatibility=options.hardware_compatibility,
                version_compatible=options.version_compatible,
                architectures=architectures,
                plugin_version=plugins.version(),
                workspace_gib=options.workspace_gib,
            ),
            weights=self.weight_binding(all_weights(job.graphs), options),
        )

    def bodies(self, job: ExportJob) -> dict[str, OpBodies]:
        """Return the bodies by graph: the decode graph has attention of its own, and experts for few tokens."""
        options = job.options
        assert isinstance(options, TensorRTBuildOptions)  # `export` holds them to options_type
        few = options.max_batch_size <= FEW
        return super().bodies(job) | {"decode": DECODE_FEW_BODIES if few else DECODE_BODIES}

    def choose_architectures(self, options: TensorRTBuildOptions, precision: Precision) -> tuple[str, ...]:
        """Return the architectures to compile kernels for. Raises InvalidValue for an unknown one."""
        if options.arch is not None:
            names = tuple(dict.fromkeys(name.strip() for name in options.arch.split(",")))
        else:
            gpu = self.detect_gpu()
            possible = tuple(arch for arch in ARCHITECTURES if not precision.float8 or has_float8(arch))
            of_gpu = kernels_for(gpu, possible, options.hardware_compatibility) if gpu else None
            names = (of_gpu,) if of_gpu else possible
        for name in names:
            if name not in ARCHITECTURES:
                raise InvalidValue("--arch", f"some of {','.join(ARCHITECTURES)}", repr(name))
        if options.hardware_compatibility == AMPERE_PLUS and "sm80" not in names:
            raise InvalidValue(f"--hardware-compatible {AMPERE_PLUS}", "sm80 in --arch", ",".join(names))
        return names

    def write(self, folder: Path, job: ExportJob, engines: EngineInfo | None, progress: Progress) -> EngineInfo:
        """Write kernels and graphs and, where TensorRT and its GPU are, engines in their place."""
        assert engines is not None  # `plan_engines` returns no None
        limit_image_tokens(folder, job.config, engines.max_image_tokens)
        self.write_kernels(folder, job, engines, progress)
        bind_weights(job.graphs, engines)
        add_top_k(job.graphs["decode"], engines.top_k)
        try:
            machine = self.deferred_build.find_machine(engines)
        except Unavailable as e:
            progress.on_engines_deferred(str(e))
            self.save_graphs(folder, job, progress, DATA_FILE, job.offsets)
            return engines
        merge = job.config.vision.spatial_merge_size
        with written_constants(folder, job, engines, progress) as offsets:
            self.save_graphs(folder, job, progress, CONSTANTS_FILE, offsets)
            built = self.deferred_build.build(folder, folder, engines, machine, merge=merge, progress=progress)
        for name in self.deferred_build.input_files(engines):
            (folder / name).unlink()
        return built

    def write_kernels(self, folder: Path, job: ExportJob, engines: EngineInfo, progress: Progress) -> None:
        """Write kernels-ARCH.json into `folder` for every architecture. Raises BuildFailed as `compile_kernels`."""
        from ernie_export.exporter.targets.kernels import compile_kernels, run_parallel

        architectures = tensorrt_info(engines).architectures
        compiled = compile_kernels(
            plugin_sizes(job, architectures, engines.max_seq_len, engines.max_batch_size),
            job.precision.float_type,
            architectures,
            partial(progress.update, "Compiling kernels"),
            self.run_pieces or run_parallel,
        )
        for arch, kernels in compiled.items():
            kernels.write(folder / kernels_file(arch))


def plugin_sizes(job: ExportJob, architectures: tuple[str, ...], max_seq_len: int, max_batch_size: int) -> "Sizes":
    """Return the sizes that plugins' kernels are compiled for. Raises UserError for what they can't serve."""
    from ernie_export.graphs.ops.plugins import Sizes

    nodes = (node for graph in job.graphs.values() for node in graph.graph)
    capacity = cache_capacity(max_seq_len)
    few = max_batch_size <= FEW
    return Sizes.of(job.config.text, job.precision.float_type, nodes, architectures, capacity, few)


def add_top_k(graph: "GraphBuilder", top_k: int) -> None:
    """Add a decode step's best tokens and the sum of its logits as outputs: the host need not read all logits."""
    import numpy as np
    import onnx_ir as ir

    logits = graph.graph.outputs[0]
    with graph.scope("candidates"):
        values, ids = graph.op_outputs("TopK", logits, graph.constant("best", np.array([top_k])), axis=-1, outputs=2)
        total = graph.op("ReduceSum", logits, graph.constant("last", np.array([-1])), keepdims=0)
    graph.output(ids, "candidate_ids", ir.DataType.INT64, ("batch", top_k))
    graph.output(values, "candidate_values", ir.DataType.FLOAT, ("batch", top_k))
    graph.output(total, "logit_total", ir.DataType.FLOAT, ("batch",))
