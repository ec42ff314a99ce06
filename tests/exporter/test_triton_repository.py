"""`ernie-export --layout triton`: a model repository around a whole bundle. (tests/runtime/triton serves one.)"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ernie_export.common.errors import UserError
from ernie_export.common.manifest import NAME as MANIFEST
from ernie_export.common.manifest import Manifest
from ernie_export.exporter import replace as bundle
from ernie_export.exporter.output_layout import LAYOUTS
from ernie_export.exporter.triton_repository import BUNDLE
from ernie_export.runtime.serving.media_limits import MediaLimits
from ernie_export.runtime.serving.triton_backend import Settings
from tests.paths import MINI


def run(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ernie_export.exporter.cli.export", str(MINI), "-o", str(output), *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layout") / "repository"
    done = run(folder, "--layout", "triton")
    assert done.returncode == 0, done.stderr
    return folder


def test_the_repository_holds_one_model_and_a_whole_bundle(repository):
    manifest = Manifest.read(repository / BUNDLE)
    manifest.check_files(repository / BUNDLE, hash_limit=2**40)
    files = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert files - {(BUNDLE / name).as_posix() for name in (MANIFEST, *manifest.files)} == {
        "ernie/config.pbtxt",
        "ernie/1/model.py",
    }
    assert [path.name for path in repository.parent.iterdir()] == ["repository"]


def test_the_parameters_are_those_that_the_backend_knows(repository):
    text = (repository / "ernie" / "config.pbtxt").read_text()
    words = [line.split('"') for line in text.splitlines() if "string_value" in line]
    settings = Settings.from_parameters({line[1]: line[3] for line in words})
    assert (settings.device, settings.max_requests, settings.media_folder) == ("cpu", 80, None)
    assert settings.media == MediaLimits()


def test_it_replaces_a_repository_and_nothing_else(repository, tmp_path):
    """A bundle is no repository, a repository no bundle, and one with other models is somebody's work."""
    again = shutil.copytree(repository, tmp_path / "again")
    (again / "ernie" / "config.pbtxt").write_text("an old one")
    assert run(again, "--layout", "triton", "--target", "onnx-portable").returncode == 0
    assert json.loads((again / BUNDLE / MANIFEST).read_text())["target"] == "onnx-portable"
    assert "an old one" not in (again / "ernie" / "config.pbtxt").read_text()
    for layout, content in (("bundle", repository), ("triton", repository / BUNDLE), ("triton", MINI)):
        output = shutil.copytree(content, tmp_path / f"{layout}-{content.name}")
        before = sorted(output.rglob("*"))
        done = run(output, "--layout", layout)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"error: {output}: expected a ") and "(left alone)" in done.stderr
        assert sorted(output.rglob("*")) == before


def test_what_an_interrupted_export_left_is_removed_by_the_next(tmp_path):
    (tmp_path / ".out.partial-1" / BUNDLE).mkdir(parents=True)
    with pytest.raises(UserError), bundle.writing_bundle(tmp_path / "out", LAYOUTS["triton"].bundle) as partial:
        assert partial.is_dir() and partial.relative_to(tmp_path).parts[1:] == BUNDLE.parts
        raise UserError("stopped")
    assert list(tmp_path.iterdir()) == []
