"""A target that no module of the package knows, all of it in this file, is exported, planned and loaded."""

import json
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ernie_export.common.errors import InvalidValue
from ernie_export.common.manifest import Manifest
from ernie_export.common.manifest_sections import EngineInfo
from ernie_export.exporter.cli import export as export_cli
from ernie_export.exporter.cli import plan as plan_cli
from ernie_export.exporter.export import export
from ernie_export.exporter.progress import Progress
from ernie_export.exporter.targets import TARGETS, find_target, register
from ernie_export.exporter.targets.options import CommandLineOption, TargetOptions, option
from ernie_export.exporter.targets.target import ExportJob, Target
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.cached_attention import function as cached_attention
from ernie_export.graphs.ops.moe_dispatch import function as moe_dispatch
from ernie_export.graphs.ops.mrope import function as mrope
from ernie_export.graphs.ops.quantized_linear import function as quantized_linear
from ernie_export.graphs.ops.residual_norm import function as residual_norm
from ernie_export.graphs.ops.vision_attention import function as vision_attention
from ernie_export.graphs.precision import Precision, Tolerance
from ernie_export.runtime import load
from tests.paths import MINI

QUESTION = [[{"role": "user", "content": "How many sides has a triangle?"}]]
# Attention in standard operators, experts by the fused one: a mixture that no other target has.
TOY_BODIES = OpBodies(
    "toy",
    (
        cached_attention.portable,
        moe_dispatch.onnxruntime,
        mrope.standard,
        quantized_linear.portable,
        residual_norm.standard,
        vision_attention.portable,
    ),
)


@dataclass(frozen=True)
class ToyOptions(TargetOptions):
    """The options of the toy target."""

    copies: int = option(1, CommandLineOption("--toy-copies", "copies of the note.", click.IntRange(1)))


@dataclass(frozen=True, kw_only=True)
class ToyTarget(Target):
    """A target that writes a note beside its graphs."""

    name: str = "toy"
    summary: str = "a target for a test."
    precisions: tuple[Precision, ...] = (Precision("toy-int8", "float32", Tolerance(1.0, 1.0), decoder=8),)
    op_bodies: OpBodies = TOY_BODIES
    options_type: type[TargetOptions] = ToyOptions

    def check(self, config: ErnieConfig) -> None:
        if config.text.num_layers > 100:
            raise InvalidValue("num_hidden_layers", "at most 100", config.text.num_layers)

    def write(self, folder: Path, job: ExportJob, engines: EngineInfo | None, progress: Progress) -> EngineInfo | None:
        assert isinstance(job.options, ToyOptions)
        (folder / "note.txt").write_text("a toy\n" * job.options.copies)
        return super().write(folder, job, engines, progress)


@pytest.fixture
def toy():
    """The toy target, registered for one test."""
    register(ToyTarget())
    yield find_target("toy")
    del TARGETS["toy"]


def run(command: click.Command, *arguments: object) -> str:
    result = CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_commands_export_plan_and_load_it(toy, tmp_path):
    bundle = tmp_path / "bundle"
    run(export_cli.command, MINI, "-o", bundle, "--target", "toy", "--toy-copies", 3)
    manifest = Manifest.read(bundle)
    assert (manifest.target, manifest.precision, manifest.devices) == ("toy", "toy-int8", ("cpu",))
    assert manifest.cpu_decode_graph == "decoder"
    assert (bundle / "note.txt").read_text() == "a toy\n" * 3 and "note.txt" in manifest.files
    plan = json.loads(run(plan_cli.command, MINI, "--target", "toy", "--json"))
    assert list(plan["precisions"]) == ["toy-int8"]
    sizes = plan["precisions"]["toy-int8"]
    assert sizes["graph_files"] == sum(path.stat().st_size for path in bundle.glob("*.onnx"))
    assert sizes["data_file"] == (bundle / manifest.data_file).stat().st_size
    with load(bundle, threads=1) as model:
        assert [result.text for result in model.generate(QUESTION)] == ["three"]


def test_the_help_names_it_with_its_options(toy):
    text = run(export_cli.command, "--help")
    assert "toy: a target for a test." in " ".join(text.split())
    assert "--toy-copies" in text and "toy-int8 for toy" in " ".join(text.split())


def test_its_options_are_its_own(toy, tmp_path):
    with pytest.raises(InvalidValue, match="--toy-copies: expected --target toy with it, found --target onnx"):
        run(export_cli.command, MINI, "-o", tmp_path / "bundle", "--toy-copies", 3)
    with pytest.raises(InvalidValue, match="--arch: expected --target trt with it, found --target toy"):
        run(export_cli.command, MINI, "-o", tmp_path / "bundle", "--target", "toy", "--arch", "sm90")
    with pytest.raises(InvalidValue, match="options: expected ToyOptions for target toy, found TargetOptions"):
        export(MINI, tmp_path / "bundle", toy, options=TargetOptions())
    assert list(tmp_path.iterdir()) == []


def test_without_it_nothing_knows_of_it(tmp_path):
    with pytest.raises(InvalidValue, match="--target: expected onnx or onnx-portable or trt or trt-rtx, found toy"):
        export(MINI, tmp_path / "bundle", "toy")
    result = CliRunner().invoke(export_cli.command, ["--help"])
    assert "toy" not in result.output
