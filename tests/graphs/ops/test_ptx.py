"""Kernels as PTX for every architecture, compiled without a GPU; all tactics: python tools/compile_kernels.py."""

import re
from pathlib import Path

import pytest

from ernie_export.common.errors import UserError
from ernie_export.graphs.ops.ptx import SHARED_LIMIT, TARGETS, CompiledKernel, assemble, fits, target, without_scratch
from tests.graphs.ops.ptx_addresses import unbounded_accesses
from tests.graphs.ops.ptx_compiled import Compiled, compile_kernels, compile_ptx, parameter_number
from tests.graphs.ops.ptx_pointers import moved_bytes, pointer_accesses

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


@pytest.fixture(scope="module", params=["plain", "int4", "int8", "fp8"])
def few(request, tmp_path_factory) -> Compiled:
    """The kernels for few tokens alone, and in one with what steps of more tokens need in their place."""
    weights = request.param
    prefix = {"plain": "", "fp8": "Float8"}.get(weights, "Quantized")
    plugins = tuple(prefix + name for name in ("FewGateUp", "GateUpOrRoute", "FewDown", "DownOrCombine"))
    kinds = ["sm89" if weights == "fp8" else "sm80", "sm90", "sm120"]
    return compile_ptx(tmp_path_factory.mktemp("few"), weights, plugins, kinds)


def weights_of_program(name: str, weights: str) -> tuple[str, int]:
    """Return the input whose rows a program of a kernel for few tokens reads in one turn, and their bytes.

    16 of the 3072 rows of 2560 values of one expert; 4 of the 2560 rows of 1536 of one or, quantized, two experts.
    """
    bits = {"plain": 16, "int4": 4}.get(weights, 8)
    if "GateUp" in name:
        return "text_gate_up", 16 * 2560 * bits // 8
    return "text_down", 4 * 1536 * bits // 8 * (1 if weights == "plain" else 2)


def test_kernels_for_few_tokens_read_weights_16_bytes_at_a_time(few):
    """Each program's weights whole and once, by loads of 16 bytes alone, without a spill, on each kind of GPU."""
    assert all(" 0 B spilled" in line and int(line.split()[2]) <= 128 for line in few.lines)
    assert all(int(line.split()[7]) <= 2048 for line in few.lines), "programs would not fit beside each other"
    for (arch, name), ptx in few.ptx.items():
        tensor, nbytes = weights_of_program(name, few.weights)
        assert moved_bytes(ptx, parameter_number(name, few.weights, tensor)) == ({16}, nbytes), (arch, name)
        assert "cp.async" not in ptx and ("Few" not in name or "ld.global.b32" not in ptx), (arch, name)


V4 = re.compile(r"ld\.global\.v4\.b32 \{ (%\w+), (%\w+), (%\w+), (%\w+) \}, \[ (%\w+) \+ 0 \]")
OTHER_LOADS = {
    "two of 8 bytes": r"ld.global.v2.b32 { \1, \2 }, [ \5 + 0 ];\nld.global.v2.b32 { \3, \4 }, [ \5 + 8 ]",
    "two of 64 bits": r"ld.global.b64 { %rd9001 }, [ \5 + 0 ];\nld.global.b64 { %rd9002 }, [ \5 + 8 ]",
    "a half": r"ld.global.v2.b32 { \1, \2 }, [ \5 + 0 ]",
    "twice": r"\g<0>;\n\g<0>",
    "to shared memory": r"cp.async.cg.shared.global [ \1 ], [ \5 + 0 ], 0x8",
}


