"""The profile has each operator of the measured request once, and what it derives adds up."""

import json
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime
import profile_operators
import pytest
from click.testing import CliRunner
from compare import DECODE, TOGETHER, prefill
from profile_operators import CONTROL_FLOW, GraphProfile, read_profile

from ernie_export.common.manifest import Manifest
from ernie_export.common.safetensors_header import read_header
from ernie_export.runtime.engines.ort_cpu import cpu_options

TOKENS = 3
TEXT, MIXED = "prefill 16 text", "prefill 8 text + 16 image"
DECODES = tuple(f"decode, {n} together" for n in TOGETHER)
# mini-ernie: its sparse layers, and the experts of each that a token chooses.
LAYERS, K = 5, 2


@pytest.fixture(scope="module")
def command(bundle_of, tmp_path_factory):
    """The document and the printed text of a run on mini-ernie in int4."""
    output = tmp_path_factory.mktemp("profile") / "profile.json"
    sizes = ["--text", "16", "--image", "8", "--tokens", str(TOKENS)]
    arguments = [str(bundle_of("onnx", "int4")), *sizes, "--output", str(output)]
    result = CliRunner().invoke(profile_operators.main, arguments)
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text()), result.output


@pytest.fixture(scope="module")
def phases(command):
    return command[0]["phases"]


def event(name: str, start: int, duration: int, operator: str = "", kind: str = "kernel_time") -> dict:
    """An event of a trace as ONNX Runtime writes it, times in microseconds; without an operator that of a run."""
    if not operator:
        return {"cat": "Session", "name": name, "ts": start, "dur": duration, "args": {}}
    return {"cat": "Node", "name": f"{name}_{kind}", "ts": start, "dur": duration, "args": {"op_name": operator}}


TRACE = [
    event("session_initialization", 0, 50),
    event("/warm/MatMul", 110, 20, "MatMul"),
    event("model_run", 100, 100),
    event("/first/Add", 310, 40, "Add"),
    event("SequentialExecutor::Execute", 302, 95),
    event("model_run", 300, 100),
    event("/then/MatMul", 520, 30, "MatMul"),
    event("SequentialExecutor::Execute", 515, 40),
    event("/If", 510, 50, "If"),
    event("/Add", 565, 5, "Add", kind="fence_before"),
    event("/Add", 570, 10, "Add"),
    event("model_run", 500, 100),
]


def test_a_branch_counts_once_and_earlier_runs_do_not():
    assert read_profile(TRACE, 1) == GraphProfile([1e-4], {"MatMul": [3e-5], "Add": [1e-5]})
    assert read_profile(TRACE, 2) == GraphProfile([1e-4, 1e-4], {"Add": [4e-5, 1e-5], "MatMul": [3e-5]})
    assert read_profile(TRACE, 3).nodes == {"MatMul": [2e-5, 3e-5], "Add": [4e-5, 1e-5]}


def test_every_phase_adds_up(phases):
    assert set(phases) == {TEXT, MIXED, *DECODES}
    for phase in phases.values():
        operators, graphs = phase["operators"], phase["graphs"]
        assert "QMoE" in operators and not set(CONTROL_FLOW) & operators.keys()
        inside = sum(one["seconds"] for one in operators.values())
        runs = sum(graph["seconds"] for graph in graphs.values())
        assert 0 < inside <= runs * 1.05 and runs <= phase["seconds"]
        assert phase["outside_operators"] == pytest.approx(phase["seconds"] - inside)
        assert sum(one["share"] for one in operators.values()) == pytest.approx(inside / phase["seconds"])
        launches = sum(graph["runs"] * graph["launches_per_run"] for graph in graphs.values())
        assert launches == sum(one["launches"] for one in operators.values())
        assert list(operators) == sorted(operators, key=lambda name: -operators[name]["seconds"])
        assert phase["seconds_without_profiling"] > 0


def test_only_the_measured_request_counts(phases):
    """Neither what warms up nor the prefills before a decode, which run the same graph in int4."""
    runs = {name: {graph: one["runs"] for graph, one in phase["graphs"].items()} for name, phase in phases.items()}
    assert runs[TEXT] == {"decoder": 1}
    assert runs[MIXED] == {"vision": 1, "resampler": 1, "decoder": 1}
    assert [runs[name] for name in DECODES] == [{"decoder": TOKENS}] * 3
    experts = {name: phase["operators"]["QMoE"]["launches"] for name, phase in phases.items()}
    assert experts == {TEXT: LAYERS, MIXED: 2 * LAYERS} | dict.fromkeys(DECODES, TOKENS * LAYERS)


