"""Memory is distinguished by kind, and the export benchmark writes down what it measured."""

import json
import subprocess
import sys

import export_speed
import process_memory
import pytest
from click.testing import CliRunner

from tests.paths import MINI, PROGRAMS


def test_mapped_files_are_not_memory_held(tmp_path):
    (tmp_path / "file").write_bytes(bytes(96 * 2**20))
    program = [sys.executable, str(PROGRAMS / "hold_memory.py"), str(tmp_path / "file")]
    samples = process_memory.watch(subprocess.Popen(program))
    anon, file = process_memory.peak(samples)
    assert 48 < anon / 2**20 < 90
    assert 96 < file / 2**20 < 138
    assert [s.seconds for s in samples] == sorted(s.seconds for s in samples)


def test_a_failing_command_is_no_measurement():
    with pytest.raises(RuntimeError, match="exit 3"):
        process_memory.watch(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))


def test_figures_of_the_mini_checkpoint(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path in MINI.iterdir():
        (checkpoint / path.name).write_bytes(path.read_bytes())
    arguments = [checkpoint, "--rounds", 1, "--output", tmp_path / "out.json", "--plot", tmp_path / "out.png"]
    result = CliRunner().invoke(export_speed.main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0 and "ernie-export" in result.output
    document = json.loads((tmp_path / "out.json").read_text())
    copied = document["runs"]["cp"]
    exported = document["runs"]["ernie-export fp32"]
    assert copied["written_bytes"] == document["checkpoint_bytes"]
    assert exported["written_bytes"] > 1.9 * document["checkpoint_bytes"]  # bfloat16 to float32
    assert 20 * 2**20 < exported["peak_anonymous_bytes"] < 200 * 2**20
    assert len(exported["trace"]) > 5 and len(exported["seconds"]) == 1
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out.json", "out.png"}
