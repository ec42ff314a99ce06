"""The graphs that run on CUDA say nothing that the provider's kernels do not hear, and choose as the reference does."""

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnxruntime as ort
import pytest
from make_checkpoint import SHAPES, write_settings

from ernie_export.common.errors import InvalidFile
from ernie_export.exporter.export import export
from ernie_export.exporter.targets.onnx import FUSED_BODIES, FUSED_BODIES_WITHOUT_MINIMUM, ONNX, ONNX_PORTABLE
from ernie_export.exporter.weights import writer
from ernie_export.graphs.build import all_weights, build_graphs
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops.bodies import OpBodies
from ernie_export.graphs.ops.moe_dispatch import function, reference
from ernie_export.graphs.precision import Precision
from ernie_export.runtime.engines.ort_cuda import TOPK_GRAPH
from tests.graphs.cuda_provider import CUDA_READS
from tests.paths import MINI
from tests.progress import QUIET

ON_CUDA = [precision for precision in ONNX.precisions if "cuda" in precision.devices]
BODIES = (FUSED_BODIES, FUSED_BODIES_WITHOUT_MINIMUM)  # the second where a checkpoint's biases allow it


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ErnieConfig:
    folder = tmp_path_factory.mktemp("tiny")
    write_settings(folder, SHAPES["tiny"], 3)
    return ErnieConfig.from_hf(folder)


def nodes(config: ErnieConfig, precision: Precision, bodies: OpBodies, folder: Path) -> dict[str, list[onnx.NodeProto]]:
    """Return the nodes of each graph of a bundle, our operators replaced by what they are made of."""
    graphs = build_graphs(config, precision)
    offsets = writer.plan(all_weights(graphs)).offsets
    found = {}
    for name, graph in graphs.items():
        graph.save(folder / name, bodies, "weights", offsets)
        model = onnx.inliner.inline_local_functions(onnx.load(folder / name, load_external_data=False))
        found[name] = list(model.graph.node)
    return found


def of_all(graphs: dict[str, list[onnx.NodeProto]]) -> list[onnx.NodeProto]:
    return [node for graph in graphs.values() for node in graph]


def unheard(node: onnx.NodeProto) -> list[str]:
    """Return what a node says and its CUDA kernel does not read."""
    known = CUDA_READS.get((node.domain, node.op_type))
    if known is None:
        return [f"{node.op_type}: not in the table"]
    passed_over = dict(known.unread)
    found = [f"{node.op_type}: input {i}" for i, name in enumerate(node.input) if name and i not in known.inputs]
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        harmless = attribute.name in passed_over and passed_over[attribute.name] in (None, value)
        if attribute.name not in known.attributes and not harmless:
            found.append(f"{node.op_type}: attribute {attribute.name}")
    return found


def name_of(value: object) -> str | None:
    return value.name if isinstance(value, Precision | OpBodies) else None


@pytest.mark.parametrize(("far", "bodies"), [(1, BODIES[0]), (0, BODIES[1])], ids=["with effect", "without"])
def test_these_are_the_bodies_that_exports_take(config, far, bodies):
    """Biases that choose experts of no probability make a sum below norm_min; equal ones choose the most probable."""
    bias = np.zeros((2, config.text.num_experts), np.float32)
    bias[:, : config.text.experts_per_token] = far
    checkpoint = SimpleNamespace(require=lambda name, shape: None, read_rows=lambda name, first, count: bias)
    job: Any = SimpleNamespace(checkpoint=checkpoint, config=config, graphs=("decoder", "decode"))
    assert ONNX.bodies(job) == {"decoder": bodies, "decode": bodies}


@pytest.mark.parametrize("bodies", BODIES, ids=name_of)
@pytest.mark.parametrize("precision", ON_CUDA, ids=name_of)
def test_the_provider_reads_every_input_and_attribute(config, precision, bodies, tmp_path):
    found = of_all(nodes(config, precision, bodies, tmp_path))
    assert {"QMoE" if precision.decoder else "MoE", "GroupQueryAttention"} <= {node.op_type for node in found}
    assert sorted({problem for node in found for problem in unheard(node)}) == []


def test_the_provider_reads_all_of_the_topk_graph():
    found = onnx.load(TOPK_GRAPH).graph.node
    assert {"TopK", "Min"} <= {node.op_type for node in found}
    assert [problem for node in found for problem in unheard(node)] == []


@pytest.mark.parametrize("bodies", BODIES, ids=name_of)
def test_an_input_that_the_provider_passes_over_is_found(config, bodies, tmp_path):
    """The form for a CPU weighs by QMoE's input 14, and asks for rows rounded to 8 bits."""
    found = of_all(nodes(config, ONNX.precision("int4"), bodies, tmp_path))
    problems = {problem for node in found for problem in unheard(node)}
    assert {"QMoE: input 14", "QMoE: attribute accuracy_level"} <= problems


