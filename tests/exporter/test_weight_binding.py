"""Which weights engines take as inputs and which they hold, and that graphs, manifest and data file agree on it."""

import json
import re
from pathlib import Path

import onnx
import pytest

from ernie_export.common.manifest import GRAPHS, Manifest
from ernie_export.common.manifest_sections import WeightBinding
from ernie_export.common.safetensors_header import read_header
from ernie_export.exporter.export import export
from ernie_export.exporter.targets.engines import CONSTANTS_FILE
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.targets.trt_rtx import RtxBuildOptions, TensorRTForRtx
from ernie_export.exporter.verify.weights import compare_weights
from tests.manifests import engine_info
from tests.paths import MINI
from tests.progress import QUIET

# By the checkpoint's own names.
NORM = re.compile(r"norm\d?\.(weight|bias)$|\.ln\.(weight|bias)$|_linear\.3\.(weight|bias)$")
ROUTER = re.compile(r"\.mlp\.gate\.weight(_1)?$|\.moe_statics\.")
BOUND = re.compile(r"\.experts\.(text|vision)\.|embed_tokens|lm_head")


def is_constant(name: str, bakes_projections: bool) -> bool:
    """What the documentation says of a tensor that is not quantized."""
    if BOUND.search(name):
        return False
    return bakes_projections or bool(NORM.search(name) or ROUTER.search(name) or name.endswith(".bias"))


@pytest.mark.parametrize(("bundle", "bakes"), [("made", False), ("baked", True)])
def test_constants_are_small_or_asked_for(request, bundle, bakes):
    folder, manifest, _ = request.getfixturevalue(bundle)
    binding = engine_info(manifest).weights
    names = read_header(folder / DATA_FILE).keys()
    assert binding.bakes_projections == bakes == engine_info(Manifest.read(folder)).weights.bakes_projections
    assert set(binding.constants) == {name for name in names if is_constant(name, bakes)}
    for graph in GRAPHS:
        model = onnx.load(folder / f"{graph}.onnx", load_external_data=False)
        inputs = {value.name for value in model.graph.input} & names
        held = {tensor.name for tensor in model.graph.initializer} & names
        assert held and held <= set(binding.constants)
        assert not inputs & set(binding.constants) and bool(inputs) == (not bakes or graph in ("decoder", "decode"))


def test_quantized_weights_are_inputs_whatever_was_asked_for(make):
    """Calibration rounds them after engines are built where one command does both, and a plugin reads them anyway."""
    folder, manifest, _ = make("int4", "sm90", bakes_projections=True)
    entries = read_header(folder / DATA_FILE)
    constants = set(engine_info(manifest).weights.constants)
    quantized = {name for name, entry in entries.items() if entry.dtype == "U8"}
    assert len(quantized) > 20 and not constants & {*quantized, *(f"{name}_scales" for name in quantized)}
    assert constants == {name for name in entries if name not in quantized and not name.endswith("_scales")
                         and is_constant(name, True)}  # fmt: skip


def test_gate_and_up_are_one_matrix(made):
    """Of dense layers and of shared experts alike: the rows of gate, then those of up."""
    names = read_header(made[0] / DATA_FILE).keys()
    layers = ["", *["shared_experts."] * 5]
    assert {f"model.layers.{number}.mlp.{part}gate_up_proj.weight" for number, part in enumerate(layers)} <= names
    assert not any(name.endswith((".gate_proj.weight", ".up_proj.weight")) for name in names)


@pytest.mark.parametrize("bundle", ["made", "baked"])
def test_constants_are_the_checkpoints_in_graphs_and_file(request, bundle, tmp_path):
    """A graph reads its constants where the data file has them; one that reads another place is found."""
    folder, manifest, _ = request.getfixturevalue(bundle)
    report = compare_weights(folder, manifest, MINI)
    assert not report.faults and report.exact == len(read_header(folder / DATA_FILE))
    for name in (DATA_FILE, *(f"{graph}.onnx" for graph in GRAPHS)):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    model = onnx.load(tmp_path / "decode.onnx", load_external_data=False)
    (norm,) = (tensor for tensor in model.graph.initializer if tensor.name == "model.norm.weight")
    (offset,) = (entry for entry in norm.external_data if entry.key == "offset")
    offset.value = str(int(offset.value) + 2)
    onnx.save(model, tmp_path / "decode.onnx")
    (fault,) = compare_weights(tmp_path, manifest, MINI).faults
    assert fault.tensor == "model.norm.weight" and "decode.onnx" in fault.reason


@pytest.mark.parametrize("bakes", [False, True])
def test_engines_are_built_from_constants_before_the_data_file_is_written(tmp_path, bakes):
    """Within an export: what the graphs read is there, complete, while each engine is built, and gone in the bundle."""
    found = {}

    def keep(name, request, on_progress):
        onnx_path = Path(request["onnx"])
        assert not (onnx_path.parent / DATA_FILE).exists()
        model = onnx.load(onnx_path)  # reads the constants, too
        found[name] = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        Path(request["engine"]).write_bytes(b"")
        return {"version": "1"}

    options = RtxBuildOptions(bakes_projections=bakes)
    manifest = export(MINI, tmp_path / "bundle", TensorRTForRtx(build_engine=keep), "bf16", QUIET, options)
    assert CONSTANTS_FILE not in manifest.files and not (tmp_path / "bundle" / CONSTANTS_FILE).exists()
    entries = read_header(tmp_path / "bundle" / DATA_FILE)
    content = (tmp_path / "bundle" / DATA_FILE).read_bytes()
    constants = set(engine_info(manifest).weights.constants)
    assert constants == {name for arrays in found.values() for name in arrays if name in entries}
    for arrays in found.values():
        for name in arrays.keys() & constants:
            entry = entries[name]
            assert arrays[name].tobytes() == content[entry.offset : entry.offset + entry.nbytes], name


def test_engines_of_bundles_without_a_record_take_every_weight(made, tmp_path):
    """As those did that were written before there was one."""
    document = json.loads((made[0] / "manifest.json").read_text())
    assert document["engines"].pop("weights")
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    assert engine_info(Manifest.read(tmp_path)).weights == WeightBinding()
