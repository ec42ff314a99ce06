"""ernie-plan's devices, table, and every refusal in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ernie_export.exporter.cli import plan as plan_cli
from ernie_export.exporter.plan.devices import DEVICES, Device, Work, find_device
from ernie_export.exporter.targets import TARGETS
from tests.paths import MINI, PROGRAMS


def planned(*arguments: Any) -> dict[str, Any]:
    result = CliRunner().invoke(plan_cli.command, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_devices(tmp_path, monkeypatch):
    path = tmp_path / "board.json"
    path.write_text(json.dumps({"memory": 8e9, "bandwidth": 50e9, "fp32": 1e11}))
    board = find_device(str(path))
    assert (board.name, board.memory, board.bandwidth, board.fp32, board.bf16) == ("board", 8 * 10**9, 50e9, 1e11, None)
    found = planned(MINI, "--device", path)["precisions"]
    # mini-ernie's step is bound by arithmetic here, and by what it reads where that is unknown.
    step = found["fp32"]["decode"]
    assert step["seconds"] == max(step["flops"] / 1e11, step["bytes"] / 50e9)
    assert found["bf16"]["decode"]["seconds"] == found["bf16"]["decode"]["bytes"] / 50e9
    assert found["fp32"]["prefill"]["seconds"] > 0 and found["bf16"]["prefill"]["seconds"] is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cpu = planned(MINI, "--device", "cpu")
    assert cpu["device"]["memory"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert cpu["precisions"]["fp32"]["fits"] and cpu["precisions"]["fp32"]["decode"]["seconds"] is None
    slow = Device("slow", 1, 10.0, 5.0, None, None, "")
    assert slow.seconds([Work(10, 10, "fp32"), Work(5, 100, "fp32")], False) == 2 + 10
    assert slow.seconds([Work(10, 10, "bf16")], False) is None and slow.seconds([Work(10, 10, "bf16")], True) == 1


@pytest.mark.parametrize("device", [None, "cpu", *DEVICES])
def test_the_table(device):
    arguments = [str(MINI), "--images", "100x100,60x90", *(["--device", device] if device else [])]
    result = CliRunner().invoke(plan_cli.command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines()[6:-2])) <= 80
    for text in ("text experts", "KV cache", "upper bounds", "peak memory 154 MiB", "bundle on disk"):
        assert text in result.stdout
    assert ("longest context" in result.stdout) == (device is not None)
    assert (f"device: {device}," in result.stdout) == (device is not None)


REFUSED: dict[str, tuple[list[str | Path], tuple[str, ...]]] = {
    "no checkpoint": (["nowhere"], ("nowhere", "checkpoint folder")),
    "another file": ([MINI / "tokenizer.json"], ("tokenizer.json", "config.json")),
    "past the positions": ([MINI, "--context", "4097"], ("--context", "4096", "4097")),
    "pictures past the context": ([MINI, "--context", "17", "--images", "112x112"], ("--context", "18", "17")),
    "no context": ([MINI, "--context", "0"], ("--context", "0")),
    "no rows": ([MINI, "--batch", "0"], ("--batch", "0")),
    "no number of rows": ([MINI, "--batch", "two"], ("--batch", "two")),
    "another device to measure": ([MINI, "--measure", "--device", "h100"], ("--device", "cpu", "--measure", "h100")),
    "unknown device": ([MINI, "--device", "tpu"], ("--device", "h200", "tpu")),
    "no device file": ([MINI, "--device", "tpu.json"], ("tpu.json",)),
    "unknown precision": ([MINI, "--precision", "fp32,fp7"], ("--precision", "fp7")),
    "another target's precision": ([MINI, "--precision", "fp8"], ("--precision", "--target onnx", "fp8")),
    "unknown target": ([MINI, "--target", "gpu"], ("--target", "trt-rtx", "gpu")),
    "no precision": ([MINI, "--precision", ""], ("--precision",)),
    "one side": ([MINI, "--images", "100"], ("--images", "100")),
    "an empty picture": ([MINI, "--images", "100x100,"], ("--images", "WIDTHxHEIGHT")),
    "a side of 0": ([MINI, "--images", "0x100"], ("--images", "0x100")),
    "a long picture": ([MINI, "--images", "201x1"], ("--images", "200", "201x1")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_is_one_line(capsys, case):
    arguments, named = REFUSED[case]
    line = refusal(capsys, *arguments)
    assert all(part in line for part in named), line


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{}", "memory"),
        ('{"memory": 1e30}', "memory"),
        ('{"memory": "80 GB"}', "memory"),
        ('{"memory": 1e9, "bandwidth": -1}', "bandwidth"),
        ('{"memory": 1e9, "int3": 1}', "int3"),
        ('{"memory": 1e9, "name": 3}', "name"),
        ("[]", "JSON object"),
    ],
)
def test_a_bad_device_file_is_one_line(tmp_path, capsys, text, named):
    (tmp_path / "board.json").write_text(text)
    line = refusal(capsys, MINI, "--device", tmp_path / "board.json")
    assert "board.json" in line and named in line


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run the entry point in this process; its one line on stderr, after exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        plan_cli.main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err


@pytest.mark.parametrize("module", ["export", "plan"])
def test_help_names_every_target_without_importing_what_builds_graphs(module):
    heavy = ("numpy", "onnx", "onnx_ir", "ml_dtypes", "onnxruntime")
    program = [sys.executable, str(PROGRAMS / "loaded_by_help.py"), f"ernie_export.exporter.cli.{module}", *heavy]
    process = subprocess.run(program, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == "[]"
    assert f"[{'|'.join(TARGETS)}]" in process.stdout
