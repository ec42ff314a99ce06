"""A complete answer goes out as its client reads it, and is given up where the client does not."""

import asyncio
import json
from typing import Any

import pytest

from ernie_export.runtime.serving.http.stream import PIECE_BYTES, CompleteResponse

CONTENT = json.dumps(["a"] * 100_000).encode()


class Client:
    """Takes so many messages of a response, then no more."""

    def __init__(self, messages: int) -> None:
        self._left = messages
        self.received: list[Any] = []

    async def send(self, message: Any) -> None:
        self._left -= 1
        if self._left < 0:
            await asyncio.Event().wait()
        self.received.append(message)

    async def receive(self) -> Any:
        await asyncio.Event().wait()


def respond(client: Client, seconds: float) -> list[str]:
    """Send CONTENT to a client within so many seconds; return what was called at its end."""
    closed: list[str] = []

    async def run() -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        response = CompleteResponse(CONTENT, deadline, lambda: closed.append("closed"))
        await asyncio.wait_for(response({"type": "http"}, client.receive, client.send), 10)

    asyncio.run(run())
    return closed


def test_an_answer_goes_out_in_pieces():
    client = Client(1000)
    assert respond(client, 5) == ["closed"]
    start, *pieces = client.received
    assert (b"content-length", str(len(CONTENT)).encode()) in start["headers"]
    assert (b"content-type", b"application/json") in start["headers"]
    assert b"".join(piece["body"] for piece in pieces) == CONTENT
    assert all(len(piece["body"]) <= PIECE_BYTES for piece in pieces)
    assert [piece["more_body"] for piece in pieces] == [True] * (len(pieces) - 1) + [False]


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_a_client_that_does_not_read_is_given_up(messages):
    client = Client(messages)
    assert respond(client, 0.1) == ["closed"]
    assert len(client.received) == messages
