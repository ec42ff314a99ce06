"""The kernels of a bundle as its plugins find them, the list of every plugin, and the version of them all."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ernie_export.common.errors import UserError
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.ops import plugins
from ernie_export.graphs.ops.kernels import Kernels
from ernie_export.graphs.ops.ptx import CompiledKernel

TEXT = ErnieConfig.from_hf(Path(__file__).parents[3] / "examples" / "mini-ernie").text
SIZES = plugins.Sizes.of(TEXT, "bfloat16")
CASES = {plugin.name: (plugin, shapes, attributes) for plugin, shapes, attributes in plugins.kernel_specs(SIZES)}


def compiled(name, tactic, shared):
    """A kernel as if it were compiled for `SIZES`."""
    plugin, shapes, attributes = CASES[name]
    constants = plugin.given_constants(shapes, attributes, plugin.tactics[tactic - 1])
    return CompiledKernel(name, tactic, constants, True, "entry", ".version 8.7", 128, shared)


KERNELS = Kernels(
    "bfloat16",
    (
        compiled("ExpertsDown", 1, 30720),
        compiled("ExpertsDown", 3, 60000),
        compiled("ExpertsDown", 5, 20000),
        compiled("Rope", 2, 0),
    ),
)


def test_kernels_are_read_as_written_and_found_by_tactic(tmp_path):
    KERNELS.write(tmp_path / "kernels.json")
    found = Kernels.read(tmp_path / "kernels.json")
    assert found == KERNELS
    assert found.of(*CASES["Rope"]) == {2: KERNELS.compiled[3]}


def test_a_matrix_products_tactic_is_chosen_by_rule_and_not_by_timing():
    """One is offered: for decode steps number 3, or 1 where the other asks for too much shared memory; no other."""
    assert KERNELS.of(*CASES["ExpertsDown"]) == {3: KERNELS.compiled[1]}
    assert KERNELS.within(48 * 1024).of(*CASES["ExpertsDown"]) == {1: KERNELS.compiled[0]}
    assert CASES["ExpertsGateUp"][0].compiled_tactics == (3, 1)
    assert CASES["DispatchGateUp"][0].compiled_tactics == CASES["DispatchDown"][0].compiled_tactics == (6, 2)
    assert CASES["Rope"][0].compiled_tactics == (1, 2)
    quantized = plugins.kernel_specs(replace(SIZES, stored=plugins.Stored("Quantized", 4, 16)))
    offered = {plugin.name: plugin.compiled_tactics for plugin, _, _ in quantized if plugin.offered}
    assert offered == {
        f"Quantized{kind}{part}": tactics
        for kind, tactics in (("Experts", (3, 1)), ("Dispatch", (8,)))
        for part in ("GateUp", "Down")
    }


def test_kernels_for_other_sizes_are_refused():
    plugin, shapes, attributes = CASES["ExpertsDown"]
    other = dict(shapes) | {"text_down": (4, 128, 48)}
    with pytest.raises(ValueError, match="ExpertsDown: expected a kernel for .*'I_TEXT': 48.*, found .*'I_TEXT': 96"):
        KERNELS.of(plugin, other, attributes)
    with pytest.raises(ValueError, match=r"DispatchCombine: expected .*, found kernels for \[\]"):
        KERNELS.of(*CASES["DispatchCombine"])


def test_every_plugin_of_a_model_is_listed():
    names = [plugin.name for plugin in (case[0] for case in CASES.values())]
    assert names == [
        "Rope",
        "ExpertsLogits",
        "GateUpOrRoute",
        "ExpertsGateUp",
        "ExpertsDown",
        "DownOrCombine",
        *(f"Dispatch{name}" for name in ("Logits", "Route", "Sort", "GateUp", "Down", "Combine")),
    ]
    assert [plugin.name for plugin, _, _ in plugins.kernel_specs(replace(SIZES, experts=0))] == ["Rope"]
    few = [plugin.name for plugin, _, _ in plugins.kernel_specs(replace(SIZES, few=True))]
    assert few == ["Rope", "ExpertsLogits", "FewGateUp", "FewDown", *names[6:]]
    # As a plugin gets it: what is left of 1e-12 in the 32 bits of a graph's attribute.
    assert CASES["DispatchRoute"][2]["norm_min"] == float(np.float32(1e-12)) != 1e-12


def test_a_model_that_the_kernels_cannot_serve_is_named():
    with pytest.raises(UserError, match="dtype: expected one of bfloat16, float16, found float32"):
        plugins.Sizes.of(TEXT, "float32")
    with pytest.raises(UserError, match="expert: expected under .* elements, found 1048576 x 4096"):
        plugins.Sizes.of(replace(TEXT, hidden_size=4096, moe_intermediate_size=(2**20, 64)), "bfloat16")
    dense = replace(TEXT, layer_types=("dense",) * TEXT.num_layers, hidden_size=2**30)
    assert plugins.Sizes.of(dense, "bfloat16").experts == 0


@pytest.mark.parametrize(
    "changed",
    [
        "moe_dispatch/kernel_route.py",
        "moe_dispatch/plugin_few.py",
        "mrope/plugin.py",
        "kernel_plugin.py",
        "quick_plugin.py",
    ],
)
def test_a_changed_source_changes_the_version(tmp_path, changed):
    ops = Path(plugins.__file__).parent
    shutil.copytree(ops, tmp_path / "ops")
    before = plugins.version(tmp_path / "ops")
    assert before == plugins.version()
    with (tmp_path / "ops" / changed).open("a") as file:
        file.write("# changed\n")
    (tmp_path / "ops" / "moe_dispatch" / "reference.py").write_text("# no part of a plugin")
    assert plugins.version(tmp_path / "ops") != before
