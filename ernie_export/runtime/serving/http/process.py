"""The process of ernie-serve: it listens, and on SIGTERM or Ctrl-C refuses requests, drains and exits."""

import asyncio
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ernie_export.common.errors import InvalidValue, one_printable_line
from ernie_export.runtime.serving.http.logs import logging_to
from ernie_export.runtime.serving.http.service import Service

IDLE_SECONDS = 75  # that a connection is kept between requests: longer than a proxy in front keeps it
GRACE_SECONDS = 2  # for responses to reach their clients once the requests have ended
HEAD_SECONDS = 20  # that a request's head may take to arrive
EXIT_SECONDS = 8  # after the drain, for all threads to end; then the process ends without them
RESERVED_DESCRIPTORS = 128  # for the model's files, pipes to workers, fetches, and connections beyond the limits
MAX_DESCRIPTORS = 65_536
QUEUED_CONNECTIONS = 1024  # that wait in the kernel to be accepted; past it, clients try again after seconds
# In one turn of the event loop. A connection beyond the limits is closed some turns after it was accepted: all that are
# accepted meanwhile have to fit in the reserved descriptors, or asyncio accepts nothing for a second.
ACCEPTED_AT_ONCE = 16
LOG_SECONDS = 10.0
LOG_BURST = 5  # messages of one kind in LOG_SECONDS

log = logging.getLogger("ernie_export.server")


@dataclass(frozen=True)
class ConnectionLimits:
    """How many connections are kept open. For one more, the one that has been idle for longest is closed.

    Attributes:
        total: All together.
        per_address: From one address that is not this machine's own, where a proxy may stand.
    """

    total: int
    per_address: int

    @classmethod
    def of_process(cls, max_connections: int) -> "ConnectionLimits":
        """Raise this process's limit of descriptors as far as it may, and keep within what that allows."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        ceiling = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < ceiling:
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
            soft = ceiling
        available = max(soft - RESERVED_DESCRIPTORS, 16) if soft != resource.RLIM_INFINITY else max_connections
        total = min(max_connections, available)
        return cls(total, max(total // 4, 8))


class RateLimit(logging.Filter):
    """A filter that passes LOG_BURST messages of a kind in LOG_SECONDS: what clients cause must not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._began = 0.0
        self._counts: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is logged."""
        now = time.monotonic()
        if now - self._began >= LOG_SECONDS:
            self._began = now
            self._counts.clear()
        kind = f"{record.name} {record.levelno} {str(record.msg)[:80]}"
        self._counts[kind] += 1
        return self._counts[kind] <= LOG_BURST


class HeaderTimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time that a request's head takes, and on the number of connections."""

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, limits: ConnectionLimits, **arguments: Any) -> None:
        """`arguments`: those of uvicorn's protocol."""
        super().__init__(**arguments)
        self._limits = limits
        self._idle_since = 0.0  # by the loop's clock: when it was opened, or its last request came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first head, or close a connection beyond the limits."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._update_timer()
        self._enforce_limits()

    def _enforce_limits(self) -> None:
        """Close an idle connection, or else this one, if all or those of its address are more than the limits allow."""
        connections = [
            other
            for other in self.connections
            if isinstance(other, HeaderTimeoutProtocol) and not other.transport.is_closing()
        ]
        if len(connections) <= self._limits.total:
            address = _address(self)
            if address in ("127.0.0.1", "::1", ""):
                return
            connections = [other for other in connections if _address(other) == address]
            if len(connections) <= self._limits.per_address:
                return
        idle = [other for other in connections if other is not self and other._is_idle()]
        closed = min(idle, key=lambda other: other._idle_since, default=self)
        closed.transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Parse the data, then start or stop the timer."""
        super().data_received(data)
        if not self._is_idle():
            self._idle_since = self.loop.time()
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        super().connection_lost(exc)
        self._stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, and end the request that it came in: uvicorn would let that answer afterwards."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        super().send_400_response(msg)

    def _update_timer(self) -> None:
        """Run the timer from the beginning of a head to its end, whatever arrives in between."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._on_timeout)

    def _on_timeout(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _address(connection: object) -> str:
    """Return the address of a connection's client; empty where it is not known."""
    client: tuple[str, int] | None = getattr(connection, "client", None)
    return client[0] if client else ""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, but it still listens while it drains: a probe is answered with 503 rather than not at all."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._admission = service.admission
        self._began = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. asyncio has one number for connections that wait and those accepted at once: set the first anew."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(QUEUED_CONNECTIONS)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, exit at once at the second."""
        if self._admission.draining:
            self.should_exit = self.force_exit = True
        else:
            seconds = self._service.settings.drain_seconds + EXIT_SECONDS
            watchdog = threading.Timer(seconds, _end_process)
            watchdog.daemon = True
            watchdog.start()
        self._admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Return whether to exit. uvicorn calls this ten times a second."""
        if self._admission.draining:
            now = asyncio.get_running_loop().time()
            self._began = self._began or now
            if now - self._began >= self._service.settings.drain_seconds:
                self._service.abandon()
                self.should_exit = True
            self.should_exit = self.should_exit or not self._admission.open
        return await super().on_tick(counter)


def _end_process() -> None:
    """End the process while a thread of it still runs, such as an engine that never returns."""
    log.error("the process did not end within %s seconds after the drain: ended without its threads", EXIT_SECONDS)
    os._exit(1)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one. Raises InvalidValue if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=QUEUED_CONNECTIONS)
    except OSError as e:
        raise InvalidValue(f"--host {host} --port {port}", "an address to listen on", e.strerror or e) from e


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C, and print the address once requests are accepted."""
    service: Service = app.state.service
    limits = ConnectionLimits.of_process(service.settings.max_connections)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=partial(HeaderTimeoutProtocol, limits),  # type: ignore[arg-type]  # uvicorn calls it, as it would a class
        loop="asyncio",
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=ACCEPTED_AT_ONCE,
    )
    # asyncio warns of writes to clients that have gone; the server notices these itself.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    for name in ("asyncio", "uvicorn.error", log.name):
        logging.getLogger(name).addFilter(RateLimit())
    server = DrainingServer(config, service)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(one_printable_line(f"{service.settings.model_name} at {address}"), flush=True)
    with logging_to(service.settings.access_log, service.settings.json_logs):
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
