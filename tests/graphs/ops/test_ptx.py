"""Kernels as PTX for every architecture, compiled without a GPU; all tactics: python tools/compile_kernels.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.common.errors import UserError
from ernie_export.graphs.ops.ptx import SHARED_LIMIT, TARGETS, CompiledKernel, fits, target, without_scratch
from tests.graphs.ops.ptx_addresses import unbounded_accesses

TOOL = Path(__file__).parents[3] / "tools" / "compile_kernels.py"
ENTRY = """.version 8.7
.target sm_90a
.visible .entry rope(
	.param .u64 .ptr .global .align 16 rope_param_0,
	.param .u32 rope_param_1,
	.param .u64 .ptr .global .align 1 rope_param_2,
	.param .u64 .ptr .global .align 1 rope_param_3
)
.reqntid 128
{
	ld.param.b64 	%rd1, [rope_param_0];
	ret;
}
"""


def compile_kernels(*arguments, cache):
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, env=env)


def test_matrix_kernels_compile_for_every_architecture(tmp_path):
    plugins = "Rope,DispatchGateUp,DispatchDown"
    process = compile_kernels("--plugins", plugins, "--quick", cache=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[-1] == f"{3 * len(TARGETS)} kernels compiled and assembled"
    assert [line.split()[0] for line in lines[:-1:3]] == list(TARGETS)
    assert set(TARGETS) == {"sm80", "sm86", "sm87", "sm89", "sm90", "sm100", "sm110", "sm120"}
    units = {arch: {line.split()[-1] for line in lines if line.startswith(f"{arch} ")} - {"-"} for arch in TARGETS}
    special = {"sm90": {"wgmma"}, "sm100": {"tcgen05.mma"}}
    assert units == {arch: special.get(arch, {"mma.sync"}) for arch in TARGETS}


def test_attention_of_a_decode_step_compiles_for_every_architecture(tmp_path):
    """Within 48 KiB of shared memory: a program has 16 rows, which is the small matrix units' job everywhere."""
    process = compile_kernels("--plugins", "DecodeAttend,DecodeMerge", cache=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[-1] == f"{2 * len(TARGETS)} kernels compiled and assembled"
    assert all(" 0 B spilled" in line and int(line.split()[7]) <= 48 * 1024 for line in lines[:-1])
    assert {line.split()[-1] for line in lines[:-1:2]} == {"mma.sync"}


@pytest.mark.parametrize("weights", ["plain", "int4", "int8", "fp8"])
def test_kernels_for_few_tokens_read_weights_16_bytes_at_a_time(tmp_path, weights):
    """Each program's weights whole, by loads of 16 bytes alone, without a spill, on an architecture of each kind.

    Alone, or in one kernel with what steps of more tokens need in their place.
    """
    prefix = {"plain": "", "fp8": "Float8"}.get(weights, "Quantized")
    first = f"{prefix}FewGateUp", f"{prefix}GateUpOrRoute"
    last = f"{prefix}FewDown", f"{prefix}DownOrCombine"
    kinds = ["sm89" if weights == "fp8" else "sm80", "sm90", "sm120"]
    process = compile_kernels("--weights", weights, "--plugins", ",".join((*first, *last)), "--arch", ",".join(kinds),
                              "--out", str(tmp_path / "ptx"), cache=tmp_path / "cache")  # fmt: skip
    assert process.returncode == 0, process.stderr
    lines = [line for line in process.stdout.splitlines() if " regs " in line]
    assert len(lines) == 4 * len(kinds)
    assert all(" 0 B spilled" in line and int(line.split()[2]) <= 128 for line in lines)
    assert all(int(line.split()[7]) <= 2048 for line in lines), "programs would not fit beside each other"
    bits = {"plain": 16, "int4": 4}.get(weights, 8)
    # By a program: 16 of 3072 rows of one expert; 4 of 2560 rows of one or, quantized, two experts in a turn.
    read = dict.fromkeys(first, 16 * 2560 * bits // 8)
    read |= dict.fromkeys(last, 4 * 1536 * bits // 8 * (1 if weights == "plain" else 2))
    paths = list((tmp_path / "ptx").rglob("*.ptx"))
    assert len(paths) == len(lines)
    for path in paths:
        text = path.read_text()
        loads = [line for line in text.splitlines() if re.search(r"ld\.global\.v4\.b32", line)]
        threads = int(re.findall(r"\.reqntid (\d+)", text)[0])
        name = path.stem.removesuffix(".1")
        assert 16 * threads * len(loads) >= read[name], path
        assert "cp.async" not in text and ("Few" not in name or "ld.global.b32" not in text), path


@pytest.mark.parametrize(
    ("weights", "kinds"),
    [
        ("int4", ["sm80", "sm90", "sm100", "sm120"]),
        ("int8", ["sm90"]),
        ("fp8", ["sm86", "sm89", "sm90", "sm100", "sm120"]),
    ],
)
def test_kernels_of_stored_weights_compile_for_an_architecture_of_each_kind(tmp_path, weights, kinds):
    """GateUp stands for Down, too: the same product. A prompt's leaves half of a Hopper's registers to a second one."""
    prefix = "Float8" if weights == "fp8" else "Quantized"
    plugins = f"{prefix}ExpertsGateUp,{prefix}DispatchGateUp,{prefix}Linear"
    arguments = "--weights", weights, "--plugins", plugins, "--arch", ",".join(kinds), "--quick"
    process = compile_kernels(*arguments, cache=tmp_path)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    lacking = {line.split()[0] for line in lines if "no fp8 kernels" in line}
    assert lacking == ({"sm86"} if weights == "fp8" else set())
    compiled = [line for line in lines if " regs " in line]
    assert len(compiled) == 3 * (len(kinds) - len(lacking))
    for line in compiled:
        arch, name, registers, _, spilled, _, _, shared, _, _, matrix = line.split()
        assert spilled == "0" and int(shared) <= 48 * 1024 and matrix in ("mma.sync", "wgmma", "tcgen05.mma"), line
        if arch == "sm90" and "Dispatch" in name:
            assert int(registers) <= 65536 / 256 / 2, line


def test_every_plugin_compiles(tmp_path):
    """For one architecture, in float16; parameters are checked where the scratch pointers are dropped."""
    arguments = "--quick", "--arch", "sm80", "--dtype", "float16", "--out", str(tmp_path / "ptx")
    process = compile_kernels(*arguments, cache=tmp_path)
    assert process.returncode == 0, process.stderr
    files = sorted((tmp_path / "ptx" / "sm80").iterdir())
    assert len(files) == 16
    for path in files:
        text = path.read_text()
        assert text.count(".visible .entry") == 1
        assert str(Path.cwd()) not in text and not re.search(r"^\s*\.file", text, re.MULTILINE)
    assert " 0 B spilled" in process.stdout and not re.search(r" [1-9]\d* B spilled", process.stdout)


# Those whose addresses no loaded number reaches but within bounds. GateUpOrRoute, ExpertsGateUp, ExpertsDown and their
# likes of Dispatch are not among them: an expert or a place is counted by comparisons and passes through shared memory,
# where this check cannot tell it from the numbers that were compared. What holds for these is what
# test_kernel_bounds.py shows by running them on integers of any value, every access held to its tensors.
BOUNDED = (
    "Rope",
    "ExpertsLogits",
    "DispatchLogits",
    "DispatchSort",
    "DispatchCombine",
    "DecodeAttend",
    "DecodeMerge",
)


@pytest.fixture(scope="module")
def bounded_ptx(tmp_path_factory) -> dict[str, str]:
    """The PTX of kernels in BOUNDED, by architecture and name."""
    folder = tmp_path_factory.mktemp("ptx")
    arguments = ("--plugins", ",".join(BOUNDED), "--quick", "--arch", "sm80,sm90,sm100,sm120", "--out", str(folder))
    process = compile_kernels(*arguments, cache=folder / "cache")
    assert process.returncode == 0, process.stderr
    return {f"{path.parent.name} {path.stem}": path.read_text() for path in folder.glob("sm*/*.ptx")}


def test_no_loaded_number_reaches_an_address_without_bounds(bounded_ptx):
    """What the kernels' source clamps the compiler has kept clamped."""
    assert len(bounded_ptx) == 4 * len(BOUNDED)
    for name, ptx in bounded_ptx.items():
        accesses, unbounded = unbounded_accesses(ptx)
        assert accesses > 3 and not unbounded, (name, unbounded)


@pytest.mark.parametrize("clamp", ["max.s32", "min.s32"])
def test_a_clamp_that_is_missing_is_noticed(bounded_ptx, clamp):
    """An axis of the rotation, which is a part of the positions' address, is copied in place of being clamped."""
    ptx = bounded_ptx["sm90 Rope.1"]
    changed = re.sub(rf"{re.escape(clamp)}(\s+%r\d+, %r\d+), \d+;", r"mov.b32\1;", ptx)
    assert changed != ptx
    _, unbounded = unbounded_accesses(changed)
    assert unbounded and all(access.startswith("ld.global.b64") for access in unbounded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--arch", "sm75"), "sm75: architecture: expected one of sm80"),
        (("--plugins", "Rpoe"), "unknown Rpoe"),
        (("--weights", "int5"), "unknown int5"),
    ],
)
def test_what_is_unknown_is_named(tmp_path, arguments, message):
    process = compile_kernels(*arguments, cache=tmp_path)
    assert process.returncode in (1, 2) and message in process.stderr and "Traceback" not in process.stderr


def test_scratch_pointers_are_dropped():
    kept = without_scratch(ENTRY, ["u64", "u32"])
    assert re.findall(r"rope_param_\d", kept.split(")")[0]) == ["rope_param_0", "rope_param_1"]
    assert kept.startswith(".version 8.7") and "ld.param.b64" in kept


@pytest.mark.parametrize(
    ("ptx", "expected", "message"),
    [
        (ENTRY, ["u64"], "expected ['u64'] and two scratch pointers"),
        (ENTRY, ["u64", "u64"], "expected ['u64', 'u64']"),
        (ENTRY.replace("[rope_param_0]", "[rope_param_2]"), ["u64", "u32"], "uses scratch memory"),
        (".version 8.7", [], "without an entry point"),
    ],
)
def test_unexpected_parameters_are_refused(ptx, expected, message):
    with pytest.raises(RuntimeError) as raised:
        without_scratch(ptx, expected)
    assert message in str(raised.value)


def test_an_architecture_has_so_much_shared_memory():
    kernel = CompiledKernel("ExpertsGateUp", 1, {}, True, "gate_up", "", 128, 147456)
    assert fits(kernel, "sm90") and not fits(kernel, "sm89") and not fits(kernel, "sm110")
    assert set(SHARED_LIMIT) == set(TARGETS.values())


def test_an_unknown_architecture_is_named():
    with pytest.raises(
        UserError, match="expected one of sm80, sm86, sm87, sm89, sm90, sm100, sm110, sm120, found 'sm75'"
    ):
        target("sm75")
    assert target("sm110") == 89, "Triton 3.6 can't write sm_110's PTX"
