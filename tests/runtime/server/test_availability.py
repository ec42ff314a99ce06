"""Requests that cost much more than they are long: /health answers all the while, and memory stays bounded."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import httpx2
import pytest

from tests.hostile_media import slow_jpeg
from tests.paths import MEDIA, PROGRAMS

PAUSE = 0.25  # seconds that /health may be slower than on the idle server
GIB = 2**30


@pytest.fixture(scope="module")
def attacked(serving):
    with serving("--timeout", 60, "--drain", 2) as server:
        yield server


class Health:
    """The slowest answer of /health, in seconds."""

    def __init__(self, server) -> None:
        command = [sys.executable, str(PROGRAMS / "probe_health.py"), server.url.removeprefix("http://")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.slowest = 0.0
        assert self._process.stdout and self._process.stdout.readline()

    def __enter__(self) -> "Health":
        return self

    def __exit__(self, *error: object) -> None:
        self.slowest = float(self._process.communicate()[0])


def check_health(server, attack: Callable[[], None]) -> None:
    """Hold that /health is hardly slower during an attack than on the idle server before.

    Other work on this machine slows it at random, an attack each time: one of three trials must be fast.
    """
    pauses = []
    for _ in range(3):
        with Health(server) as idle:
            time.sleep(1)
        with Health(server) as busy:
            attack()
        if busy.slowest < PAUSE + 2 * idle.slowest:
            return
        pauses.append(f"{busy.slowest:.2f} s (idle {idle.slowest:.2f} s)")
    pytest.fail(f"/health took {', '.join(pauses)}")


def at_once(*works: Callable[[], None]) -> None:
    """Run works in threads and wait for all."""
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def peak_memory(server) -> int:
    """The most memory that the server's process has held, in bytes."""
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def post(server, body: bytes, timeout: float = 120) -> tuple[int, str]:
    """Status and error code of a chat completion."""
    address = server.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=timeout)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    document = json.loads(response.read())
    return response.status, document.get("error", {}).get("code", "")


def chat(**fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}).encode()


def question(url: str) -> bytes:
    """A question about the picture at an address."""
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return chat(messages=[{"role": "user", "content": content}])


def picture(data_uri, data: bytes) -> bytes:
    return question(data_uri(data))


BODIES = {
    "small values": (b'{"messages":[' + b"0," * 2_090_000 + b"0]}", 413),
    "empty objects": (b'{"messages":[' + b"{}," * 1_390_000 + b"{}]}", 413),
    "empty parts": (b'{"messages":[{"role":"user","content":[' + b"{}," * 1_390_000 + b"{}]}]}", 413),
    "unknown fields": (b"{" + b",".join(b'"f%d":0' % i for i in range(400_000)) + b"}", 413),
    "some small values": (b'{"messages":[' + b"0," * 200_000 + b"0]}", 400),
    "nested lists": (b'{"messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400),
    "a long stop string": (chat(stop="A" * 15_000_000, n=8), 413),
    "a stop string of text": (chat(stop="A" * 4_000_000, n=8), 400),
    "long text like base64": (chat(messages=[{"role": "user", "content": "A" * 15_900_000}]), 413),
    "long text of words": (chat(messages=[{"role": "user", "content": "ab; c. " * 560_000}]), 400),
    "a long name": (chat(messages=[{"role": "user", "content": "hi", "name": "A" * 15_000_000}]), 413),
    "many stop strings": (chat(stop=["A" * 300_000] * 12), 400),
    "runs of base64 that are short": (chat(user=("A" * 1023 + "!") * 30_000), 413),
    "data URIs of escapes": (b'{"user":";base64,' + b"\\u4f60" * 5_000_000 + b'"}', 413),
    "data URIs of slashes": (b'{"user":";base64,' + b"\\/" * 15_000_000 + b'"}', 413),
    "many data URIs": (b'{"user":"' + b";base64,A" * 3_400_000 + b'"}', 413),
    "an endless address": (question("http://x;base64," + "A" * 30_000_000), 400),
    "a picture of no kind": (question("data:image/png;base64," + "A" * 30_000_000), 400),
    "an endless kind of part": (
        chat(messages=[{"role": "user", "content": [{"type": ";base64," + "A" * 30_000_000}]}]),
        400,
    ),
    "many keys": (chat(logit_bias={str(i): 1 for i in range(130_000)}), 400),
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_costly_body_stops_nothing(attacked, kind):
    body, status = BODIES[kind]
    found: list[int] = []

    def attack() -> None:
        found.append(post(attacked, body)[0])

    check_health(attacked, lambda: at_once(attack, attack, attack))
    assert set(found) == {status}
    assert peak_memory(attacked) < 2 * GIB


def test_the_longest_answers_stop_nothing(attacked):
    """Eight answers with the probabilities of twenty tokens at each place: megabytes of JSON from a short request."""
    body = chat(n=8, min_tokens=800, max_tokens=800, logprobs=True, top_logprobs=20)
    before = peak_memory(attacked)

    def attack() -> None:
        assert post(attacked, body) == (200, "")

    check_health(attacked, attack)
    assert peak_memory(attacked) - before < GIB // 4


def send_and_leave(server, body: bytes, seconds: float) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        time.sleep(seconds)


def test_pictures_that_never_end_hold_nobody_else(attacked, data_uri):
    """Their clients leave; the next picture is answered, while the process uses no time for theirs."""
    body = picture(data_uri, slow_jpeg())

    def attack() -> None:
        leave = partial(send_and_leave, attacked, body, 1.0)
        at_once(leave, leave)
        began = time.monotonic()
        assert post(attacked, picture(data_uri, (MEDIA / "shapes.png").read_bytes()))[0] == 200
        assert time.monotonic() - began < 20

    check_health(attacked, attack)


def test_a_picture_that_takes_too_long_is_refused(attacked, data_uri):
    assert post(attacked, picture(data_uri, slow_jpeg())) == (400, "invalid_value")


def test_sigterm_ends_what_hangs(serving, data_uri):
    """Within the drain and ten seconds, though a picture is being decoded."""
    body = picture(data_uri, slow_jpeg())
    with serving("--timeout", 60, "--drain", 1) as server:
        threads = [threading.Thread(target=send_and_leave, args=(server, body, 15.0), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - began < 11


def test_more_connections_than_descriptors(serving):
    """Clients that connect and say nothing: the longest idle make place, and descriptors never run out."""
    with serving(program=("serve_with_few_descriptors.py",)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        address = (host, int(port))

        def connect() -> None:
            idle = [socket.create_connection(address, timeout=10) for _ in range(400)]
            time.sleep(1)
            for connection in idle:
                connection.close()

        check_health(server, connect)
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=30)
    assert errors == ""


@pytest.mark.parametrize("penalty", [1e-300, 0.001])
def test_a_penalty_that_overflows_is_refused(attacked, penalty):
    status, _ = post(attacked, chat(repetition_penalty=penalty))
    assert status == 400


def test_a_length_said_twice_is_refused(attacked):
    host, port = attacked.url.removeprefix("http://").split(":")
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(4096):  # to the end: the connection is closed
            answer += piece
    assert answer.startswith(b"HTTP/1.1 400 ") and b"found both" in answer


def test_the_pages_files_have_its_headers(attacked):
    headers = httpx2.get(f"{attacked.url}/static/page.js").headers
    assert headers["X-Content-Type-Options"] == "nosniff" and "default-src 'self'" in headers["Content-Security-Policy"]