@pytest.mark.parametrize(("bodies", "count"), [(FUSED_BODIES, 133), (FUSED_BODIES_WITHOUT_MINIMUM, 121)], ids=name_of)
@pytest.mark.parametrize("precision", ON_CUDA, ids=name_of)
def test_a_decode_step_has_so_many_operators(config, precision, bodies, count, tmp_path):
    """Most are a kernel's launch, which a step of one token waits for: one more is to be on purpose.

    One dense and two sparse layers. Without the minimum a sparse layer has six fewer: GatherElements, ReduceSum, Max,
    Div, CastLike, Mul.
    """
    kinds = Counter(node.op_type for node in nodes(config, precision, bodies, tmp_path)["decode"])
    assert sum(number for kind, number in kinds.items() if kind != "Constant") == count
    needed = 2 if bodies is FUSED_BODIES else 0
    assert [kinds[kind] for kind in ("ReduceSum", "ReduceMax", "Div")] == [needed, 0, needed]


ROUTERS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def given_router(x: np.ndarray, gate: np.ndarray, bias: np.ndarray, dtype: str, k: int) -> np.ndarray:
    """Return what the fused operators are given to choose and weigh by, (T, E), as float32.

    ONNX Runtime has no MoE in bfloat16 for a CPU: the lines before it are run.
    """
    lines = function.CHOICE + function.ROUTER + "    given = Cast <to = 1> (router)\n"
    lines = lines.replace("@k", str(k)).replace("@norm_min", "1e-12").replace(": int", "").replace(": float", "")
    kind = {"float16": "float16", "bfloat16": "bfloat16"}[dtype]
    text = f"""<ir_version: 10, opset_import: ["": 23]>
    routed (float[T, H] wide, float[H, E] gate, float[E] bias) => (float[T, E] given) {{
        zero_1d = Constant <value_ints = [0]> ()
        x = Cast <to = {onnx.TensorProto.DataType.Value(kind.upper())}> (wide)
        {lines}
    }}"""
    session = ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
    (given,) = session.run(["given"], {"wide": x, "gate": gate, "bias": bias})
    return given


@pytest.mark.parametrize("dtype", ROUTERS)
def test_weights_keep_their_precision_through_16_bits(dtype):
    """The error of the weights that the fused operators make is below that of rounding the weights, as PyTorch does."""
    kind = ROUTERS[dtype]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 64)).astype(kind).astype(np.float32)
    gate = (rng.standard_normal((64, 64)) / 8).astype(np.float32)
    bias = rng.normal(0, 0.01, 64).astype(np.float32)
    experts, weights = reference.route(x, gate, bias, 6, 1e-12)
    given = given_router(x, gate, bias, dtype, 6)
    assert np.array_equal(np.sort(np.argsort(-given, axis=1)[:, :6]), np.sort(experts))
    own = np.take_along_axis(given, experts, axis=1)
    found = np.exp(own - own.max(axis=1, keepdims=True))
    found /= found.sum(axis=1, keepdims=True)
    assert error(found, weights) < error(weights.astype(kind).astype(np.float32), weights)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the root of the mean square of the relative errors."""
    return float(np.sqrt(np.mean((found / expected - 1) ** 2)))


@pytest.mark.parametrize("dtype", ROUTERS)
def test_experts_without_any_probability_are_chosen_all_the_same(dtype):
    """A bias may choose experts whose probabilities are 0 in float32: no logarithm of 0, and no NaN."""
    gate = np.zeros((4, 8), np.float32)
    gate[0] = [300, -100, -200, 0, 0, 0, 0, 0]
    bias = np.array([0, 3, 2, 0, 0, 0, 0, 0], np.float32)
    x = np.eye(1, 4, dtype=np.float32)
    given = given_router(x, gate, bias, dtype, 2)
    assert not np.isnan(given).any() and given[0, 1] == 0 and given[0, 2] == -100
    assert (np.delete(given[0], [1, 2]) < -1e4).all()


CUDA_WIDTHS = [
    ("int4-fp16", {"hidden_size": 160}, "hidden_size", 64),
    ("int4-fp16", {"moe_intermediate_size": [96, 64]}, r"moe_intermediate_size\[0\]", 64),
    ("int4-fp16", {"moe_intermediate_size": [128, 96]}, r"moe_intermediate_size\[1\]", 64),
    ("bf16", {"moe_intermediate_size": [128, 68]}, r"moe_intermediate_size\[1\]", 8),
]


@pytest.mark.parametrize(("precision", "changed", "key", "multiple"), CUDA_WIDTHS)
def test_widths_that_the_kernels_refuse_are_refused_by_name(tmp_path, precision, changed, key, multiple):
    """Before anything is written; the checkpoint's tensors are not even looked for."""
    write_settings(tmp_path, SHAPES["tiny"], 3)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["text_config"] |= {"head_dim": 32} | changed
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidFile, match=f"text_config.{key}: expected a multiple of {multiple} for --precision"):
        export(tmp_path, tmp_path / "bundle", "onnx", precision, QUIET)
    assert not (tmp_path / "bundle").exists()


def test_a_model_without_such_widths_exports_in_other_forms(tmp_path):
    """mini-ernie's text experts are 96 wide: the portable target and other precisions take them."""
    shutil.copytree(MINI, tmp_path / "mini")
    for target, precision in ((ONNX, "bf16"), (ONNX_PORTABLE, "int4-fp16")):
        export(tmp_path / "mini", tmp_path / "bundle", target, precision, QUIET)
