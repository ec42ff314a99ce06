"""Where the smallest divisor of routing weights can have no effect, graphs leave it out."""

import shutil

import numpy as np
import onnx
import pytest

from ernie_export.exporter.export import export
from ernie_export.graphs.checkpoint.reader import Checkpoint
from ernie_export.graphs.ops.moe_dispatch.minimum import MARGIN, minimum_has_effect
from tests.paths import MINI
from tests.progress import QUIET


def chosen_sum(probabilities: np.ndarray, bias: np.ndarray, k: int) -> float:
    """Return the sum of the probabilities of the k experts that are chosen."""
    return float(probabilities[np.argsort(-(probabilities + bias), kind="stable")[:k]].sum())


def worst(bias: np.ndarray, k: int) -> np.ndarray:
    """Return probabilities that lie on the experts of low biases, as much as leaves those of high ones chosen."""
    gaps = np.maximum(0, np.sort(bias)[-k] - bias)
    return np.asarray(gaps / gaps.sum()) if gaps.sum() >= 1 else gaps


@pytest.mark.parametrize("seed", range(200))
def test_a_sum_below_the_minimum_is_foreseen(seed):
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(2, 9))
    k = int(rng.integers(1, experts + 1))
    bias = rng.normal(0, rng.choice([0.01, 0.1, 0.3, 1]), experts)
    norm_min = float(rng.choice([1e-12, 0.01, 0.1]))
    sums = [chosen_sum(p, bias, k) for p in rng.dirichlet(np.full(experts, 0.2), 300)]
    hardest = worst(bias, k)
    if np.isclose(hardest.sum(), 1):
        sums.append(chosen_sum(hardest - 1e-15 * np.sign(hardest), bias, k))
        assert sums[-1] < norm_min, "the case that is thought the worst chooses others"
    if min(sums) < norm_min:
        assert minimum_has_effect(bias, k, norm_min)
    if hardest.sum() < 1 - MARGIN - experts * norm_min - norm_min:
        assert not minimum_has_effect(bias, k, norm_min), "a minimum without effect is left out"


def reads_minimum(bundle) -> list[bool]:
    """Return for each of the decoder's graphs whether a function reads the attribute norm_min."""
    found = []
    for name in ("decoder", "decode"):
        model = onnx.load(bundle / f"{name}.onnx", load_external_data=False)
        groups = [function for function in model.functions if function.name.endswith("ExpertGroup")]
        assert groups
        found.append(any(node.output[0] == "least" for function in groups for node in function.node))
    return found


@pytest.mark.parametrize("precision", ["fp32", "int4", "fp16"])
def test_graphs_are_shorter_where_no_layer_needs_it(tmp_path, precision):
    export(MINI, tmp_path / "bundle", precision=precision, progress=QUIET)
    assert reads_minimum(tmp_path / "bundle") == [False, False]


def test_one_group_of_one_layer_with_far_biases_keeps_it(tmp_path):
    """Two biases lift improbable vision experts above all others."""
    checkpoint = tmp_path / "lifted"
    shutil.copytree(MINI, checkpoint)
    name = "model.layers.3.mlp.moe_statics.e_score_correction_bias"
    tensors = Checkpoint.open(checkpoint)
    entry = tensors.tensors[name]
    bias = tensors.read_rows(name, 0, 2)
    bias[1, :2] += 1
    with entry.file.open("r+b") as file:
        file.seek(entry.offset)
        file.write(bias.tobytes())
    export(checkpoint, tmp_path / "bundle", precision="int8", progress=QUIET)
    assert reads_minimum(tmp_path / "bundle") == [True, True]
