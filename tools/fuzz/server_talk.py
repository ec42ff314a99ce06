"""Talk with an ernie-serve that runs elsewhere: requests that are good, bare connections, and what no answer may be.

What no request may get raises AssertionError: a status of 500 or more, an error that is not in OpenAI's form, silence.
"""

import base64
import json
import socket
import struct
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

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


def answer_of(completion: Json) -> str:
    """The text of a whole answer's first choice."""
    found: str = completion["choices"][0]["message"]["content"]
    return found


def streamed(body: bytes) -> str:
    """The text of a stream of events."""
    events = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    return "".join(json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1])


def connect(url: str, timeout: float = SECONDS) -> socket.socket:
    """A connection to the server."""
    place = urlsplit(url)
    assert place.hostname is not None
    return socket.create_connection((place.hostname, place.port or 80), timeout=timeout)


def heads(extra: str = "") -> bytes:
    """The head of a request with a body to come."""
    return f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{extra}\r\n".encode()


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


def reset(connection: socket.socket) -> None:
    """Close so that the other side gets a reset, as from a process that was killed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def at_rest(url: str, seconds: float = SECONDS) -> None:
    """Wait until nothing runs and nothing waits; AssertionError where that does not come: rows are lost."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    until = time.monotonic() + seconds
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
