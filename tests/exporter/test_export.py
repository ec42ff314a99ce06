"""ernie-export from the outside: what it writes and prints, and that every refusal is one line and leaves no trace."""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from zero_checkpoint import tiny_checkpoint, write_checkpoint

from ernie_export.common.manifest import Manifest
from ernie_export.exporter.cli import export as cli
from ernie_export.exporter.targets.target import DATA_FILE
from ernie_export.exporter.weights import writer as weights
from ernie_export.graphs.config import ErnieConfig
from ernie_export.graphs.state_dict import expected_tensors
from ernie_export.runtime import load
from tests.paths import MINI
from tests.peak_memory import peak_memory

COMMAND = Path(sys.executable).with_name("ernie-export")
SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
QUESTION = [{"role": "user", "content": "What is red?"}]


def ernie_export(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, arguments)], capture_output=True, text=True, **options)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the mini checkpoint to damage."""
    return shutil.copytree(MINI, tmp_path / "checkpoint")


@pytest.mark.parametrize("target", ["onnx", "onnx-portable"])
def test_the_command_writes_a_bundle_and_a_summary(tmp_path, target):
    output = tmp_path / "deeper" / "bundle"
    process = ernie_export(MINI, "-o", output, "--target", target, env=os.environ | {"COLUMNS": "200"})
    assert (process.returncode, process.stdout) == (0, ""), process.stderr
    manifest = Manifest.read(output)
    manifest.check_files(output, hash_limit=2**40)
    assert (manifest.target, manifest.precision) == (target, "fp32")
    assert {path.name for path in output.iterdir()} == {"manifest.json", *manifest.files}
    assert [path.name for path in output.parent.iterdir()] == ["bundle"]
    for name, entry in manifest.files.items():
        assert f"{name} " in process.stderr and f"{entry.bytes / 2**20:.2f}" in process.stderr
    assert f"{len(manifest.files)} files" in process.stderr
    assert "s, peak memory" in process.stderr and str(output) in process.stderr
    with load(output, threads=1) as model:
        assert model.generate(QUESTION, max_new_tokens=3).prompt_tokens > 5


def test_the_command_object_runs_in_process_and_replaces_a_bundle(tmp_path):
    for target in ("onnx", "onnx-portable"):
        result = CliRunner().invoke(cli.command, [str(MINI), "-o", str(tmp_path / "bundle"), "--target", target])
        assert (result.exit_code, result.stdout) == (0, ""), result.output
        assert "peak memory" in result.stderr
        assert Manifest.read(tmp_path / "bundle").target == target
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "bundle").mkdir()
    assert CliRunner().invoke(cli.command, [str(MINI), "-o", str(tmp_path / "bundle")]).exit_code == 0
    assert Manifest.read(tmp_path / "bundle").target == "onnx"


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change the tensors of the first shard, and keep the index true to them."""
    tensors = load_file(folder / SHARD)
    change(tensors)
    save_file(tensors, folder / SHARD)
    index = json.loads((folder / INDEX).read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != SHARD or name in tensors}
    index["weight_map"] = dict.fromkeys(tensors, SHARD) | kept
    (folder / INDEX).write_text(json.dumps(index))


def edit(folder: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / file).read_text())
    change(document)
    (folder / file).write_text(json.dumps(document))


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def only_pickled(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / INDEX]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04")


