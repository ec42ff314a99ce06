"""Bad requests and bad clients, against an ernie-serve that runs elsewhere.

Each function does one kind of harm and returns how its requests ended, by status; it raises AssertionError for an
answer that no request may get: a status of 500 or more, an error that is not in OpenAI's form, a wrong answer, silence.
"""

import asyncio
import base64
import json
import socket
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2
from mutate import as_json, damage_bytes, damage_document

MEDIA = Path(__file__).resolve().parents[2] / "examples" / "media"
PATH = "/v1/chat/completions"
ENDED = "closed"  # the connection was closed without a response
SECONDS = 60.0  # for an answer, under load
KNOWN = ("What colour is the triangle?", "red")  # about shapes.png

Json = dict[str, Any]


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A file as it goes into a request."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ask(*parts: Json, **options: Any) -> Json:
    """A request of one turn."""
    return {"model": "mini", "messages": [{"role": "user", "content": list(parts)}], "max_tokens": 4} | options


def text(words: str) -> Json:
    """A part of text."""
    return {"type": "text", "text": words}


def picture(data: bytes) -> Json:
    """A part with a picture."""
    return {"type": "image_url", "image_url": {"url": data_uri(data)}}


def known(**options: Any) -> Json:
    """A question whose answer is known."""
    return ask(picture((MEDIA / "shapes.png").read_bytes()), text(KNOWN[0]), max_tokens=16, **options)


def seeds() -> list[Json]:
    """Requests that are good as they are."""
    shapes = (MEDIA / "shapes.png").read_bytes()
    clip = data_uri((MEDIA / "passing.mp4").read_bytes(), "video/mp4")
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "What is red?", "name": "me"}]
    options = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 7, "stop": ["x", "yz"], "repetition_penalty": 1.1}
    return [
        {"messages": [{"role": "user", "content": "What is red?"}], "max_tokens": 2},
        {"model": "mini", "messages": turns, "max_completion_tokens": 4, "min_tokens": 1, **options},
        ask(picture(shapes), text("What is it?"), n=2, logprobs=True, top_logprobs=3),
        ask(text("é\U0001f600"), stream=True, stream_options={"include_usage": True}),
        ask({"type": "video_url", "video_url": {"url": clip}}, text("What moves?"), stream=True),
        ask(picture(shapes), picture(shapes), text(""), user="me", metadata={"a": "b"}, tools=[], logit_bias={}),
        ask(text("x"), response_format={"type": "text"}, chat_template_kwargs={"enable_thinking": False}),
    ]


def check(status: int, body: bytes) -> None:
    """What every response has to be."""
    assert status < 500, f"{status} {body[:500]!r}"
    assert b"Traceback" not in body and b"internal_error" not in body, body[:2000]
    if status >= 400:
        error = json.loads(body)["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert error["message"] and error["message"].isprintable(), error


def damaged_bodies(url: str, first: int, last: int) -> Counter[str]:
    """Requests whose JSON was damaged, several at a time."""
    good = seeds()

    def send(number: int) -> str:
        rng = Random(f"request {number}")
        body = as_json(rng, damage_document(rng, rng.choice(good)))
        if rng.random() < 0.1:
            body = damage_bytes(rng, body, [body])
        response = client.post(PATH, content=body, headers={"Content-Type": "application/json"})
        try:
            check(response.status_code, response.content)
        except AssertionError as e:
            raise AssertionError(f"request {number}: {e}") from e
        return str(response.status_code)

    with httpx2.Client(base_url=url, timeout=SECONDS) as client, ThreadPoolExecutor(4) as threads:
        return Counter(threads.map(send, range(first, last)))


def damaged_messages(url: str, first: int, last: int) -> Counter[str]:
    """HTTP itself damaged: request lines, headers, lengths, chunks; then the client says no more."""
    body = json.dumps(seeds()[0]).encode()
    head = heads("Connection: close\r\n")[:-2]
    whole = [
        head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%2e%2e%2f%00%ff HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ]

    def send(number: int) -> str:
        rng = Random(f"message {number}")
        message = damage_bytes(rng, rng.choice(whole), whole)
        try:
            return exchange(url, [message])
        except AssertionError as e:
            raise AssertionError(f"message {number}: {e}") from e

    with ThreadPoolExecutor(4) as threads:
        return Counter(threads.map(send, range(first, last)))


def exchange(url: str, pieces: list[bytes], pause: float = 0.0) -> str:
    """Send pieces over a connection of their own, then no more; the status that came back, or ENDED."""
    with connect(url) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the server has had enough
        return outcome(connection)


def connect(url: str, timeout: float = SECONDS) -> socket.socket:
    """A connection to the server."""
    place = urlsplit(url)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 80), timeout=timeout)


