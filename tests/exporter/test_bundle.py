"""A bundle is whole or it is none: exports killed at any moment, exports side by side, damaged files."""

import ctypes
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.common.manifest import SCHEMA, Manifest
from ernie_export.exporter import replace as bundle
from ernie_export.runtime import load, pipeline
from tests.paths import MINI, PROGRAMS


# Forks exports for every line of input, "TARGET,TARGET,... PRECISION STAGGER STEPS", one every STAGGER seconds; kills
# the last of them once it has reported so many steps (each block written is one, and the moments about each rename and
# removal), or lets all end where STEPS is "-". Answers with exit codes and the steps counted.
class Driver:
    """Exports in processes that can be killed; each is forked from one that has the modules loaded."""

    def __init__(self, output: Path) -> None:
        program = [sys.executable, str(PROGRAMS / "export_when_asked.py"), str(MINI), str(output)]
        self.process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests = self.process.stdin
        self.answers = self.process.stdout
        assert self.answers.readline() == "ready\n"

    def run(
        self, targets: str, stagger: float = 0, kill_at: int | None = None, precision: str = "fp32"
    ) -> tuple[list[int], int]:
        """Exit codes (-9: killed) and steps of the last one."""
        self.requests.write(f"{targets} {precision} {stagger} {'-' if kill_at is None else kill_at}\n")
        self.requests.flush()
        *codes, steps = self.answers.readline().split()
        return [int(code) for code in codes], int(steps)

    def close(self) -> None:
        self.requests.close()
        assert self.process.wait() == 0
        self.answers.close()


@pytest.fixture
def driver(tmp_path):
    """Exports of mini-ernie to tmp_path/out/bundle."""
    (tmp_path / "out").mkdir()
    started = Driver(tmp_path / "out" / "bundle")
    yield started
    started.close()


def whole(folder: Path) -> Manifest:
    """The manifest of a folder whose every file is as the manifest says, and that holds nothing else."""
    manifest = Manifest.read(folder)
    manifest.check_files(folder, hash_limit=2**40)
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *manifest.files}
    return manifest


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_killed_at_any_moment(driver, tmp_path, record_property, kills, precision):
    """What stands under the output's name is whole, the old bundle or the new; so is whatever has a manifest."""
    output = tmp_path / "out" / "bundle"
    codes, steps = driver.run("onnx-portable", precision=precision)
    assert codes == [0] and whole(output).target == "onnx-portable"
    codes, steps = driver.run("onnx", precision=precision)  # replaces: two steps more
    drawn = random.Random(precision)
    # About exchanging the bundles and removing the old one, then anywhere.
    moments = [steps, steps - 1, steps - 2, steps - 3] + [drawn.randint(1, steps) for _ in range(kills - 4)]
    found = {"old": 0, "new": 0, "none": 0}
    left = 0
    for number, moment in enumerate(moments):
        if number % 3 == 2:  # with nothing there before
            shutil.rmtree(output, ignore_errors=True)
        elif not output.exists():
            assert driver.run("onnx-portable", precision=precision)[0] == [0]
        old = whole(output).target if output.exists() else None
        new = "onnx" if old == "onnx-portable" else "onnx-portable"
        codes, _ = driver.run(new, kill_at=moment, precision=precision)
        assert codes == [-9] or moment == steps or old is None
        if output.exists():
            target = load_target(output)
            assert target in (old, new)
            found["old" if target == old else "new"] += 1
        else:
            assert old is None, "the old bundle is gone"
            found["none"] += 1
        for partial in set(output.parent.iterdir()) - {output}:
            left += 1
            assert partial.name.startswith(".bundle.partial-")
            if (partial / MANIFEST).exists():
                whole(partial)
    record_property("after a kill", f"{precision}, {kills} kills: {found}, partial folders {left}")
    assert found["old"] and found["new"] and found["none"] and left, found
    assert driver.run("onnx", precision=precision)[0] == [0]
    assert (whole(output).target, whole(output).precision) == ("onnx", precision)
    assert [path.name for path in output.parent.iterdir()] == ["bundle"], "partial folders outlive the next export"


