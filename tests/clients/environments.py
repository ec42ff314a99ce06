"""Environments of clients: a virtual environment, or a folder with node_modules, for each file of requirements."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients.clients import Client

UV = "uv==0.13.8"
STAMP = "made-for.txt"  # in an environment: the requirements that it has


def command_of(client: Client, cache: Path) -> list[str]:
    """Return the command that runs a client's script; its environment is made first where it is missing or older.

    Raises subprocess.CalledProcessError where it cannot be made.
    """
    if client.is_python:
        return [str(_python(client, cache)), "-P", str(client.script)]  # -P: its folder has files with packages' names
    return ["node", str(_node(client, cache))]


def _python(client: Client, cache: Path) -> Path:
    folder = cache / client.script.stem
    python = folder / "bin" / "python"
    if _is_made(folder, client.requirements):
        return python
    uv = str(_uv(cache))
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python), "--requirement", str(client.requirements)]
    links = os.environ.get("PIP_FIND_LINKS", "")  # wheels of this machine, which uv does not know of
    subprocess.run(install, check=True, env=os.environ | {"UV_FIND_LINKS": links.replace(" ", ",")})
    shutil.copy(client.requirements, folder / STAMP)
    return python


def _uv(cache: Path) -> Path:
    """Return uv, which takes seconds where pip takes minutes, in an environment of its own."""
    folder = cache / "uv"
    if not (folder / "bin" / "uv").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", UV], check=True)
    return folder / "bin" / "uv"


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
