"""A real server process on the exported mini checkpoint, and the openai client against it."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from ernie_export.runtime import load
from tests.paths import PROGRAMS, ROOT

SERVE = ("run_command.py", "ernie-serve", "ernie_export.runtime.cli.serve")  # of tests/programs, and its arguments


@dataclass(frozen=True)
class Server:
    """`url` without /v1."""

    process: subprocess.Popen[str]
    url: str

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)


@contextmanager
def serve(bundle: Path, *options: object, program: tuple[str, ...] = SERVE) -> Iterator[Server]:
    """ernie-serve on a free port, ended with SIGTERM."""
    name, *arguments = program
    command = [sys.executable, str(PROGRAMS / name), *arguments, str(bundle)]
    command += ["--port", "0", "--model-name", "mini", "--threads", "1", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stderr
    line = process.stdout.readline()
    try:
        assert line.startswith("mini at http://"), line + process.stderr.read()
        yield Server(process, line.split()[-1])
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def bundle(mini_bundle) -> Path:
    return mini_bundle


@pytest.fixture(scope="session")
def server(bundle) -> Iterator[Server]:
    with serve(bundle) as running:
        yield running


@pytest.fixture(scope="session")
def client(server) -> OpenAI:
    return server.client()


@pytest.fixture(scope="session")
def alone(bundle):
    """The same bundle, asked directly, one question at a time."""
    with load(bundle, threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def serving(bundle):
    """serving(*options): a server of the bundle with other options, for a `with` block."""
    return partial(serve, bundle)


@pytest.fixture(scope="session")
def questions() -> list[dict[str, Any]]:
    """examples/questions.json with whole paths; "asked" has the messages as OpenAI writes them."""
    asked = json.loads((ROOT / "examples" / "questions.json").read_text())
    for question in asked:
        for turn in question["messages"]:
            for part in turn["content"]:
                if "path" in part:
                    part["path"] = str(ROOT / part["path"])
        question["asked"] = [
            turn | {"content": [_part(part) for part in turn["content"]]} for turn in question["messages"]
        ]
    return asked


@pytest.fixture(scope="session")
def data_uri():
    """data_uri(bytes, "image" or "video")."""
    return _data_uri


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return part
    kind = part["type"]
    return {"type": f"{kind}_url", f"{kind}_url": {"url": _data_uri(Path(part["path"]).read_bytes(), kind)}}


def _data_uri(data: bytes, kind: str = "image") -> str:
    return f"data:{kind}/any;base64,{base64.b64encode(data).decode()}"
