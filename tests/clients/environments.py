"""Environments of clients: a virtual environment, or a folder with node_modules, for each file of requirements."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients.clients import Client

STAMP = "made-for.txt"  # in an environment: the requirements that it has


def command_of(client: Client, cache: Path) -> list[str]:
    """Return the command that runs a client's script; its environment is made first where it is missing or older.

    Raises subprocess.CalledProcessError where it cannot be made.
    """
    if client.is_python:
        return [str(_python(client, cache)), "-m", f"tests.clients.python.{client.script.stem}"]
    return ["node", str(_node(client, cache))]


def _python(client: Client, cache: Path) -> Path:
    folder = cache / client.script.stem
    python = folder / "bin" / "python"
    if _is_made(folder, client.requirements):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(client.requirements)]
    subprocess.run(install, check=True)
    shutil.copy(client.requirements, folder / STAMP)
    return python


def _node(client: Client, cache: Path) -> Path:
    """Return a copy of the script where it finds node_modules."""
    folder = cache / "node"
    if not _is_made(folder, client.requirements):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(client.requirements, folder)
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=folder, check=True)
        shutil.copy(client.requirements, folder / STAMP)
    for script in client.script.parent.glob("*.mjs"):
        shutil.copy(script, folder)
    shutil.copy(client.script.parent / "lib" / "probe.mjs", folder)
    return folder / client.script.name


def _is_made(folder: Path, requirements: Path) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_bytes() == requirements.read_bytes()