def outcome(connection: socket.socket) -> str:
    """The status of the first response on a connection, and that the server ends it."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except TimeoutError:
        raise AssertionError(f"the server keeps a dead connection; so far {received[:200]!r}") from None
    except OSError:
        pass  # reset: what came before it counts
    if not received:
        return ENDED
    status = received.split(b"\r\n", 1)[0].split(b" ")
    assert status[0] == b"HTTP/1.1" and len(status) > 1, received[:200]
    assert int(status[1]) < 500 and b"Traceback" not in received, received[:2000]
    return status[1].decode()


def heads(extra: str = "") -> bytes:
    """The head of a request with a body to come."""
    return f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}\r\n".encode()


def endless_body(url: str) -> str:
    """Chunks without end, of a body that could be JSON; the server has to stop it."""
    with connect(url) as connection:
        connection.sendall(heads("Transfer-Encoding: chunked\r\n"))
        chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        until = time.monotonic() + SECONDS
        try:
            while time.monotonic() < until:
                connection.sendall(chunk)
                time.sleep(0.001)
        except OSError:
            return outcome(connection)
    raise AssertionError(f"a body without end was taken for {SECONDS} seconds")


def truncated_bodies(url: str) -> Counter[str]:
    """Bodies of which half arrives before the client says no more, or goes."""
    body = json.dumps(known()).encode()
    head = heads(f"Content-Length: {len(body)}\r\n")
    ended = Counter([exchange(url, [head + body[: len(body) // 2]]) for _ in range(4)])
    for _ in range(8):
        with connect(url) as connection:
            connection.sendall(head + body[: len(body) // 2])
            reset(connection)
        ended["gone"] += 1
    return ended


def reset(connection: socket.socket) -> None:
    """Close so that the other side gets a reset, as from a process that was killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def large_headers(url: str) -> Counter[str]:
    """Heads of a megabyte, in one header and in many."""
    one = heads(f"X: {'x' * 2**20}\r\n")
    many = heads("".join(f"X-{number}: {'x' * 50}\r\n" for number in range(20_000)))
    line = f"GET /{'x' * 2**20} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    return Counter(exchange(url, [message]) for message in (one, many, line))


def picture_bombs(url: str) -> Counter[str]:
    """Pictures of few bytes and very many pixels, sides of one pixel, and many at a time."""
    ended: Counter[str] = Counter()
    with httpx2.Client(base_url=url, timeout=SECONDS) as client:
        for width, height in ((60_000, 60_000), (9_000, 9_000), (2**31 - 1, 1), (1, 2**31 - 1), (2, 800)):
            part = picture(flat_png(width, height))
            for count in (1, 16):
                request = ask(*[part] * count, text("What?"))
                response = client.post(PATH, json=request)
                check(response.status_code, response.content)
                ended[str(response.status_code)] += 1
    return ended


def flat_png(width: int, height: int) -> bytes:
    """A black PNG of that size; of a very large one only the first rows are there."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = min(height, 10**8 // (width + 1) or 1)
    data = zlib.compress(b"\0" * ((width + 1) * rows) if width < 10**8 else b"\0", 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def slow_clients(url: str, count: int = 100, seconds: float = 5.0) -> Counter[str]:
    """Heads and bodies that come a byte at a time; meanwhile others get their answers."""
    whole = heads("Content-Length: 1000\r\n") + b"{"
    connections = [connect(url) for _ in range(count)]
    try:
        until, place = time.monotonic() + seconds, 0
        ended: Counter[str] = Counter()
        while time.monotonic() < until:
            for number, connection in enumerate(connections):
                piece = whole[place : place + 1] if number % 2 or place else whole[:-1]
                try:
                    connection.sendall(piece or b" ")
                except OSError:
                    pass
            place += 1
            response = httpx2.post(url + PATH, json=known(), timeout=SECONDS)
            check(response.status_code, response.content)
            ended[str(response.status_code)] += 1
            if response.status_code == 200:
                assert answer_of(response.json()) == KNOWN[1]
        return ended
    finally:
        for connection in connections:
            connection.close()


def answer_of(completion: Json) -> str:
    """The text of a whole answer's first choice."""
    found: str = completion["choices"][0]["message"]["content"]
    return found


