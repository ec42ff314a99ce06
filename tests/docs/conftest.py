"""The folder in which the documentation's commands run, and a server in it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import MINI, ROOT
from tools.docs.blocks import Shell

LINKED = (
    "benchmarks",
    "docker",
    "examples",
    "tools",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "ernie_export",
    "README.md",
    "LICENSE",
)


def lay_out(folder: Path) -> None:
    """Lay out what pages name: checkpoints, media, conversations, keys, and what `make demo` finds installed."""
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "checkpoint").symlink_to(MINI)
    (folder / "bundles").mkdir()
    released = folder / "ERNIE-4.5-VL-28B-A3B"
    released.mkdir()
    shutil.copy(ROOT / "tests" / "graphs" / "original_config.json", released / "config.json")
    media = ROOT / "examples" / "media"
    shutil.copy(media / "many.jpg", folder / "a.jpg")
    shutil.copy(media / "few.png", folder / "b.png")
    questions = json.loads((ROOT / "examples" / "questions.json").read_text())
    (folder / "chat.json").write_text(json.dumps([question["messages"] for question in questions]))
    (folder / "keys").write_text("a-key-for-these-tests-alone\n")
    environment = folder / ".venv"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith("."):
            (environment / entry.name).symlink_to(entry)
    for stamp in set(re.findall(r"\$\(VENV\)/(\.[\w-]+)", (ROOT / "Makefile").read_text())):
        (environment / stamp).touch()


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pages expect it, with the small checkpoint exported to `bundle` and `bundles/mini-ernie`."""
    folder = tmp_path_factory.mktemp("docs")
    lay_out(folder)
    for output in ("bundle", "bundles/mini-ernie"):
        Shell(folder, "").run(["ernie-export", str(MINI), "-o", output])
    return folder


@pytest.fixture(scope="session")
def address(layout: Path) -> Iterator[str]:
    """host:port of ernie-serve on `bundles/mini-ernie`."""
    command = [str(Path(sys.executable).parent / "ernie-serve"), "bundles/mini-ernie", "--port", "0"]
    with subprocess.Popen(command, cwd=layout, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().split("http://")[1].strip()
        finally:
            server.terminate()


@pytest.fixture
def shell(layout: Path, address: str, tmp_path: Path) -> Shell:
    """A copy of the layout for one page, its bundles' files linked: an export replaces files and never changes one."""
    folder = tmp_path / "page"
    shutil.copytree(layout, folder, symlinks=True, copy_function=os.link)
    return Shell(folder, address)
