"""Bad requests to an ernie-serve that runs elsewhere: damaged, endless, truncated, enormous.

Each function does one kind of harm and returns how its requests ended, by status; it raises AssertionError for an
answer that no request may get (see server_talk.py).
"""

import json
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from random import Random

import httpx2
from mutate import as_json, damage_bytes, damage_document
from server_talk import PATH, SECONDS, ask, check, connect, exchange, heads, known, outcome, picture, reset, seeds, text


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
