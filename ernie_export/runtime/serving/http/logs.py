"""The server's logs: of each request on stdout if asked for, of faults on stderr; as text or as JSON, a line a record.

What clients send is escaped, so that no request makes a line of its own: in text a fault's traceback follows its line,
indented. Lines are written by a thread, which the event loop does not wait for; where nobody reads them, they are lost.
"""

import json
import logging
import logging.handlers
import queue
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ernie_export.common.errors import printable

ACCESS = "ernie_export.access"
NOTES = "ernie_export.notes"  # in the scope: what the log says of a request beside its head and its status
MAX_PATH = 300  # characters of a path in a line
MAX_QUEUED = 10_000  # records; more are lost
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")

Json = dict[str, Any]


def note(scope: Scope, **notes: Any) -> None:
    """Add to what the access log says of a request."""
    scope.get(NOTES, {}).update(notes)


class AccessLog:
    """Middleware that logs each request once its response has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = logging.getLogger(ACCESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log it, as ASGI calls it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        client = scope.get("client")
        notes: Json = scope.setdefault(NOTES, {})
        notes |= {
            "client": client[0] if client else "",
            "method": scope["method"],
            "path": scope["path"][:MAX_PATH],
            "status": 499,  # until a response begins
            "bytes": 0,
        }

        async def send_and_count(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes["status"] = message["status"]
                ids = [value for name, value in message["headers"] if name == b"x-request-id"]
                notes["request_id"] = ids[0].decode("latin-1") if ids else ""
            else:
                notes["bytes"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_and_count)
        finally:
            notes["seconds"] = round(time.monotonic() - began, 4)
            self._log.info("request", extra={NOTES: notes})


class TextFormatter(logging.Formatter):
    """Formats a record as one line, and a fault's traceback as indented lines after it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        notes: Json = getattr(record, NOTES, {})
        words = [f"{name}={_value(value)}" for name, value in notes.items() if value not in (None, "")]
        request_id = REQUEST_ID.get()
        if request_id and not notes:
            words.append(f"request_id={_value(request_id)}")
        text = " ".join([_moment(record), record.levelname, printable(record.getMessage()), *words])
        if record.exc_info:
            lines = self.formatException(record.exc_info).splitlines()
            text += "".join(f"\n  {printable(line)}" for line in lines)
        return text


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        content: Json = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, NOTES, {}),
        }
        if REQUEST_ID.get():
            content.setdefault("request_id", REQUEST_ID.get())
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return json.dumps(content, default=str)


class _Queue(logging.handlers.QueueHandler):
    """A handler that formats a record at once, in the context of its request, and loses it where the queue is full."""

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record into the queue, if it has a place."""
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            pass


@contextmanager
def logging_to(access_log: bool, as_json: bool) -> Iterator[None]:
    """Write the logs while the block runs.

    Args:
        access_log: Whether each request is logged.
        as_json: Whether lines are JSON.
    """
    formatter = JsonFormatter() if as_json else TextFormatter()
    access = logging.getLogger(ACCESS)
    access.propagate = False
    access.setLevel(logging.INFO if access_log else logging.CRITICAL + 1)
    listeners = [_listen(access, sys.stdout, formatter), _listen(logging.getLogger(), sys.stderr, formatter)]
    try:
        yield
    finally:
        for logger, handler, listener in listeners:
            logger.removeHandler(handler)
            listener.stop()


def _listen(
    logger: logging.Logger, stream: Any, formatter: logging.Formatter
) -> tuple[logging.Logger, logging.Handler, logging.handlers.QueueListener]:
    """Return a logger's new handler, and the thread that writes what it takes to a stream."""
    records: queue.Queue[logging.LogRecord] = queue.Queue(MAX_QUEUED)
    handler = _Queue(records)
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    listener = logging.handlers.QueueListener(records, logging.StreamHandler(stream))
    listener.start()
    return logger, handler, listener


def _moment(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _value(value: Any) -> str:
    """Return a value as one word, in quotes where it has other characters than words have."""
    text = str(value)
    plain = text.isascii() and text.isprintable() and not any(character in text for character in ' "=\\')
    return text if plain else json.dumps(text)
