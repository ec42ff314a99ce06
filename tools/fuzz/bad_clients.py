"""Bad clients of an ernie-serve that runs elsewhere: slow to send, slow to read, gone midway, too many.

Each function does one kind of harm and returns how its requests ended, by status; it raises AssertionError for an
answer that no request may get (see server_talk.py), and for a wrong one.
"""

import asyncio
import json
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import httpx2
from server_talk import KNOWN, PATH, SECONDS, answer_of, check, connect, heads, known, reset, streamed


def slow_clients(url: str, count: int = 100, seconds: float = 5.0) -> Counter[str]:
    """Heads and bodies that come a byte at a time; meanwhile others get their answers."""
    whole = heads("Content-Length: 1000\r\n") + b"{"
    connections = [connect(url) for _ in range(count)]
    try:
        until = time.monotonic() + seconds
        place = 0
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
    until = time.monotonic() + seconds
    ended = Counter[str]()
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