def leave_midway(url: str, count: int, first: int = 0) -> Counter[str]:
    """Clients that go away while their stream comes, or while their picture is still being looked at."""

    def one(number: int) -> str:
        rng = Random(f"leave {number}")
        body = json.dumps(known(stream=True) | {"max_tokens": 60, "min_tokens": 60, "temperature": 2.0}).encode()
        with connect(url) as connection:
            connection.sendall(heads(f"Content-Length: {len(body)}\r\n") + body)
            if rng.random() < 0.5:
                connection.recv(rng.randint(1, 4000))
            else:
                time.sleep(rng.uniform(0, 0.05))
            if rng.random() < 0.5:
                reset(connection)
        return "left"

    with ThreadPoolExecutor(8) as threads:
        return Counter(threads.map(one, range(first, first + count)))


def slow_readers(url: str, count: int = 6, seconds: float = 2.0) -> Counter[str]:
    """Clients that ask for a stream and read nothing for a while, with a small window; others are not held up."""
    body = json.dumps(known(stream=True, logprobs=True, top_logprobs=20)).encode()
    connections = []
    for _ in range(count):
        connection = connect(url)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**14)
        connection.sendall(heads(f"Content-Length: {len(body)}\r\nConnection: close\r\n") + body)
        connections.append(connection)
    until, ended = time.monotonic() + seconds, Counter[str]()
    while time.monotonic() < until:
        response = httpx2.post(url + PATH, json=known(), timeout=SECONDS)
        check(response.status_code, response.content)
        ended[str(response.status_code)] += 1
    for connection in connections:
        received = b""
        while piece := connection.recv(512):
            received += piece
        connection.close()
        assert received.startswith(b"HTTP/1.1 ") and int(received[9:12]) < 500, received[:200]
        if received[9:12] == b"200":
            assert b"[DONE]" in received and b"server_error" not in received, received[-500:]
        ended[f"slow {received[9:12].decode()}"] += 1
    return ended


def flood(url: str, count: int) -> Counter[str]:
    """`count` questions at once: whoever is let in gets the right answer, the others 429 with Retry-After."""

    async def all_at_once() -> Counter[str]:
        limits = httpx2.Limits(max_connections=None)
        async with httpx2.AsyncClient(base_url=url, timeout=5 * SECONDS, limits=limits) as client:
            return Counter(await asyncio.gather(*(one(client, number) for number in range(count))))

    async def one(client: httpx2.AsyncClient, number: int) -> str:
        stream = number % 2 == 0
        async with client.stream("POST", PATH, json=known(stream=stream)) as response:
            body = await response.aread()
        check(response.status_code, body)
        if response.status_code == 200:
            found = streamed(body) if stream else answer_of(json.loads(body))
            assert found == KNOWN[1], found
        else:
            assert response.status_code == 429 and int(response.headers["Retry-After"]) > 0, body
        return str(response.status_code)

    return asyncio.run(all_at_once())


def streamed(body: bytes) -> str:
    """The text of a stream of events."""
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])


def at_rest(url: str, seconds: float = SECONDS) -> None:
    """Wait until nothing runs and nothing waits; AssertionError where that does not come: rows are lost."""
    names, until = ("vllm:num_requests_running", "vllm:num_requests_waiting"), time.monotonic() + seconds
    while True:
        lines = httpx2.get(f"{url}/metrics", timeout=SECONDS).text.splitlines()
        busy = [line for line in lines if line.startswith(names) and float(line.split()[-1])]
        if not busy:
            return
        assert time.monotonic() < until, busy
        time.sleep(0.1)


def resident(pid: int) -> float:
    """A process's resident memory, MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024
