"""Answers on their way: given up as soon as the client is gone, or the deadline past."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ernie_export.runtime.serving.http.errors import ApiError, ClientGone, internal_error
from ernie_export.runtime.serving.http.responses import DONE, event

FAREWELL = 1.0  # seconds for telling a client why its stream ends; it may be the one that doesn't read

T = TypeVar("T")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Where the client leaves first, `work` is cancelled and ClientGone raised.

    The request's body must have been read.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. Whatever ends it, `close` is called."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], deadline: float, close: Callable[[], None]) -> None:
        """`deadline`: by the event loop's clock, when the last event must have been taken."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._deadline, self._close = events, deadline, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
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
        """Say why, in the stream, since its status is sent already."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await send({"type": "http.response.body", "body": event(error.content()) + DONE, "more_body": False})
