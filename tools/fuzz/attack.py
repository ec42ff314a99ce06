"""Start an ernie-serve on a bundle, do it every harm of bad_requests.py and bad_clients.py, write what became of it.

python tools/fuzz/attack.py bundles/mini-ernie --inputs 20000 --out benchmarks/results/faults.json
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bad_clients
import bad_requests
import click
import server_talk as talk

ROWS = 4
QUEUE = 12
OPTIONS = ("--model-name", "mini", "--rows", ROWS, "--queue", QUEUE, "--max-new-tokens", 64, "--max-body", 2,
           "--kv-cache", 0.05, "--feature-cache", 1)  # fmt: skip


NO_HTTP = re.compile(r"^\S+ WARNING Invalid HTTP request received\.\n", re.MULTILINE)


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, int]]:
    """Address and process of a server with little memory; at the end it has to leave well and to have printed nothing.

    (But for the one line with which uvicorn notes what is no HTTP.)
    """
    program = "from ernie_export.runtime.cli.serve import main; main()"
    command = [sys.executable, "-c", program, str(bundle), "--port", "0", *map(str, OPTIONS)]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            assert line, "the server did not start"
            yield line.split()[-1], server.pid
        finally:
            server.terminate()
            status = server.wait()
            server.stdout.close()
            log.seek(0)
            printed = NO_HTTP.sub("", log.read().decode(errors="replace"))
            if printed:
                print(printed, file=sys.stderr)
        assert status == 0 and not printed, f"the server ended with {status} and printed {printed[:5000]}"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--inputs", default=1000, show_default=True, help="Damaged requests of each kind.")
@click.option("--first", default=0, help="Number of the first.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file to add to, under server.")
def main(bundle: Path, inputs: int, first: int, out: Path | None) -> None:
    """Attack a server of the mini BUNDLE; ends with a traceback at the first thing that should not be."""
    with serving(bundle) as (url, pid):
        report = attack(url, pid, first, first + inputs)
    if out:
        document = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps(document | {"server": report}, indent=1) + "\n")


def attack(url: str, pid: int, first: int, last: int) -> dict[str, Any]:
    """All of it, one after another, each followed by rest; statuses, seconds and memory."""
    flooded = 10 * (ROWS + QUEUE)
    harms: dict[str, Callable[[], Any]] = {
        "damaged bodies": lambda: bad_requests.damaged_bodies(url, first, last),
        "damaged HTTP": lambda: bad_requests.damaged_messages(url, first, last),
        "truncated bodies": lambda: bad_requests.truncated_bodies(url),
        "endless body": lambda: {bad_requests.endless_body(url): 1},
        "large headers": lambda: bad_requests.large_headers(url),
        "picture bombs": lambda: bad_requests.picture_bombs(url),
        "slow clients": lambda: bad_clients.slow_clients(url),
        "left midway": lambda: bad_clients.leave_midway(url, 200),
        "slow readers": lambda: bad_clients.slow_readers(url),
        "flood, first": lambda: bad_clients.flood(url, flooded),
    }
    for number in range(2, 11):
        harms[f"flood, {number}"] = lambda: bad_clients.flood(url, flooded)
    report = {}
    for name, harm in harms.items():
        began = time.monotonic()
        ended = dict(harm())
        talk.at_rest(url)
        report[name] = {
            "ended": dict(sorted(ended.items())),
            "seconds": round(time.monotonic() - began, 1),
            "resident_mib": round(talk.resident(pid), 1),
        }
        print(name, report[name], flush=True)
    return report


if __name__ == "__main__":
    main()
