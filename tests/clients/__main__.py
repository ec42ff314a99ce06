"""Run the clients against ernie-serve and write the table: `python -m tests.clients BUNDLE [CLIENT...]`."""

import sys
from pathlib import Path

import click

from tests.clients.clients import chosen
from tests.clients.results import table
from tests.clients.run import run
from tests.runtime.server.conftest import serve


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


main()
