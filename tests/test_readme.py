"""The README's commands and Python, run as they stand, in a folder that has the files they name."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import MEDIA, MINI, ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
ENDLESS = ("ernie-serve", "ernie-chat")  # until somebody ends them: their own tests hold them, here they are asked
LINES = [
    line.removeprefix("$ ").split("  #")[0].strip()
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith(("ernie-", "printf ")) and not line.startswith(ENDLESS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README calls path/to/checkpoint, a.jpg, b.png and chat.json; its examples/; an exported bundle."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "bundles").mkdir()
    (folder / "path" / "to" / "checkpoint").symlink_to(MINI)
    (folder / "examples").symlink_to(ROOT / "examples")
    media = MEDIA
    shutil.copy(next(media.glob("*.jpg")), folder / "a.jpg")
    shutil.copy(next(media.glob("*.png")), folder / "b.png")
    questions = json.loads((ROOT / "examples" / "questions.json").read_text())
    (folder / "chat.json").write_text(json.dumps([question["messages"] for question in questions]))
    for output in ("bundle", "bundles/mini-ernie"):
        run(f"ernie-export examples/mini-ernie -o {output}", folder)
    return folder


def run(command: str, folder: Path) -> str:
    """Run a command line in `folder` with this environment's commands; returns its standard output."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def test_there_are_commands_of_each_kind():
    expected = {"ernie-export", "ernie-plan", "ernie-run", "ernie-verify", "printf"}
    assert {line.split()[0] for line in COMMANDS} == expected
    assert {line.split()[0] for line in LINES if line.startswith(ENDLESS)} == set(ENDLESS)
    assert len(PYTHON) == 2 and "@@" not in README


@pytest.mark.parametrize("command", COMMANDS)
def test_command(command, folder):
    output = run(command, folder)
    if command.startswith("ernie-verify"):
        assert "within the limits" in output
    elif command.startswith("printf"):
        assert output.strip() == "bottom left"
    elif command.startswith("ernie-run"):
        assert output.strip()
        if "--json" in command:
            keys = {"text", "tokens", "prompt_tokens", "finish_reason", "reused_tokens"}
            assert set(json.loads(output)[0]) == keys


def test_python(folder):
    done = subprocess.run([sys.executable, "-c", PYTHON[0]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr


def test_openai_client(folder):
    command = [Path(sys.executable).parent / "ernie-serve", "bundles/mini-ernie", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = server.stdout.readline().split("http://")[1].strip()
            code = PYTHON[1].replace("127.0.0.1:8000", address)
            assert code != PYTHON[1]
            done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
        finally:
            server.terminate()
    assert server.returncode == 0
    assert done.stdout.strip() == "blue circle, red triangle, yellow square", done.stderr
