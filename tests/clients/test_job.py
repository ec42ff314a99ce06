"""The job that runs clients: its list, its results and its table. The clients themselves run in `make clients`."""

import sys
from pathlib import Path

import pytest

from tests.clients.clients import Client, all_clients, chosen, pinned
from tests.clients.environments import STAMP
from tests.clients.results import Report, Result, table
from tests.clients.run import run


def test_every_client_has_a_script_and_exact_versions():
    clients = all_clients()
    names = [client.name for client in clients]
    assert len(set(names)) == len(names) and {"langchain", "litellm", "openai-npm"} <= set(names)
    for client in clients:
        assert client.versions, client.name
        compile(client.script.read_text(), str(client.script), "exec") if client.is_python else None


def test_a_version_that_is_not_exact_is_refused(tmp_path):
    file = tmp_path / "some.txt"
    file.write_text("some[extra]==1.2  # why\n# more\nother>=1\n")
    with pytest.raises(ValueError, match="expected name==version, found other>=1"):
        pinned(file)


def test_a_client_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="found nobody"):
        chosen(("nobody",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "states"),
    [
        ("with check('a'): pass\nwith limit('b', 'why'): raise ValueError('x')", ["yes", "no"]),
        ("with check('a'): equal(1, 2)", ["failed"]),
        ("with limit('a', 'why'): pass", ["failed"]),
        ("with check('a'): pass\nraise SystemExit(3)", ["yes", "failed"]),
        ("pass", ["failed"]),
        ("import time; time.sleep(60)", ["failed"]),
    ],
)
def test_results_are_what_a_script_says_and_how_it_ends(tmp_path, program, states):
    client = made(tmp_path, "from tests.clients.probe import *\n" + program)
    servers = {"ERNIE_CLIENTS_MINI": "x", "ERNIE_CLIENTS_SCRIPTED": "x", "ERNIE_CLIENTS_BUNDLE": "x"}
    report = run(client, tmp_path, servers, seconds=2 if "sleep" in program else 60)
    assert [result.state for result in report.results] == states
    assert report.failed == ("failed" in states)


def test_the_table_has_a_row_for_each_client():
    reports = [
        Report("a", {"a": "1", "b": "2"}, (Result("chat", "yes"), Result("tools", "no", "has | none"))),
        Report("c", {"c": "3"}, (Result("chat", "failed", "Error: x"),)),
    ]
    rows = table(reports).splitlines()[2:]
    assert rows == ["| a 1, b 2 | chat | tools: has \\| none |", "| c 3 |  | **chat: Error: x** |"]


def made(cache: Path, program: str) -> Client:
    """Return a client whose environment is this one, with a script in tests' place."""
    script = cache / "probed.py"
    script.write_text(program)
    requirements = cache / "probed.txt"
    requirements.write_text("probed==1\n")
    environment = cache / "probed"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").symlink_to(sys.executable)
    (environment / STAMP).write_bytes(requirements.read_bytes())
    return Client("probed", script, requirements, {"probed": "1"})
