"""A request that has ended leaves nothing large to Python's cycle collector, which may come minutes later.

An exception that a future keeps, whose traceback leads back to the future, is such a cycle: it holds the request's
body, its decoded images and its features.
"""

import io
import json
import signal
import socket
import time
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from tests.runtime.server.conftest import Server, serve

LARGE = 500_000  # bytes that make a request large
KEPT = 100_000  # bytes of data that the cycles of all requests of a test may hold
REQUESTS = 3


@pytest.fixture(scope="module")
def uncollected(bundle):
    options = ("--timeout", 4, "--max-media", 3, "--max-body", 2)
    with serve(bundle, *options, program=("serve_uncollected.py",)) as server:
        ask(server, chat("hi"))
        held(server)  # what loading left
        yield server


def held(server: Server) -> tuple[int, str]:
    """Bytes that cycles hold since the last report, and the functions whose frames are among them."""
    server.process.send_signal(signal.SIGUSR1)
    assert server.process.stdout is not None
    size, *frames = server.process.stdout.readline().split()
    return int(size), " ".join(frames)


def ask(server: Server, body: bytes, wait: float = 30) -> int:
    """The status of an answer that is read to its end."""
    headers = {"Content-Type": "application/json"}
    return httpx2.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=wait).status_code


def leave(server: Server, body: bytes, seconds: float) -> int:
    """Send a body, read for so many seconds at most, and go away."""
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(seconds)
    return 0


def chat(*parts: Any, **fields: Any) -> bytes:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 2, **fields}).encode()


@pytest.fixture(scope="module")
def bodies(data_uri) -> dict[str, bytes]:
    """A large body of each kind."""

    def media(kind: str, data: bytes) -> dict[str, Any]:
        return {"type": f"{kind}_url", f"{kind}_url": {"url": data_uri(data, kind)}}

    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (450, 450, 3), dtype=np.uint8)).save(stream, "PNG")
    noise = media("image", stream.getvalue())
    damaged = media("image", stream.getvalue()[: -LARGE // 2])
    return {
        "answered": chat(noise, "What?"),
        "damaged": chat(damaged, "What?"),
        "no video": chat(media("video", bytes(LARGE)), "What?"),
        "too many": chat(*[media("image", bytes(LARGE // 4))] * 4),
        "too long": chat("ab, c. " * (LARGE // 7)),
        "no address": chat({"type": "image_url", "image_url": {"url": "file:///" + "a" * LARGE}}),
        "placeholders": chat(noise, "<|IMAGE_PLACEHOLDER|>"),
        "no JSON": chat(noise)[:-1],
        "unknown field": chat(noise, what=1),
        "wrong type": chat(noise, temperature="a" * LARGE),
        "wrong role": chat(noise, messages=[{"role": "a" * LARGE, "content": "a"}]),
        "stop": chat(noise, stop="a" * LARGE),
        "model": chat(noise, model="a" * LARGE),
        "min_tokens": chat(noise, min_tokens=5),
        "too large": chat("a" * 2**22),
        "timeout": chat(noise, "Tell.", max_tokens=2000, min_tokens=2000, n=8),
        "streamed": chat(noise, "What?", stream=True, logprobs=True),
    }


ENDS = {"answered": 200, "streamed": 200, "too large": 413, "timeout": 504, "model": 404}


@pytest.mark.parametrize("kind", [
    "answered", "damaged", "no video", "too many", "too long", "no address", "placeholders", "no JSON", "unknown field",
    "wrong type", "wrong role", "stop", "model", "min_tokens", "too large", "timeout", "streamed",
])  # fmt: skip
def test_a_request_leaves_no_data_in_cycles(uncollected, bodies, kind):
    for _ in range(REQUESTS):
        assert ask(uncollected, bodies[kind]) == ENDS.get(kind, 400)
    size, frames = held(uncollected)
    assert size < KEPT, frames


@pytest.mark.parametrize("kind", ["answered", "timeout", "streamed", "damaged"])
@pytest.mark.parametrize("seconds", [0, 0.05, 0.3])
def test_a_client_that_leaves_leaves_no_data_in_cycles(uncollected, bodies, kind, seconds):
    for _ in range(REQUESTS):
        leave(uncollected, bodies[kind], seconds)
    ask(uncollected, chat("hi"))
    time.sleep(0.3)
    size, frames = held(uncollected)
    assert size < KEPT, frames
