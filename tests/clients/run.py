"""Run the script of a client in its environment."""

import os
import subprocess
import tempfile
from pathlib import Path

from tests.clients.clients import Client
from tests.clients.environments import command_of
from tests.clients.results import Report
from tests.paths import ROOT

SECONDS = 600  # for a script


def run(client: Client, cache: Path, variables: dict[str, str], seconds: float = SECONDS) -> Report:
    """Run a client's script in its environment, which is made where it is missing."""
    with tempfile.TemporaryDirectory(prefix="clients-") as name:
        work = Path(name)
        results = work / "results.jsonl"
        (work / "home").mkdir()
        try:
            command = command_of(client, cache)
        except subprocess.CalledProcessError as e:
            return Report.read(client.name, client.versions, results, f"not installed: {e}")
        own = {"ERNIE_CLIENTS_RESULTS": str(results), "ERNIE_CLIENTS_WORK": str(work), "HOME": str(work / "home")}
        ended = _run(command, _environment() | variables | own, cache / f"{client.script.stem}.log", seconds)
        return Report.read(client.name, client.versions, results, ended)


def _run(command: list[str], environment: dict[str, str], log: Path, seconds: float) -> str | None:
    """Run a command and return how it ended where it did not end well."""
    with log.open("w") as file:
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return f"not done after {seconds:g} seconds: {log}"
    return f"exit code {done.returncode}: {log}" if done.returncode else None


def _environment() -> dict[str, str]:
    """Return this process's environment without what would point Python at our packages, or clients at a network."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return kept | {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "OPENAI_API_KEY": "none",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
    }
