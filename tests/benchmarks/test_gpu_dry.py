"""benchmarks/gpu.py without a GPU: every part runs at toy sizes, and one that fails loses only its own rest."""

import json
import sys

import gpu
import gpu_engine
import gpu_model
import pytest
from click.testing import CliRunner

from ernie_export.common.manifest import Manifest
from ernie_export.graphs.config import ErnieConfig


def test_every_part_runs(tmp_path):
    options = ["--device", "cpu", "--small", "--minutes", "10", "--output", str(tmp_path)]
    result = CliRunner().invoke(gpu.main, options, catch_exceptions=False)
    assert result.exit_code == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-dry.json")
    found = json.loads(path.read_text())
    assert found["card"] == "none: a dry run" and found["versions"]["torch"]
    assert {name: part["end"] for name, part in found["parts"].items()} == dict.fromkeys("abc", "done")
    rows = [row for part in found["parts"].values() for row in part["rows"]]
    assert not [row for row in rows if any("error" in key and isinstance(value, str) for key, value in row.items())]
    assert found["parts"]["a"]["rows"][-1]["not run"]
    kernels = {row["what"]: row for row in found["parts"]["b"]["rows"]}
    moe = {
        f"moe{weights}, {experts}"
        for weights in ("", " int4", " fp8")
        for experts in ("text experts", "both expert groups")
    }
    assert set(kernels) == {"ceilings", "rope", *moe}
    for name in {"rope", *moe}:
        assert kernels[name]["error"] < 1e-5 and kernels[name]["of_floor"] > 0
    model = found["parts"]["c"]["rows"]
    right = [row for row in model if row["what"] == "right"]
    assert [row["precision"] for row in right] == ["fp16", "int4-fp16"]
    assert all(row["error"] < 5e-3 and row["tokens_agreed"] == row["tokens"] for row in right)
    steps = [(row["what"], row["by"], row["rows"]) for row in model if "step_seconds" in row]
    by = [("ours", "fp32"), ("ours", "int4-fp16"), ("transformers", "grouped_mm"), ("transformers", "eager")]
    assert steps == [(*who, rows) for who in by for rows in gpu_model.SMALL.rows]
    assert [row["finite"] for row in model if "finite" in row] == [True, True]


@pytest.mark.parametrize(
    ("program", "seconds", "end"),
    [
        ("import time; time.sleep(60)", 3, "out of time"),
        ("raise MemoryError('no room')", 30, "MemoryError: no room"),
        ("import os; os._exit(9)", 30, "exit code 9"),
        ("", 30, "done"),
    ],
)
def test_what_a_part_printed_is_kept_however_it_ends(program, seconds, end):
    printed = "print('{\"a\": 1}\\nwords\\n[2]\\n{\"b\": 3}', flush=True); print('{\"half', end='', flush=True)"
    part = gpu.run([sys.executable, "-c", f"{printed}\n{program}"], seconds)
    assert (part.end, part.rows) == (end, [{"a": 1}, {"b": 3}])
    assert gpu.run(["anything"], 0).end == "out of time"


def test_an_unknown_part_is_refused():
    result = CliRunner().invoke(gpu.main, ["--parts", "ad"])
    assert result.exit_code == 2 and "expected some of abc, found 'ad'" in result.output


def test_the_released_shape_takes_no_disk(tmp_path):
    """Its graphs are written in seconds, and its data file has the size and the header of a real one, but no blocks."""
    config = gpu_engine.configuration(tmp_path, small=False)
    assert isinstance(config, ErnieConfig) and config.text.num_layers == 28
    manifest = gpu_engine.hollow_bundle(tmp_path, config, "bf16")
    assert isinstance(manifest, Manifest)
    data = tmp_path / "weights.safetensors"
    assert 54e9 < manifest.files[data.name].bytes < 60e9 and data.stat().st_blocks * 512 < 2**24
    with data.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["model.embed_tokens.weight"]["shape"] == [103424, 2560]