@pytest.mark.parametrize("form", OTHER_LOADS)
def test_one_load_of_weights_in_another_form_is_noticed(few, form):
    """And one of what the weights are multiplied by is not counted with them."""
    for name, ptx in ((name, ptx) for (arch, name), ptx in few.ptx.items() if arch == "sm90"):
        tensor, nbytes = weights_of_program(name, few.weights)
        pointer = parameter_number(name, few.weights, tensor)
        for changed in (pointer, parameter_number(name, few.weights, "x" if "GateUp" in name else "few_act")):
            load = next(access.statement for access in pointer_accesses(ptx) if access.pointer == changed)
            text = ptx.replace(load, V4.sub(OTHER_LOADS[form], load), 1)
            assert (text != ptx) == (".v4.b32" in load)
            assert (moved_bytes(text, pointer) == ({16}, nbytes)) == (changed != pointer), (name, load)


PRODUCTS = ("ExpertsGateUp", "ExpertsDown", "DispatchGateUp", "DispatchDown")


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> Compiled:
    """The products of an expert's matrices and of many tokens for a Hopper in bfloat16, by the preferred tactic."""
    return compile_ptx(tmp_path_factory.mktemp("products"), "plain", PRODUCTS, ["sm90"])


def wrong_copies(name: str, ptx: str) -> list[object]:
    """Return what is wrong with the copies of a product's operands to shared memory.

    A program has three buffers: two steps of the depth are asked for before the loop and one in it, so that each stands
    in the text three times for each expert group. A step is 64 rows of weights by 128 values or 128 by 64, and as many
    values of 16 or of 128 slots, all of 2 bytes.
    """
    kind, left = ("gate_up", "x") if "GateUp" in name else ("down", "act")
    groups, slots, depth = (("text", "vision"), 128, 64) if "Dispatch" in name else (("text",), 16, 128)
    expected = {f"{group}_{kind}": 3 * 64 * 128 * 2 for group in groups} | {left: len(groups) * 3 * slots * depth * 2}
    pointers = {parameter_number(name, "plain", tensor): nbytes for tensor, nbytes in expected.items()}
    found = {pointer: moved_bytes(ptx, pointer) for pointer in pointers}
    accesses = list(pointer_accesses(ptx))
    unseen = len(re.findall(r"cp\.async\.(?!commit_|wait_)", ptx)) - sum(access.is_copy for access in accesses)
    return [
        *(found[pointer] for pointer, nbytes in pointers.items() if found[pointer] != ({16}, nbytes)),
        *(access for access in accesses if access.is_copy != (access.pointer in pointers)),
        *([f"{unseen} copies that are not followed"] if unseen else []),
    ]


def test_products_copy_their_operands_16_bytes_at_a_time_without_a_spill(products):
    assert all(" 0 B spilled" in line for line in products.lines)
    for (_, name), ptx in products.ptx.items():
        assert wrong_copies(name, ptx) == [], name


COPY = r"cp\.async\.cg\.shared\.global (\[[^]]*\]), (\[[^]]*\]), 0x10"
OTHER_COPIES = {
    "of 8 bytes": r"cp.async.ca.shared.global \1, \2, 0x8",
    "by registers": r"ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, \2",
    "of a block": r"cp.async.bulk.shared::cluster.global \1, \2, 16",
    "none": "mov.b32 %r1",
}


@pytest.mark.parametrize("form", OTHER_COPIES)
def test_one_copy_in_another_form_is_noticed(products, form):
    for (_, name), ptx in products.ptx.items():
        places = list(re.finditer(COPY, ptx))
        for place in (places[0], places[-1]):
            changed = ptx[: place.start()] + place.expand(OTHER_COPIES[form]) + ptx[place.end() :]
            assert wrong_copies(name, changed), (name, place[0])


def test_a_spill_is_noticed(products):
    """The same kernel with half the registers that it uses."""
    squeezed = products.ptx["sm90", "ExpertsGateUp"].replace("\n.reqntid", "\n.maxnreg 40\n.reqntid", 1)
    kernel = CompiledKernel("ExpertsGateUp", 3, {}, True, "gate_up", squeezed, 128, 0)
    assert assemble(kernel, "sm90")["spilled"] > 0


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
