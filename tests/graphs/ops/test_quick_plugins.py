"""The plugins' registration, shape functions, formats and launches, by TensorRT 11.4's own Python sources.

What this can't show: that TensorRT's builder accepts the plugins and that a GPU runs their kernels.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.fakes.tensorrt_builder import ON_PATH
from tests.paths import ROOT, tensorrt_api


@pytest.fixture(scope="module")
def found():
    """What quick_plugin_probe.py prints: 80 tokens (480 slots) at ERNIE-4.5-VL-28B-A3B's sizes, for sm89."""
    api = tensorrt_api()
    path = os.pathsep.join(map(str, (api, ROOT / "tools", ROOT, ON_PATH)))
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env |= {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(api / "stubs")}
    program = ROOT / "tests" / "programs" / "quick_plugin_probe.py"
    process = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=env)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


POINTER = "u64"
INT = "u32"
# outputs, their dtypes, grid, kernel parameters: inputs, scalar, outputs
EXPECTED = {
    "Rope": ([[2, 40, 2560], [2, 40, 512]], ["BF16"] * 2, (80, 6, 1), [POINTER] * 5 + [INT] + [POINTER] * 2),
    # a cache of 8256 tokens is read in 32 splits
    "DecodeAttend": ([[80, 32, 20, 128], *[[80, 32, 20]] * 2], ["FLOAT"] * 3, (32, 4, 80), [POINTER] * 7),
    "DecodeMerge": ([[80, 1, 2560]], ["BF16"], (20, 80, 1), [POINTER] * 7),
    "ExpertsLogits": ([[40, 80, 64]], ["FLOAT"], (5, 40, 1), [POINTER] * 2 + [INT, POINTER]),
    "DispatchLogits": ([[16, 80, 64]], ["FLOAT"], (5, 16, 1), [POINTER] * 4 + [INT, POINTER]),
    "DispatchRoute": ([[80, 6]] * 3, ["INT64", "INT32", "FLOAT"], (20, 1, 1), [POINTER] * 4 + [INT] + [POINTER] * 3),
    "DispatchSort": ([[129], [480]], ["INT32"] * 2, (128, 1, 1), [POINTER] * 3 + [INT] + [POINTER] * 2),
    # 480 slots of at most 128 experts, 16 in a tile: (480 + 128 · 15) / 16 = 150 tiles, by 1536 / 32 blocks of rows
    "DispatchGateUp": ([[480, 1536]], ["BF16"], (150 * 48, 1, 1), [POINTER] * 6 + [INT, POINTER]),
    # decode: 64 experts, so (480 + 64 · 15) / 16 = 90 tiles; no offsets and order, but slots
    "ExpertsGateUp": ([[480, 1536]], ["BF16"], (90 * 48, 1, 1), [POINTER] * 4 + [INT, POINTER]),
    # the choice of more than two tokens' experts, four in a program, and their sum
    "GateUpOrRoute": (
        [*[[80, 6]] * 3, [480, 1536]],
        ["INT64", "INT32", "FLOAT", "BF16"],
        (20, 1, 1),
        [POINTER] * 4 + [INT] + [POINTER] * 4,
    ),
    "DownOrCombine": ([[80, 2560]], ["BF16"], (80, 3, 1), [POINTER] * 4 + [INT, POINTER]),
    # one to two tokens' decode steps: no slots, and no launch after Down
    "FewGateUp": ([[80, 6], [480, 1536]], ["INT64", "BF16"], (480, 192, 1), [POINTER] * 4 + [INT] + [POINTER] * 2),
    "FewDown": ([[80, 2560]], ["BF16"], (80, 640, 1), [POINTER] * 3 + [INT, POINTER]),
    "DispatchDown": ([[480, 2560]], ["BF16"], (150 * 40, 1, 1), [POINTER] * 5 + [INT, POINTER]),
    "DispatchCombine": ([[80, 2560]], ["BF16"], (80, 3, 1), [POINTER] * 2),
}
EXPERT_CHAIN = ("GateUpOrRoute", "ExpertsGateUp", "ExpertsDown", "DownOrCombine")
# Quantized weights: scales beside each expert group's quantized values, and the same tiles.
for prefix in ("Quantized", "Float8"):
    EXPECTED |= {
        f"{prefix}DispatchGateUp": ([[480, 1536]], ["BF16"], (150 * 48, 1, 1), [POINTER] * 8 + [INT, POINTER]),
        f"{prefix}ExpertsDown": ([[480, 2560]], ["BF16"], (90 * 40, 1, 1), [POINTER] * 4 + [INT, POINTER]),
        f"{prefix}Linear": ([[80, 2560]], ["BF16"], (160, 5, 1), [POINTER] * 3 + [INT, POINTER]),
    }


@pytest.mark.parametrize("name", EXPECTED)
def test_plugin_is_built(found, name):
    outputs, dtypes, grid, parameters = EXPECTED[name]
    plugin = found[name]
    assert (plugin["outputs"], plugin["dtypes"]) == (outputs, dtypes)
    kernel = plugin["kernels"][0]
    assert kernel["tactic"] == 1
    assert tuple(kernel[f"grid_{axis}"] for axis in "xyz") == grid
    assert kernel["parameters"] == parameters
    assert kernel["scalars"] == [80] * parameters.count(INT)
    assert kernel["block_x"] in (32, 64, 128, 256) and kernel["block_y"] == kernel["block_z"] == 1
    assert kernel["shared_mem"] <= 48 * 1024, "the first tactic must launch without an opt-in to more shared memory"


def test_a_launch_of_one_or_two_tokens_has_the_grid_of_their_kernels(found):
    """12 slots by 3072 / 16 blocks of rows, 2 tokens by 2560 / 4; the launches between are one program each."""
    grids = {name: tuple(found[f"{name} few"]["kernels"][0][f"grid_{axis}"] for axis in "xyz") for name in EXPERT_CHAIN}
    assert list(grids.values()) == [(12, 192, 1), (1, 1, 1), (1, 1, 1), (2, 640, 1)]


def test_every_tactic_has_a_kernel_of_its_own(found):
    few, many = found["DispatchGateUp"]["kernels"]
    assert many["grid_x"] == (480 + 128 * 127) // 128 * (1536 // 128)
    assert (few["block_x"], many["block_x"]) == (128, 256)


def test_formats_are_those_that_the_kernels_were_compiled_for(found):
    """One combination: bfloat16 in all tensors of the graph's dtype; all else is fixed."""
    assert found["DispatchLogits"]["formats"] == ["BF16", "INT64", "FLOAT", "FLOAT", "FLOAT"]
    assert found["DecodeAttend"]["formats"] == ["BF16", "BF16", "BF16", "INT64", "FLOAT", "FLOAT", "FLOAT"]
    assert found["Rope"]["formats"] == ["BF16", "BF16", "INT64", "FLOAT", "INT32", "BF16", "BF16"]


@pytest.mark.parametrize("prefix", ["Quantized", "Float8"])
def test_quantized_weights_are_words(found, prefix):
    """TensorRT takes no unsigned bytes as a plugin's input."""
    assert found[f"{prefix}Linear"]["formats"] == ["BF16", "INT32", "BF16", "BF16"]


def test_rope_writes_fresh_outputs(found):
    assert found["Rope"]["aliases"] == [-1, -1]


def test_a_name_is_registered_once(found):
    assert "'Rope'" in found["twice"]