NORM = "model.layers.0.input_layernorm.weight"
# What is done to a copy of the checkpoint, and what the one line has to name.
DAMAGE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": (shutil.rmtree, ("checkpoint", "found no")),
    "missing shard": (lambda c: (c / SHARD).unlink(), (SHARD, "no file")),
    "truncated shard": (lambda c: truncate(c / SHARD, 50_000), (SHARD, "50000", "truncated")),
    "truncated header": (lambda c: truncate(c / SHARD, 100), (SHARD, "100")),
    "empty shard": (lambda c: truncate(c / SHARD, 0), (SHARD, "0")),
    "wrong shape": (
        lambda c: rewrite(c, lambda t: t.update({NORM: np.ones(127, np.float32)})),
        (SHARD, NORM, "[128]", "[127]"),
    ),
    "wrong dtype": (lambda c: rewrite(c, lambda t: t.update({NORM: np.ones(128, np.int32)})), (NORM, "F32", "I32")),
    "missing tensor": (lambda c: rewrite(c, lambda t: t.pop(NORM)), (NORM,)),
    "index leaves the folder": (
        lambda c: edit(c, INDEX, lambda d: d["weight_map"].update({NORM: "../other.safetensors"})),
        (INDEX, "../other.safetensors"),
    ),
    "unknown key": (
        lambda c: edit(c, "config.json", lambda d: d["text_config"].update(sliding_window=8)),
        ("config.json", "text_config.sliding_window"),
    ),
    "contradictory key": (
        lambda c: edit(c, "config.json", lambda d: d["text_config"].update(moe_k=9)),
        ("config.json", "text_config.moe_k", "8", "9"),
    ),
    "head size of the target": (
        lambda c: edit(
            c,
            "config.json",
            lambda d: d["text_config"].update(head_dim=36, rope_parameters={"mrope_section": [6, 6, 6]}),
        ),
        ("head_dim", "multiple of 8", "36", "onnx-portable"),
    ),
    "config is not JSON": (lambda c: (c / "config.json").write_text("{"), ("config.json", "JSON")),
    "pickled weights": (only_pickled, ("pytorch_model.bin", "pickled")),
    "no tokenizer": (lambda c: (c / "tokenizer.json").unlink(), ("tokenizer.json",)),
    "no font": (
        lambda c: (c / "Roboto-Regular.ttf").unlink(),
        ("video_preprocessor_config.json", "Roboto-Regular.ttf"),
    ),
    "font outside": (
        lambda c: edit(c, "video_preprocessor_config.json", lambda d: d.update(font="../font.ttf")),
        ("video_preprocessor_config.json", "../font.ttf"),
    ),
}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Run the command's entry point in this process; its one line on stderr, after exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([*map(str, arguments)])
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and printed.err.endswith("\n"), (
        printed.err
    )
    return printed.err


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_checkpoint_is_one_line(checkpoint, tmp_path, capsys, damage):
    spoil, named = DAMAGE[damage]
    spoil(checkpoint)
    line = refusal(capsys, checkpoint, "-o", tmp_path / "bundle")
    assert all(part in line for part in named), line
    assert {path.name for path in tmp_path.iterdir()} <= {"checkpoint"}


def test_what_changes_nothing_is_named_in_the_summary(checkpoint, tmp_path, capsys):
    edit(checkpoint, "config.json", lambda d: d.update(use_cache=False, unsloth_version="2025.1"))
    edit(checkpoint, "preprocessor_config.json", lambda d: d.update(use_fast=True, max_pixels=1))
    rewrite(checkpoint, lambda t: t.update({"model.extra": np.ones(3)}))
    process = ernie_export(checkpoint, "-o", tmp_path / "bundle", env=os.environ | {"COLUMNS": "60"})
    assert process.returncode == 0
    line = next(line for line in process.stderr.splitlines() if line.startswith("ignored:"))
    assert line == (
        f"ignored: config.json (use_cache, unsloth_version); {SHARD} (tensor model.extra); "
        "preprocessor_config.json (use_fast, max_pixels)"
    )


def test_a_shard_cut_while_it_is_read_is_one_line(checkpoint, tmp_path, capsys, monkeypatch):
    """The data file is begun by then; nothing of it stays, and an old bundle is as it was."""
    output = tmp_path / "bundle"
    assert CliRunner().invoke(cli.command, [str(MINI), "-o", str(output)]).exit_code == 0
    before = tree(tmp_path / "bundle")
    original = weights.write

    def cut_then_write(*arguments: Any) -> str:
        truncate(checkpoint / SHARD, (checkpoint / SHARD).stat().st_size // 2)
        return original(*arguments)

    monkeypatch.setattr(weights, "write", cut_then_write)
    assert SHARD in refusal(capsys, checkpoint, "-o", output)
    assert tree(output) == before
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "bundle"}


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_process_itself_exits_with_2_and_one_line(tmp_path):
    process = ernie_export(tmp_path / "nowhere", "-o", tmp_path / "bundle")
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert str(tmp_path / "nowhere") in process.stderr


