"""ernie-verify --weights-only: whatever is wrong with a bundle's weights is found, and named as in the checkpoint."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.cli import verify as cli
from ernie_export.exporter.export import export
from ernie_export.exporter.verify.weights import WeightReport, compare_weights
from tests.paths import MINI
from tests.progress import QUIET
from tools.faults.weights import stored

PRECISIONS = ("fp32", "fp16", "int8", "int4")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles of mini-ernie by precision."""
    folder = tmp_path_factory.mktemp("bundles")
    for precision in PRECISIONS:
        export(MINI, folder / precision, "onnx", precision, QUIET)
    return folder


@pytest.fixture
def copy(bundles, tmp_path):
    """copy(precision): a bundle whose data file may be changed."""

    def copied(precision: str) -> Path:
        shutil.copytree(bundles / precision, tmp_path / precision)
        return tmp_path / precision

    return copied


def compared(bundle: Path) -> WeightReport:
    return compare_weights(bundle, Manifest.read(bundle), MINI)


def quantized(bundle: Path) -> list[str]:
    """Names of the quantized tensors."""
    names = read_header(bundle / "weights.safetensors")
    return [name for name in names if f"{name}_scales" in names]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_was_exported_has_the_weights_of_the_checkpoint(bundles, precision):
    report = compared(bundles / precision)
    names = read_header(bundles / precision / "weights.safetensors")
    assert report.faults == []
    assert report.rounded == len(quantized(bundles / precision))
    assert report.exact + 2 * report.rounded == len(names)
    assert report.nbytes == sum(entry.nbytes for entry in names.values())


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_one_flipped_bit_anywhere_is_found_in_its_tensor(copy, precision):
    """Of every tensor that is stored as it was, at a random place."""
    bundle = copy(precision)
    rng = np.random.default_rng(0)
    names = read_header(bundle / "weights.safetensors")
    for entry in names.values():
        data = np.memmap(entry.file, np.uint8, "r+", entry.offset, entry.nbytes)
        data[int(rng.integers(data.size))] ^= 1 << int(rng.integers(8))
    report = compared(bundle)
    assert sorted(fault.tensor for fault in report.faults) == sorted(names) and report.exact == 0


def experts(bundle: Path) -> str:
    """The name of a tensor of stacked experts' gate and up projections."""
    names = read_header(bundle / "weights.safetensors")
    return next(name for name, entry in names.items() if len(entry.shape) == 3 and "gate_up" in name)


def test_a_text_expert_that_is_scaled_by_one_percent_is_named(copy):
    bundle = copy("fp32")
    values = stored(bundle, experts(bundle))
    values[2] *= np.float32(1.01)
    (fault,) = compared(bundle).faults
    assert ".experts.2.gate_proj.weight" in fault.source and fault.reason.startswith("row 0: ")


def test_exchanged_experts_are_both_named(copy):
    bundle = copy("fp32")
    values = stored(bundle, experts(bundle))
    values[[0, 3]] = values[[3, 0]]
    sources = [fault.source for fault in compared(bundle).faults]
    assert len(sources) == 2 and ".experts.0." in sources[0] and ".experts.3." in sources[1]


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_scale_that_is_one_percent_off_is_found(copy, precision):
    bundle = copy(precision)
    for name in quantized(bundle):
        scales = stored(bundle, f"{name}_scales")
        flat = scales.reshape(-1)
        flat[np.flatnonzero(flat)[-1]] *= scales.dtype.type(1.01)
    report = compared(bundle)
    assert {fault.tensor for fault in report.faults} == set(quantized(bundle))
    assert all("expected an error of at most" in fault.reason for fault in report.faults)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_group_that_is_shifted_by_a_step_is_found(copy, precision):
    bundle = copy(precision)
    for name in quantized(bundle):
        values = stored(bundle, name)
        group = values.reshape(-1)[:16]
        step = 0x11 if precision == "int4" else 1
        group[:] = np.where(group & 15 < 15, group + step, group - step) if precision == "int8" else group ^ 0x11
    assert {fault.tensor for fault in compared(bundle).faults} == set(quantized(bundle))


def test_tensors_that_are_missing_renamed_or_of_another_shape_are_named(copy):
    bundle = copy("fp32")
    path = bundle / "weights.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    names = list(header)
    header[f"{names[0]}x"] = header.pop(names[0])
    square = next(name for name in names[1:] if len(set(header[name]["shape"])) == 2)
    header[square]["shape"].reverse()
    text = json.dumps(header, separators=(",", ":")).encode()
    path.write_bytes(data[:8] + text.ljust(length) + data[8 + length :])
    faults = {fault.tensor: fault.reason for fault in compared(bundle).faults}
    assert "expected no such tensor" in faults[f"{names[0]}x"]
    assert "found no such tensor" in faults[names[0]]
    assert faults[square].startswith("expected F32 [")


def test_a_graph_that_reads_another_place_of_the_file_is_found(copy):
    bundle = copy("fp32")
    model = onnx.load(bundle / "decode.onnx", load_external_data=False)
    outside = [i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    first, second = outside[:2]
    kept = [(entry.key, entry.value) for entry in second.external_data]
    for entry, (_, value) in zip(first.external_data, kept, strict=True):
        entry.value = value
    onnx.save(model, bundle / "decode.onnx")
    (fault,) = compared(bundle).faults
    assert fault.tensor == first.name and "in decode.onnx" in fault.reason


def test_the_command_needs_no_pytorch_and_exits_with_1_on_a_fault(copy):
    bundle = copy("int4")
    arguments = [str(bundle), "--against", str(MINI), "--weights-only"]
    result = CliRunner().invoke(cli.command, arguments)
    assert result.exit_code == 0 and "0 faults" in result.output
    values = stored(bundle, quantized(bundle)[0])
    values[:] = values[::-1].copy()
    result = CliRunner().invoke(cli.command, [*arguments, "--json"])
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert len(report["failures"]) == len(report["weights"]["faults"]) >= 1
