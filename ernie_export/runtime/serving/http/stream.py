"""Responses that end as soon as the client has gone or the deadline has passed, streamed or complete."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ernie_export.runtime.serving.http.errors import ApiError, ClientGone, internal_error
from ernie_export.runtime.serving.http.events import DONE, event

PIECE_BYTES = 64 * 1024  # of a complete answer that are handed to the connection at a time
ERROR_SECONDS = 1.0  # for sending the error that ends a stream; its client may have stopped reading

T = TypeVar("T")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; if the client leaves first, cancel `work` and raise ClientGone.

    The request's body must have been read.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class CompleteResponse(Response):
    """A complete answer. It is sent in pieces, as fast as the client reads; whatever ends it, `close` is called.

    An answer with log probabilities may have many megabytes, and a client that reads none of them would hold these.
    """

    media_type = "application/json"

    def __init__(self, content: bytes, deadline: float, close: Callable[[], None]) -> None:
        """`deadline`: the time by the event loop's clock at which a client that reads too slowly is given up."""
        super().__init__(content)
        self._deadline = deadline
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI calls it."""
        view = memoryview(self.body)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._deadline):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    for start in range(0, len(view), PIECE_BYTES):
                        piece = bytes(view[start : start + PIECE_BYTES])
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._close()


class EventStream(Response):
    """A response of server-sent events. Whatever ends it, `close` is called."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], deadline: float, close: Callable[[], None]) -> None:
        """`deadline`: the time by the event loop's clock at which the response is ended."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._deadline = deadline
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, as ASGI calls it."""
        try:
            with suppress(ClientGone):
                await unless_gone(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.timeout_at(self._deadline):
                async for data in self._events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            await self._end(send, ApiError(504, "the deadline has passed", code="timeout"))
        except ApiError as e:
            await self._end(send, e)
        except Exception as e:
            await self._end(send, internal_error(e))
        else:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _end(self, send: Send, error: ApiError) -> None:
        """Send an error as the last event, since the status is sent already."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ERROR_SECONDS):
                await send({"type": "http.response.body", "body": event(error.content()) + DONE, "more_body": False})
