"""Folders and bundles that others may write to: nothing is followed, waited for, copied or removed that is not ours."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

from ernie_export.common.errors import CannotWrite, InvalidFile
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.exporter import replace
from ernie_export.exporter.build_engines import WORK, work_folder
from ernie_export.exporter.export import export
from ernie_export.exporter.processor_files import refuse_foreign_links
from ernie_export.exporter.replace import writing_bundle
from ernie_export.runtime import load
from tests.paths import MINI, PROGRAMS
from tests.progress import QUIET

NOBODY = 65534


@pytest.fixture
def victim(tmp_path):
    """A bundle elsewhere, which no export may touch."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / MANIFEST).write_text("kept")
    return folder


@pytest.fixture
def shared(tmp_path):
    """A folder that others may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def write(output: Path) -> None:
    with writing_bundle(output) as partial:
        (partial / MANIFEST).write_text("new")


def test_a_link_that_looks_like_a_stale_export_is_left_alone(shared, victim):
    (shared / ".out.partial-1").symlink_to(victim)
    write(shared / "out")
    assert (victim / MANIFEST).read_text() == "kept" and (shared / ".out.partial-1").is_symlink()
    assert (shared / "out" / MANIFEST).read_text() == "new"


def test_names_cannot_be_foretold(shared):
    with writing_bundle(shared / "out") as first, writing_bundle(shared / "out") as second:
        assert first != second and str(os.getpid()) not in first.name.removeprefix(".out.partial-")
        (first / MANIFEST).write_text("a")
        (second / MANIFEST).write_text("b")


def test_a_pipe_is_not_waited_for(shared):
    os.mkfifo(shared / ".out.partial-1")
    program = [sys.executable, PROGRAMS / "write_empty_bundle.py", shared / "out", "new"]
    subprocess.run(program, check=True, timeout=60)
    assert stat.S_ISFIFO((shared / ".out.partial-1").lstat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give folders away")
def test_a_folder_of_another_user_is_left_alone(shared):
    other = shared / ".out.partial-1"
    other.mkdir()
    (other / "file").write_text("theirs")
    os.chown(other, NOBODY, NOBODY)
    write(shared / "out")
    assert (other / "file").read_text() == "theirs"


def test_a_stale_folder_of_ours_is_removed(shared):
    (shared / ".out.partial-1").mkdir()
    write(shared / "out")
    assert [path.name for path in shared.iterdir()] == ["out"]


def test_the_folder_is_private_until_it_is_complete(shared):
    mask = os.umask(0o027)
    try:
        with writing_bundle(shared / "out") as partial:
            assert stat.S_IMODE(partial.stat().st_mode) == 0o700
            (partial / MANIFEST).write_text("new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((shared / "out").stat().st_mode) == 0o750


def test_a_folder_exchanged_while_it_is_written_is_noticed(shared, victim):
    """Whoever may rename in the parent can put a link there; it is neither moved into place nor cleaned up."""
    with pytest.raises(CannotWrite, match="another user exchanged"), writing_bundle(shared / "out") as partial:
        (partial / MANIFEST).write_text("new")
        partial.rename(shared / "moved")
        partial.symlink_to(victim)
    assert (victim / MANIFEST).read_text() == "kept" and not (shared / "out").exists()


def test_only_a_bundle_is_removed_after_the_exchange(shared, tmp_path, monkeypatch):
    """Somebody may put another folder of the user's under the partial folder's name."""
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "letter").write_text("kept")
    write(shared / "out")
    exchange = replace.exchange

    def exchange_then_swap(one: Path, other: Path) -> bool:
        done = exchange(one, other)
        one.rename(shared / "old")
        documents.rename(one)
        return done

    monkeypatch.setattr(replace, "exchange", exchange_then_swap)
    with writing_bundle(shared / "out") as partial:
        (partial / MANIFEST).write_text("newer")
    assert (partial / "letter").read_text() == "kept" and (shared / "out" / MANIFEST).read_text() == "newer"


def test_a_link_in_place_of_an_interrupted_builds_folder_is_refused(tmp_path):
    """A bundle from somebody else whose `.engines` leads to files of the user's: they would become the bundle's."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "key").write_text("secret")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / WORK).symlink_to(private)
    with pytest.raises(InvalidFile, match=rf"{WORK}: expected nothing, or the folder of an interrupted build"):
        with work_folder(tmp_path / "bundle"):
            pytest.fail("opened")
    assert (private / "key").read_text() == "secret"


def test_a_link_in_an_interrupted_builds_folder_is_refused(tmp_path):
    (tmp_path / "key").write_text("secret")
    work = tmp_path / "bundle" / WORK
    work.mkdir(parents=True)
    (work / "vision.engine").symlink_to(tmp_path / "key")
    with pytest.raises(InvalidFile, match="vision.engine: expected a plain file of an interrupted build"):
        with work_folder(tmp_path / "bundle"):
            pytest.fail("opened")
    assert (tmp_path / "key").read_text() == "secret"


@pytest.mark.parametrize("link", ["chat_template.jinja", "additional_chat_templates"])
def test_a_link_out_of_the_checkpoint_is_not_copied(tmp_path, link):
    checkpoint = shutil.copytree(MINI, tmp_path / "checkpoint")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(checkpoint / "chat_template.jinja", tmp_path / "elsewhere" / "default.jinja")
    target = tmp_path / "elsewhere" / ("default.jinja" if link.endswith(".jinja") else "")
    (checkpoint / link).symlink_to(target)
    with pytest.raises(InvalidFile, match=r"\.jinja: expected a file in the checkpoint, found a link"):
        export(checkpoint, tmp_path / "bundle", progress=QUIET)
    assert not (tmp_path / "bundle").exists()


@pytest.fixture
def in_time():
    """Ends a test that waits for a pipe, or reads a device without end."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


ODD = {"a pipe": os.mkfifo, "a device": lambda path: path.symlink_to("/dev/zero"), "a folder": os.mkdir}


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_of_a_checkpoint_is_neither_waited_for_nor_read(tmp_path, in_time, odd):
    names = {path.name for path in MINI.iterdir() if path.suffix != ".md"} | {"model.safetensors"}
    for number, name in enumerate(sorted(names)):
        checkpoint = shutil.copytree(MINI, tmp_path / f"checkpoint{number}")
        (checkpoint / name).unlink(missing_ok=True)
        ODD[odd](checkpoint / name)
        with pytest.raises(InvalidFile):
            export(checkpoint, tmp_path / "bundle", progress=QUIET)
        assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_file_of_a_bundle_is_neither_waited_for_nor_read(mini_bundle, tmp_path, in_time, odd):
    for number, name in enumerate(sorted(path.name for path in mini_bundle.iterdir())):
        bundle = shutil.copytree(mini_bundle, tmp_path / f"bundle{number}")
        (bundle / name).unlink()
        ODD[odd](bundle / name)
        with pytest.raises(InvalidFile), load(bundle):
            pytest.fail("loaded")


def test_the_links_of_a_hub_cache_are_read(tmp_path):
    blobs = shutil.copytree(MINI, tmp_path / "models--x--mini" / "blobs")
    snapshot = tmp_path / "models--x--mini" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    refuse_foreign_links(snapshot)


def test_weights_that_the_manifest_does_not_list_are_refused_on_demand(mini_bundle, tmp_path):
    bundle = shutil.copytree(mini_bundle, tmp_path / "bundle")
    (bundle / "other.bin").write_bytes(b"weights")
    with load(bundle):
        pass
    with pytest.raises(InvalidFile, match=r"other.bin: expected only files that manifest.json lists"):
        load(bundle, check=True)
