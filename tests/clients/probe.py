"""What the script of a client says of each thing that it tries, as lines of JSON.

It runs in the client's environment, so that it needs nothing but Python.
"""

import base64
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.pop("PYTHONPATH", None)  # a program that the script starts looks for its own packages

MINI = os.environ["ERNIE_CLIENTS_MINI"]  # the small model's server, without /v1
SCRIPTED = os.environ["ERNIE_CLIENTS_SCRIPTED"]  # a server that answers what stands after the last "say:"
BUNDLE = Path(os.environ["ERNIE_CLIENTS_BUNDLE"])  # its folder: a tokenizer for those that need one
WORK = Path(os.environ["ERNIE_CLIENTS_WORK"])  # an empty folder
MODEL = "mini"
IMAGE = Path(__file__).parents[2] / "examples" / "media" / "shapes.png"
IMAGE_BASE64 = base64.b64encode(IMAGE.read_bytes()).decode()
IMAGE_URI = f"data:image/png;base64,{IMAGE_BASE64}"
QUESTION = "What colour is the triangle?"
ANSWER = "red"
THOUGHTS = "say:It has three corners.</think>red"  # what a scripted model that thinks is asked
LONGEST_ERROR = 300


def called(name: str, arguments: str) -> str:
    """Return the text of a call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


WEATHER = "say:" + called("weather", '{"city": "Lima"}')  # what a scripted model is asked that is to call a tool


@contextmanager
def check(what: str) -> Iterator[None]:
    """Try something that works: an error is a failure of the server."""
    try:
        yield
    except Exception as e:
        traceback.print_exc()
        _say(what, "failed", _line(e))
    else:
        _say(what, "yes", "")


@contextmanager
def limit(what: str, why: str) -> Iterator[None]:
    """Try something that cannot work, by the client's own doing: an error is what is expected."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        _say(what, "no", why)
    else:
        _say(what, "failed", f"works, though it is listed as one that cannot: {why}")


def equal(found: object, expected: object) -> None:
    """Raise AssertionError that shows both where they differ."""
    if found != expected:
        raise AssertionError(f"expected {expected!r}, found {found!r}")


def true(condition: object, found: object = "") -> None:
    """Raise AssertionError with what was found unless the condition holds."""
    if not condition:
        raise AssertionError(f"found {found!r}")


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_ERROR]


def _say(what: str, state: str, detail: str) -> None:
    with Path(os.environ["ERNIE_CLIENTS_RESULTS"]).open("a") as file:
        file.write(json.dumps({"what": what, "state": state, "detail": detail}) + "\n")
