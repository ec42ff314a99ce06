"""Run the clients against ernie-serve and write the table: `python -m tests.clients BUNDLE [CLIENT...]`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tests.clients.clients import Client, chosen
from tests.clients.environments import command_of
from tests.clients.results import Report, table
from tests.paths import ROOT
from tests.runtime.server.conftest import serve

SECONDS = 600  # for a client's script


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("names", nargs=-1, metavar="[CLIENT]...")
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), default=Path("/tmp/clients"))
@click.option("--table", "table_file", type=click.Path(dir_okay=False, path_type=Path), help="Where the table goes.")
def main(bundle: Path, names: tuple[str, ...], cache: Path, table_file: Path | None) -> None:
    """Run the clients, all by default, and end with 1 if something that should work does not."""
    try:
        clients = chosen(names)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    cache.mkdir(parents=True, exist_ok=True)
    reports = []
    with serve(bundle) as mini, serve(bundle, program=("serve_echo.py",)) as scripted:
        servers = {"ERNIE_CLIENTS_MINI": mini.url, "ERNIE_CLIENTS_SCRIPTED": scripted.url}
        for client in clients:
            report = run(client, cache, servers | {"ERNIE_CLIENTS_BUNDLE": str(bundle.resolve())})
            for result in report.results:
                click.echo(f"{client.name:20} {result.state:7} {result.what}  {result.detail}".rstrip())
            reports.append(report)
    text = table(reports)
    if table_file is None:
        click.echo(text)
    else:
        table_file.write_text(text)
    failed = sum(report.failed for report in reports)
    click.echo(f"{len(reports) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


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
        "TOKENIZERS_PARALLELISM": "false",
    }


main()