def nodes_to_launch(path: Path, folder: Path, media: bool) -> tuple[Counter, int]:
    """Operators of a graph as ONNX Runtime optimizes it, one branch of each If in its place; and how many Ifs."""
    options = cpu_options(1)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(path, options)
    nodes = onnx.load(options.optimized_model_filepath, load_external_data=False).graph.node
    branches = [{one.name: one.g.node for one in node.attribute} for node in nodes if node.op_type == "If"]
    chosen = [node for both in branches for node in both["then_branch" if media else "else_branch"]]
    return Counter(node.op_type for node in (*nodes, *chosen) if node.op_type != "If"), len(branches)


@pytest.mark.parametrize("name", [TEXT, MIXED, *DECODES])
def test_launches_are_the_nodes_of_the_optimized_graph(phases, bundle_of, tmp_path, name):
    decoder = bundle_of("onnx", "int4") / "decoder.onnx"
    nodes, branches = nodes_to_launch(decoder, tmp_path, media=name == MIXED)
    assert branches == LAYERS
    assert phases[name]["graphs"]["decoder"]["launches_per_run"] == nodes.total()
    assert phases[name]["operators"]["TopK"]["launches"] == nodes["TopK"] * phases[name]["graphs"]["decoder"]["runs"]


def test_one_token_and_two_have_the_same_launches_a_run(bundle_of, tmp_path):
    """In float32, where the graph `decode` decodes."""
    bundle = bundle_of()
    nodes, _ = nodes_to_launch(bundle / "decode.onnx", tmp_path, media=False)
    for tokens in (1, 2):
        seconds, graphs = profile_operators.profile(bundle, (prefill(8), DECODE | {"tokens": tokens}))
        assert graphs.keys() == {"decode"}
        assert len(graphs["decode"].runs) == tokens and sum(graphs["decode"].runs) < seconds
        launches = {operator: len(several) for operator, several in graphs["decode"].nodes.items()}
        assert launches == {operator: tokens * count for operator, count in nodes.items()}


def test_a_prefill_in_chunks_has_a_run_for_each(bundle_of):
    _, graphs = profile_operators.profile(bundle_of("onnx", "int4"), (prefill(513),))
    assert len(graphs["decoder"].runs) == 2 and len(graphs["decoder"].nodes["QMoE"]) == 2 * LAYERS


def test_the_rate_of_experts_is_of_what_the_model_computes_and_reads(command, phases, bundle_of):
    """The hidden size is 128, widths are 96 for text and 64 for vision tokens, of which the image has 18."""
    ceilings = command[0]["ceilings"]
    assert all(value > 0 for value in ceilings.values())
    bundle = bundle_of("onnx", "int4")
    header = read_header(bundle / Manifest.read(bundle).data_file)
    names = [
        f"model.layers.1.mlp.experts.text.{part}_proj{kind}" for part in ("gate_up", "down") for kind in ("", "_scales")
    ]
    of_layer = sum(header[name].nbytes for name in names)
    amounts = {
        TEXT: 6 * 128 * 96 * 16 * K * LAYERS,
        MIXED: 6 * 128 * (96 * 8 + 64 * 18) * K * LAYERS,
        DECODES[0]: of_layer * K / 8 * LAYERS * TOKENS,
    }
    for name, amount in amounts.items():
        found = phases[name]["experts"]
        assert found["rate"] * phases[name]["operators"]["QMoE"]["seconds"] == pytest.approx(amount / 1e9)
        assert found["unit"] == ("GB/s" if name in DECODES else "GFLOP/s") and found["ceiling"].endswith(found["unit"])
        assert found["share"] == pytest.approx(found["rate"] / ceilings[found["ceiling"]])
    assert [phases[name]["experts"] for name in DECODES[1:]] == [{}, {}]


def test_the_document_says_where_and_of_what_it_is(command):
    document, printed = command
    launches = document["phases"][TEXT]["graphs"]["decoder"]["launches_per_run"]
    assert document["machine"]["cpu"] and document["machine"]["load"] >= 0
    assert document["onnxruntime"] == onnxruntime.__version__
    assert document["bundle"]["precision"] == "int4" and document["bundle"]["moe_intermediate_size"] == [96, 64]
    for text in (TEXT, *DECODES, "outside operators", f"{launches:g} launches a run", *document["ceilings"]):
        assert text in printed
