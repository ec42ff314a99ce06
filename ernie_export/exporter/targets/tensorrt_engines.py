"""Building TensorRT's engines: from the graphs and kernels of a bundle, on the machine with the GPU.

Neither the checkpoint nor Triton is needed.
"""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidFile, InvalidValue, Unavailable
from ernie_export.common.gpu import Gpu
from ernie_export.common.json_fields import one_line, read_json
from ernie_export.common.manifest import GRAPHS
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.common.manifest_sections import EngineInfo, TensorRTInfo
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.engines import (
    REPORT,
    WITHOUT_PLUGINS,
    Attempt,
    BuildEngine,
    Report,
    Request,
    build_first,
    profile_dimensions,
    write_report,
)
from ernie_export.exporter.targets.target import BuildMachine
from ernie_export.exporter.targets.workers.files import write
from ernie_export.exporter.targets.workers.tensorrt_build import TensorRTOptions
from ernie_export.graphs.ops.ptx import TARGETS as ARCHITECTURES

# The first whose parser has every operator of the graphs: Attention since 10.14; TensorScatter, RMSNormalization and
# RotaryEmbedding since 10.15, which began with 10.15.1 (the CHANGELOG of NVIDIA/TensorRT).
MIN_VERSION = (10, 15, 1)
TIMING_CACHE = "timing.cache"
PTX_FOR_ALL = 89  # PTX for a later architecture has features of that one alone; a driver translates this for any
AMPERE_PLUS = "ampere-plus"  # of HARDWARE_COMPATIBILITY: engines for every GPU from Ampere on
SHARED_FOR_ALL = 48 * 1024  # bytes a program: what any GPU gives, and all that AMPERE_PLUS allows
SHARED_LIMIT = 2**20  # bytes: more than any GPU has


@dataclass(frozen=True)
class TensorRTBuild:
    """Builds TensorRT's engines (see `DeferredBuild`).

    Attributes:
        library: Python module of TensorRT.
        detect_gpu: Returns this machine's GPU.
        build_engine: Builds one engine.
    """

    library: str
    detect_gpu: Callable[[], Gpu | None]
    build_engine: BuildEngine

    def check_plugins(self, bundle: Path, engines: EngineInfo) -> None:
        """Raise InvalidValue unless the plugins of `bundle` are those of this installation."""
        from ernie_export.graphs.ops import plugins

        found = tensorrt_info(engines).plugin_version
        if found != plugins.version():
            hint = "export again, or resume with the ernie-export that made it"
            raise InvalidValue(f"--resume {bundle}", f"plugins of version {plugins.version()}", found, hint)

    def check_architectures(self, bundle: Path, engines: EngineInfo) -> None:
        """Raise InvalidFile for an architecture that no kernels are made for."""
        for arch in tensorrt_info(engines).architectures:
            if arch not in ARCHITECTURES:
                key = "engines.tensorrt.architectures"
                raise InvalidFile(bundle / MANIFEST, f"some of {', '.join(ARCHITECTURES)}", one_line(arch), key=key)

    def find_machine(self, engines: EngineInfo) -> BuildMachine:
        """Return TensorRT's version and the GPU. Raises Unavailable for what is missing, or a GPU without kernels."""
        version = installed_version()
        expected = f"expected TensorRT {'.'.join(map(str, MIN_VERSION))} or later"
        if version is None:
            raise Unavailable(f"{expected} (pip install .[export,trt]), found none")
        if version_numbers(version) < MIN_VERSION:
            raise Unavailable(f"{expected}, found {version}")
        gpu = self.detect_gpu()
        if gpu is None:
            raise Unavailable("expected an NVIDIA GPU and its driver, found none")
        info = tensorrt_info(engines)
        if kernels_for(gpu, info.architectures, info.hardware_compatibility) is None:
            found = ",".join(info.architectures)
            raise Unavailable(f"expected kernels for {gpu.name} ({gpu.architecture}), found them for {found} (--arch)")
        return BuildMachine(version, gpu)

    def build(
        self, bundle: Path, into: Path, engines: EngineInfo, machine: BuildMachine, merge: int, progress: Progress
    ) -> EngineInfo:
        """Build NAME.engine from each NAME.onnx, with the timing cache and the report (see `DeferredBuild.build`)."""
        options = build_options(bundle, into, engines, machine)
        reports: dict[str, Report] = {}
        for name in GRAPHS:
            request = {
                "library": self.library,
                "onnx": str(bundle / f"{name}.onnx"),
                "engine": str(into / f"{name}.engine"),
                "dimensions": profile_dimensions(name, engines, merge),
            }
            reports[name] = self.build_or_reuse(name, ways_to_build(name, request, options), machine, progress)
        spare_timing_cache(options).unlink(missing_ok=True)
        for name in GRAPHS:
            report_path(into, name).unlink()
        write_report(into, reports)
        return replace(
            engines,
            version=machine.version,
            compute_capabilities=("{}.{}".format(*machine.gpu.capability),),
            tensorrt=replace(tensorrt_info(engines), device=machine.gpu.name),
        )

    def build_or_reuse(self, name: str, attempts: list[Attempt], machine: BuildMachine, progress: Progress) -> Report:
        """Return the report of an engine, built now or by an earlier build that was interrupted."""
        key = json.loads(json.dumps([[asdict(attempt) for attempt in attempts], machine.version, machine.gpu.name]))
        engine = Path(attempts[0].request["engine"])
        path = report_path(engine.parent, name)
        if path.is_file() and engine.is_file():
            earlier = read_report(path)
            if earlier.get("key") == key and isinstance(earlier.get("report"), dict):
                report: Report = earlier["report"]
                return report
        report = build_first(self.build_engine, name, attempts, progress)
        write(path, json.dumps({"key": key, "report": report}).encode())
        return report

    def input_files(self, engines: EngineInfo) -> list[str]:
        """Return the names of graphs and kernels."""
        return [*(f"{name}.onnx" for name in GRAPHS), *map(kernels_file, tensorrt_info(engines).architectures)]

    def output_files(self) -> list[str]:
        """Return the names of engines, timing cache and report."""
        return [*(f"{name}.engine" for name in GRAPHS), TIMING_CACHE, REPORT]