# Replaces a bundle once for each line that putting it in its place takes, ended before that line; prints what stands
# under the name each time.
def test_there_is_a_bundle_under_the_name_at_every_line(tmp_path):
    program = [sys.executable, str(PROGRAMS / "kill_at_every_line.py"), str(tmp_path / "bundle")]
    ended = subprocess.run(program, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    stood = ended.stdout.split()
    assert stood == sorted(stood, reverse=True) and set(stood) == {"old", "new"}, stood


def load_target(folder: Path) -> str:
    whole(folder)
    with load(folder, threads=1) as model:
        return model.manifest.target


@pytest.mark.parametrize("apart", [0, 1 / 6], ids=["at once", "one after the other"])
def test_exports_side_by_side(driver, tmp_path, apart):
    """Beside nothing or a bundle, some beginning while others end: all succeed as if alone, and one stays."""
    output = tmp_path / "out" / "bundle"
    for _ in range(2):
        start = time.monotonic()
        assert driver.run("onnx")[0] == [0]
        seconds = time.monotonic() - start
        shutil.rmtree(output)
        codes, _ = driver.run(",".join(["onnx", "onnx-portable"] * 6), apart * seconds)
        assert codes == [0] * 12
        whole(output)
        assert [path.name for path in output.parent.iterdir()] == ["bundle"]


def test_an_export_that_is_running_is_not_stale(tmp_path):
    """Its folder stays while another of the same name begins and ends."""
    output = tmp_path / "bundle"
    with bundle.writing_bundle(output) as partial:
        (partial / "file").write_text("begun")
        # The other export is another process; this one's own name is taken from its process id.
        subprocess.run([sys.executable, PROGRAMS / "write_empty_bundle.py", output, "other"], check=True)
        assert (output / MANIFEST).read_text() == "other"
        assert (partial / "file").read_text() == "begun"
        (partial / MANIFEST).write_text("this")
    assert (output / MANIFEST).read_text() == "this" and not partial.exists()


def test_names_that_look_like_patterns(tmp_path):
    """`[ab]` and `*` in an output's name are letters; a neighbour's partial folder is not touched."""
    for name in (".a.partial-1", ".[ab].partial-7", ".**.partial-9"):
        (tmp_path / name).mkdir()
    for name in ("[ab]", "**"):
        with bundle.writing_bundle(tmp_path / name) as partial:
            (partial / MANIFEST).write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["**", ".a.partial-1", "[ab]"]


def test_where_names_cannot_be_exchanged(tmp_path, monkeypatch):
    """A file system without RENAME_EXCHANGE: the old bundle is moved aside, and back if the new one can't be placed."""

    class NoExchange:
        def renameat2(self, *arguments: Any) -> int:
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *a, **k: NoExchange())
    monkeypatch.setattr(ctypes, "get_errno", lambda: errno.EINVAL)
    output = tmp_path / "bundle"
    for text in ("old", "new"):
        with bundle.writing_bundle(output) as partial:
            (partial / MANIFEST).write_text(text)
        assert (output / MANIFEST).read_text() == text
    renames = []
    rename = Path.rename

    def refuse_third(path: Path, target: Path) -> Path:
        renames.append(path)
        if len(renames) == 3:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_third)
    with pytest.raises(UserError, match="Input/output error"), bundle.writing_bundle(output) as partial:
        (partial / MANIFEST).write_text("never")
    assert (output / MANIFEST).read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.fixture(scope="module")
def exported(mini_bundle):
    return mini_bundle


@pytest.fixture
def damaged(exported, tmp_path):
    """A copy of a bundle to damage."""
    return shutil.copytree(exported, tmp_path / "bundle")


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


FILES = """Roboto-Regular.ttf chat_template.jinja config.json decode.onnx decoder.onnx generation_config.json
preprocessor_config.json resampler.onnx tokenizer.json tokenizer_config.json video_preprocessor_config.json vision.onnx
weights.safetensors""".split()


def flip(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << place % 8]))


def test_every_file_is_listed(exported):
    assert sorted(Manifest.read(exported).files) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_seen(damaged, name):
    size = (damaged / name).stat().st_size
    for place in (0, random.Random(name).randrange(size), size - 1):
        flip(damaged / name, place)
        message = refusal(damaged)
        assert message.startswith(f"{damaged / name}: expected sha256") and MANIFEST in message
        flip(damaged / name, place)
    load(damaged, threads=1).close()


@pytest.mark.parametrize("name", FILES)
def test_a_missing_cut_or_grown_file_is_seen(damaged, name):
    content = (damaged / name).read_bytes()
    for changed in (content[:-1], content + b"\n", b""):
        (damaged / name).write_bytes(changed)
        message = refusal(damaged)
        assert message.startswith(f"{damaged / name}: expected {len(content)} bytes")
        assert message.endswith(f"found {len(changed)}")
    (damaged / name).unlink()
    assert f"{damaged / name}: expected {len(content)} bytes" in refusal(damaged)
    (damaged / name).mkdir()
    assert "found no file" in refusal(damaged)


def test_large_files_are_hashed_on_demand(damaged, monkeypatch):
    """Past the limit a load compares sizes alone, and `check=True` everything."""
    flip(damaged / "weights.safetensors", 9_000_000)
    monkeypatch.setattr(pipeline, "HASH_LIMIT", 2**20)
    load(damaged, threads=1).close()
    assert "weights.safetensors" in refusal(damaged, check=True)


def test_ernie_run_says_it_in_one_line(damaged):
    flip(damaged / "decode.onnx", 1000)
    command = [Path(sys.executable).with_name("ernie-run"), damaged, "What is red?"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1)
    assert process.stderr.startswith(f"error: {damaged / 'decode.onnx'}: expected sha256")


def test_a_newer_schema_says_so(damaged):
    document = json.loads((damaged / MANIFEST).read_text())
    (damaged / MANIFEST).write_text(json.dumps(document | {"schema": SCHEMA + 1}))
    message = refusal(damaged)
    assert (
        f"{damaged / MANIFEST}: expected schema {SCHEMA}, found schema {SCHEMA + 1}" in message and "newer" in message
    )


def test_a_checkpoint_or_nothing_is_no_bundle(tmp_path):
    assert "expected a bundle" in refusal(MINI)
    assert "expected a bundle" in refusal(tmp_path / "nothing")
    assert "expected a bundle" in refusal(Path(os.devnull))
