"""What a target is: the runtime that a bundle is for, as one object that says everything about it.

To add one, subclass `Target` and register an instance (`ernie_export.exporter.targets.register`). Commands list the
registered targets in their --help, so a target's module imports onnx and onnx_ir within functions only.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ernie_export.common.errors import InvalidValue
from ernie_export.common.gpu import Gpu
from ernie_export.common.manifest_sections import EngineInfo, WeightBinding
from ernie_export.exporter.processor_files import image_token_range
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets.options import TargetOptions
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.precision import Precision

if TYPE_CHECKING:
    from ernie_export.graphs.builder import GraphBuilder
    from ernie_export.graphs.checkpoint.reader import Checkpoint
    from ernie_export.graphs.weight_spec import Weight

DATA_FILE = "weights.safetensors"


@dataclass(frozen=True)
class ExportJob:
    """One export, as a target sees it.

    Attributes:
        config: The model.
        precision: The precision to export in.
        options: The target's own options.
        graphs: The graphs by name. The target may change them: they are its own.
        offsets: Byte offset of each weight in DATA_FILE.
        processors: Folder with the settings of the image processors.
        checkpoint: The checkpoint's tensors.
    """

    config: ErnieConfig
    precision: Precision
    options: TargetOptions
    graphs: "dict[str, GraphBuilder]"
    offsets: Mapping[str, int]
    processors: Path
    checkpoint: "Checkpoint"

    def image_tokens(self) -> tuple[int, int]:
        """Return the decoder tokens of the smallest and of the largest image that the processors let through.

        Raises InvalidFile for settings without usable bounds.
        """
        return image_token_range(self.processors, self.config)


@dataclass(frozen=True)
class BuildMachine:
    """What engines are built with: the version of the library, and the GPU."""

    version: str
    gpu: Gpu


class DeferredBuild(Protocol):
    """Builds engines for a bundle whose export left them out, on the machine with the GPU."""

    def check_plugins(self, bundle: Path, engines: EngineInfo) -> None:
        """Raise InvalidValue unless the plugins of `bundle` are those of this installation."""
        ...

    def check_architectures(self, bundle: Path, engines: EngineInfo) -> None:
        """Raise InvalidFile for a GPU architecture in the manifest of `bundle` that is not known."""
        ...

    def find_machine(self, engines: EngineInfo) -> BuildMachine:
        """Return what this machine builds engines with. Raises Unavailable, saying what is missing."""
        ...

    def build(
        self, bundle: Path, into: Path, engines: EngineInfo, machine: BuildMachine, merge: int, progress: Progress
    ) -> EngineInfo:
        """Build the engines.

        Args:
            bundle: The folder of the graphs.
            into: The folder to write to. What an interrupted build has left there is used if it was asked for alike.
            engines: How to build, as the manifest says.
            machine: What to build with.
            merge: The model's spatial merge size.
            progress: Where to report.

        Returns:
            `engines` with what is known after the build.

        Raises:
            BuildFailed: The library refuses a node, fails or crashes.
            OSError: A file cannot be written.
        """
        ...

    def input_files(self, engines: EngineInfo) -> list[str]:
        """Return the names of the files that engines are built from, of no use once they are."""
        ...

    def output_files(self) -> list[str]:
        """Return the names of the files that `build` may write and a bundle keeps."""
        ...


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of bundle: the runtime it is for, and how its files are made.

    Attributes:
        name: Name on the command line and in the manifest.
        summary: What it is for, in a few words that end with a full stop.
        precisions: What it can be exported in, the default first.
        op_bodies: The function bodies of our operators in its graphs.
        options_type: A dataclass with the options that it alone has.
        compiles_engines: Whether its bundles hold compiled engines in place of graphs.
        deferred_build: What builds its engines after the export; None if nothing does.
    """

    name: str
    summary: str
    precisions: tuple[Precision, ...]
    op_bodies: OpBodies
    options_type: type[TargetOptions] = TargetOptions
    compiles_engines: bool = False
    deferred_build: DeferredBuild | None = None

    def precision(self, name: str | None) -> Precision:
        """Return the precision `name`, or the default. Raises InvalidValue for one that this target lacks."""
        if name is None:
            return self.precisions[0]
        for precision in self.precisions:
            if precision.name == name:
                return precision
        expected = " or ".join(precision.name for precision in self.precisions)
        raise InvalidValue("--precision", f"{expected} for --target {self.name}", name)

    def check_options(self, options: TargetOptions | None) -> TargetOptions:
        """Return the options, or the defaults for None. Raises InvalidValue for those of another target."""
        if options is None:
            return self.options_type()
        if not isinstance(options, self.options_type):
            expected = f"{self.options_type.__name__} for target {self.name}"
            raise InvalidValue("options", expected, type(options).__name__)
        return options

    def devices(self, precision: Precision) -> tuple[str, ...]:
        """Return the devices that run a bundle in `precision`."""
        return precision.devices

    def weight_binding(self, weights: "Iterable[Weight]", options: TargetOptions) -> WeightBinding | None:
        """Return which weights its engines take as inputs; None without engines: all graphs read one file."""
        return None

    def cpu_target(self, config: ErnieConfig) -> "Target":
        """Return the target whose graphs of this model ONNX Runtime runs on a CPU: calibration runs those."""
        return self

    def check(self, config: ErnieConfig) -> None:
        """Raise UserError, naming the key, if the target's operators cannot run the model."""

    def check_precision(self, config: ErnieConfig, precision: Precision) -> None:
        """Raise UserError, naming the key, if the target's operators cannot run the model in `precision`."""

    def bodies(self, job: ExportJob) -> dict[str, OpBodies]:
        """Return the function bodies of our operators in each graph of `job`, by the graph's name."""
        return dict.fromkeys(job.graphs, self.op_bodies)

    def plan_engines(self, job: ExportJob) -> EngineInfo | None:
        """Return how the engines are going to be built; None if there are none.

        Nothing is written. Raises UserError, naming the option that asks for what cannot be.
        """
        return None

    def write(self, folder: Path, job: ExportJob, engines: EngineInfo | None, progress: Progress) -> EngineInfo | None:
        """Write the bundle's graphs, or what is built from them, into `folder`.

        Args:
            folder: Where to write.
            job: The export.
            engines: What `plan_engines` returned.
            progress: Where to report.

        Returns:
            `engines` with what is known after the build.

        Raises:
            BuildFailed: A library refuses a graph, fails or crashes.
            OSError: A file cannot be written.
        """
        self.save_graphs(folder, job, progress, DATA_FILE, job.offsets)
        return engines

    def save_graphs(
        self, folder: Path, job: ExportJob, progress: Progress, data_file: str, offsets: Mapping[str, int]
    ) -> None:
        """Write each graph as NAME.onnx into `folder`, its weights by their byte offsets in `data_file`."""
        progress.begin("Writing graphs")
        bodies = self.bodies(job)
        for name, graph in job.graphs.items():
            graph.save(folder / f"{name}.onnx", bodies[name], data_file, offsets)