def build_options(bundle: Path, into: Path, engines: EngineInfo, machine: BuildMachine) -> TensorRTOptions:
    """Return the worker's options."""
    info = tensorrt_info(engines)
    arch = kernels_for(machine.gpu, info.architectures, info.hardware_compatibility)
    assert arch is not None  # find_machine refuses such a GPU
    return TensorRTOptions(
        kernels=str(bundle / kernels_file(arch)),
        shared=SHARED_FOR_ALL if info.hardware_compatibility == AMPERE_PLUS else SHARED_LIMIT,
        hardware_compatibility=info.hardware_compatibility,
        version_compatible=info.version_compatible,
        workspace_gib=info.workspace_gib,
        timing_cache=str(into / TIMING_CACHE),
    )


def ways_to_build(name: str, request: Request, options: TensorRTOptions) -> list[Attempt]:
    """Return the ways to build an engine, the best first.

    The encoder's attention is to be fused, since its scores of a large image fill the memory otherwise. The decoder's
    is masked, over a cache of fixed length, for which there is not always one kernel. Nothing public says that TensorRT
    grants the kernels of plugins more than 48 KiB of shared memory: without, their smaller tactics are left.
    """
    if name in WITHOUT_PLUGINS:
        options_given = request | {"options": asdict(options)}
        return [
            Attempt("", options_given | {"decomposable": False}),
            Attempt("attention of several kernels", options_given | {"decomposable": True}),
        ]
    # Kernels that are not offered may not stand in the timing cache.
    less = replace(options, shared=SHARED_FOR_ALL, timing_cache=str(spare_timing_cache(options)))
    marked = request | {"decomposable": True}
    attempts = [Attempt("", marked | {"options": asdict(options)})]
    if options.shared > SHARED_FOR_ALL:
        attempts.append(Attempt("kernels within 48 KiB of shared memory", marked | {"options": asdict(less)}))
    return attempts


def spare_timing_cache(options: TensorRTOptions) -> Path:
    """Return the timing cache of builds within SHARED_FOR_ALL where the usual ones may take more."""
    return Path(options.timing_cache).with_suffix(".within-48-kib")


def tensorrt_info(engines: EngineInfo) -> TensorRTInfo:
    """Return what only TensorRT's engines have."""
    assert engines.tensorrt is not None  # the target's own bundles have it
    return engines.tensorrt


def kernels_file(arch: str) -> str:
    """Return the name of the file with the kernels for an architecture."""
    return f"kernels-{arch}.json"


def report_path(folder: Path, name: str) -> Path:
    """Return where an engine's report waits for the other engines."""
    return folder / f"{name}.json"


def read_report(path: Path) -> dict[str, Any]:
    """Return what an interrupted build has noted of an engine; nothing where the file is damaged."""
    try:
        return read_json(path)
    except InvalidFile:
        return {}


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the first three numbers of a version of TensorRT."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def installed_version() -> str | None:
    """Return TensorRT's version; None if it is not installed. Raises Unavailable if it is and cannot be loaded.

    It is loaded in another process, since that takes seconds and gigabytes.
    """
    program = "import tensorrt; print(tensorrt.__version__)"
    process = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    if process.returncode == 0:
        return process.stdout.split()[-1]
    lines = process.stderr.strip().splitlines() or [f"exit code {process.returncode}"]
    if lines[-1].startswith("ModuleNotFoundError: No module named 'tensorrt'"):
        return None
    raise Unavailable(f"expected TensorRT, found that it does not load: {lines[-1]}")


def kernels_for(gpu: Gpu, architectures: tuple[str, ...], hardware_compatibility: str) -> str | None:
    """Return which of `architectures` has the kernels for engines on `gpu`; None if none has.

    It is the GPU's own, or else the latest whose kernels a driver translates. Engines for all GPUs from Ampere on take
    Ampere's.
    """
    number = gpu.capability[0] * 10 + gpu.capability[1]
    if hardware_compatibility == AMPERE_PLUS:
        return "sm80" if "sm80" in architectures and number >= 80 else None
    if gpu.architecture in architectures:
        return gpu.architecture
    older = [arch for arch in architectures if ARCHITECTURES[arch] <= min(number, PTX_FOR_ALL)]
    return max(older, key=lambda arch: ARCHITECTURES[arch], default=None)