def test_unknown_values_of_options_are_refused(tmp_path):
    for arguments in (["--target", "coreml"], ["--precision", "fp7"], []):
        process = ernie_export(MINI, *arguments, *(["-o", tmp_path / "bundle"] if arguments else []))
        assert process.returncode == 2 and process.stderr.count("\n") == 1 and "error: " in process.stderr
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["other files", "a file", "a link", "the checkpoint"])
def test_what_is_no_bundle_is_left_alone(checkpoint, tmp_path, capsys, kind):
    output = tmp_path / "output"
    if kind == "other files":
        (output / "thesis").mkdir(parents=True)
        (output / "thesis" / "chapter.tex").write_text("years of work")
    elif kind == "a file":
        output.write_text("notes")
    elif kind == "a link":
        (tmp_path / "elsewhere").mkdir()
        output.symlink_to(tmp_path / "elsewhere")
    else:
        output = checkpoint
    before = tree(tmp_path)
    names = sorted(tmp_path.iterdir())
    assert str(output) in refusal(capsys, checkpoint, "-o", output)
    assert (tree(tmp_path), sorted(tmp_path.iterdir())) == (before, names)


def test_a_parent_that_cannot_hold_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "bundle", tmp_path / "file" / "deeper" / "bundle"):
        line = refusal(capsys, MINI, "-o", output)
        assert str(output) in line and f"({tmp_path / 'file'}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(bytes): a file system of this size, unmounted at the end."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        try:
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True)
        except FileNotFoundError:
            pytest.skip("no mount command: test_a_limit_on_files stands in for a full disk")
        if done.returncode:
            pytest.skip("mounting is not permitted here: test_a_limit_on_files stands in for a full disk")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("space", [2**20, "weights alone"], ids=str)
def test_a_full_disk_leaves_nothing(small_disk, capsys, space):
    """Too small for the weights: refused before they are begun. Full after them: what was written is removed."""
    if space == "weights alone":
        page = 4096
        tensors = expected_tensors(ErnieConfig.from_hf(MINI))
        weights = 4 * sum(int(np.prod(shape)) for shape in tensors.values())
        space = weights + 40 * page  # the header takes some of it
    disk = small_disk(space)
    line = refusal(capsys, MINI, "-o", disk / "bundle")
    assert "free" in line or "No space left" in line
    assert list(disk.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2**20, 200 * 2**10], ids=["weights", "font"])
def test_a_limit_on_files(tmp_path, limit):
    """The system refuses to let a file grow, in the weights or after them; the old bundle stays."""
    output = tmp_path / "bundle"
    checkpoint = MINI
    if limit < 2**20:  # weights small enough to pass; the font is not
        checkpoint = tmp_path / "checkpoint"
        tiny_checkpoint(checkpoint)
    assert ernie_export(checkpoint, "-o", output).returncode == 0
    before = tree(output)
    limits = (resource.RLIMIT_FSIZE, (limit, limit))
    process = ernie_export(checkpoint, "-o", output, preexec_fn=lambda: resource.setrlimit(*limits))
    assert process.returncode == 2 and process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith(f"error: {output.parent}") and "File too large" in process.stderr
    assert tree(output) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"bundle", "checkpoint"}


@pytest.mark.slow
def test_memory_stays_bounded(tmp_path):
    """Of a 300 MB checkpoint an export holds a few blocks: at most 64 MiB more than of the 7 MB of mini-ernie."""
    text = {"hidden_size": 1024, "num_attention_heads": 32, "moe_num_experts": 32, "moe_intermediate_size": [256, 128]}
    size = write_checkpoint(
        tmp_path / "large", text | {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}, {}
    )
    assert size > 300e6
    peaks = []
    for checkpoint in (MINI, tmp_path / "large"):
        process = ernie_export(checkpoint, "-o", tmp_path / "bundle")
        assert process.returncode == 0, process.stderr
        peaks.append(peak_memory(process.stderr))
    assert (tmp_path / "bundle" / DATA_FILE).stat().st_size > size
    assert 20 < peaks[0] and peaks[1] < peaks[0] + 64, f"{peaks} MiB"
    assert peaks[1] < 200
