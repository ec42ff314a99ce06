"""JSON and server-sent events, as all writers of answers make them."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from ernie_export.runtime.scheduler import Output

Json = dict[str, Any]
DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """Writes one answer: as a whole, by `take` and `completion`, or as events."""

    def take(self, index: int, output: Output) -> None:
        """Keep an output of a choice for `completion`."""
        ...

    def completion(self) -> bytes:
        """Return the complete answer as JSON."""
        ...

    def opening(self) -> Iterator[bytes]:
        """Yield the events that come before any output."""
        ...

    def chunks(self, index: int, output: Output) -> Iterator[bytes]:
        """Yield the events that an output adds to its choice, perhaps none."""
        ...

    def closing(self) -> Iterator[bytes]:
        """Yield the events that come after all outputs."""
        ...


async def write_whole(outputs: AsyncIterator[tuple[int, Output]], writer: Writer) -> bytes:
    """Return the complete answer as JSON, once all its outputs are there."""
    async for index, output in outputs:
        writer.take(index, output)
    return writer.completion()


async def write_events(outputs: AsyncIterator[tuple[int, Output]], writer: Writer) -> AsyncIterator[bytes]:
    """Yield the answer's events as its outputs come."""
    for data in writer.opening():
        yield data
    async for index, output in outputs:
        for data in writer.chunks(index, output):
            yield data
    for data in writer.closing():
        yield data


def event(content: Json) -> bytes:
    """Return one server-sent event."""
    return b"data: " + dump(content) + b"\n\n"


def dump(content: Json | str | int | None) -> bytes:
    """Return JSON in UTF-8, without spaces."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
