"""TensorRT for RTX: engines built ahead of time, without a GPU, for several compute capabilities at once.

The report that a bundle keeps, engines.json, holds what the parsed network and the build say: the library's inspector
needs a driver.
"""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from ernie_export.common.errors import InvalidValue, Unavailable
from ernie_export.common.manifest import GRAPHS
from ernie_export.common.manifest_sections import EngineInfo
from ernie_export.exporter.processor_files import limit_image_tokens
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.engines import (
    CONSTANTS_FILE,
    WITHOUT_PLUGINS,
    Attempt,
    BuildOptions,
    EngineTarget,
    Report,
    Request,
    bind_weights,
    build_first,
    profile_dimensions,
    resolve_sizes,
    write_report,
    written_constants,
)
from ernie_export.exporter.targets.options import CommandLineOption, TargetOptions, option
from ernie_export.exporter.targets.target import ExportJob
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.cached_attention import function as cached_attention
from ernie_export.graphs.ops.moe_dispatch import function_rtx as moe_dispatch
from ernie_export.graphs.ops.mrope import function_rtx as mrope
from ernie_export.graphs.ops.residual_norm import function as residual_norm
from ernie_export.graphs.ops.vision_attention import function as vision_attention
from ernie_export.graphs.precision import TENSORRT, Precision

RTX_BODIES = OpBodies(
    "rtx",
    (cached_attention.portable, moe_dispatch.rtx, mrope.rtx, residual_norm.standard, vision_attention.portable),
    inlined=True,
)
# Prompt tokens in one call, at most: fewer than TensorRT's, since each length's context has working memory of its own.
PREFILL_CHUNK = 512
# What the library builds for, but for 7.5: Turing has neither bfloat16 nor, in this library, a float32 matrix product.
CAPABILITIES = {"8.0": "SM80", "8.6": "SM86", "8.9": "SM89", "12.0": "SM120", "12.1": "SM121"}
DEFAULT_CAPABILITIES = "8.0,8.6,8.9,12.0"


@dataclass(frozen=True)
class RtxBuildOptions(BuildOptions):
    """What a user asks of these engines. `compute_capabilities`: those of the GPUs, with commas between."""

    compute_capabilities: str = option(
        DEFAULT_CAPABILITIES,
        CommandLineOption("--compute-capability", f"GPUs.  [default: {DEFAULT_CAPABILITIES}]", metavar="LIST"),
    )


@dataclass(frozen=True, kw_only=True)
class TensorRTForRtx(EngineTarget):
    """TensorRT for RTX: engines that the export builds without a GPU."""

    name: str = "trt-rtx"
    summary: str = "TensorRT for RTX, engines built here without a GPU."
    precisions: tuple[Precision, ...] = (TENSORRT["bf16"],)
    op_bodies: OpBodies = RTX_BODIES
    options_type: type[TargetOptions] = RtxBuildOptions
    library: str = "tensorrt_rtx_bindings"

    def plan_engines(self, job: ExportJob) -> EngineInfo:
        """Return what the engines are to be built for. Raises Unavailable without the library, InvalidValue."""
        from ernie_export.graphs.build import all_weights

        if importlib.util.find_spec(self.library) is None:
            extra = f"expected the extra '{self.name}' (pip install .[export,{self.name}])"
            raise Unavailable(f"--target {self.name}: {extra}, found no {self.library}")
        options = job.options
        assert isinstance(options, RtxBuildOptions)  # `export` holds them to options_type
        names = tuple(dict.fromkeys(name.strip() for name in options.compute_capabilities.split(",")))
        for name in names:
            if name not in CAPABILITIES:
                raise InvalidValue("--compute-capability", f"some of {','.join(CAPABILITIES)}", repr(name))
        tokens, image = resolve_sizes(job.config, options, job.image_tokens())
        return EngineInfo(
            library=self.library,
            version="",
            compute_capabilities=names,
            max_batch_size=options.max_batch_size,
            max_seq_len=tokens,
            max_image_tokens=image,
            prefill_chunk=min(PREFILL_CHUNK, tokens),
            top_k=0,
            weights=self.weight_binding(all_weights(job.graphs), options),
        )

    def write(self, folder: Path, job: ExportJob, engines: EngineInfo | None, progress: Progress) -> EngineInfo:
        """Write NAME.engine for each graph, and the report. Raises as `Target.write`."""
        assert engines is not None  # `plan_engines` returns no None
        limit_image_tokens(folder, job.config, engines.max_image_tokens)
        bind_weights(job.graphs, engines)
        with written_constants(folder, job, engines, progress) as offsets:
            self.save_graphs(folder, job, progress, CONSTANTS_FILE, offsets)
            reports = self.build_engines(folder, job, engines, progress)
        write_report(folder, reports)
        return replace(engines, version=reports[GRAPHS[0]]["version"])

    def build_engines(self, folder: Path, job: ExportJob, engines: EngineInfo, progress: Progress) -> dict[str, Report]:
        """Build NAME.engine in place of each NAME.onnx; return the reports by name."""
        reports = {}
        for name in GRAPHS:
            graph = folder / f"{name}.onnx"
            request: Request = {
                "library": self.library,
                "onnx": str(graph),
                "engine": str(folder / f"{name}.engine"),
                "dimensions": profile_dimensions(name, engines, job.config.vision.spatial_merge_size),
                "options": {"capabilities": [CAPABILITIES[number] for number in engines.compute_capabilities]},
            }
            reports[name] = build_first(self.build_engine, name, ways_to_build(name, request), progress)
            graph.unlink()
        return reports


def ways_to_build(name: str, request: Request) -> list[Attempt]:
    """Return the ways to build an engine, the best first: see the same of `tensorrt_engines`."""
    marked = request | {"decomposable": True}
    if name not in WITHOUT_PLUGINS:
        return [Attempt("", marked)]
    return [Attempt("", request | {"decomposable": False}), Attempt("attention of several kernels", marked)]
