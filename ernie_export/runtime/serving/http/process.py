"""The command's process: it listens, and on SIGTERM or Ctrl-C takes no more, finishes what runs, and leaves."""

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

from ernie_export.common.errors import UserError
from ernie_export.runtime.serving.http.service import Service

IDLE_SECONDS = 75  # that a connection is kept between requests: longer than a proxy in front keeps it
GOODBYE_SECONDS = 2  # for responses to reach those who wait for them, once the requests have ended


HEAD_SECONDS = 20  # that a request's head may take to arrive
EXIT_SECONDS = 8  # after the drain, for all threads to end; then the process ends without them
RESERVED_DESCRIPTORS = 128  # for the model's files, pipes to workers, fetches
MAX_DESCRIPTORS = 65_536
# Connections that wait to be accepted. asyncio accepts as many at once, and where descriptors run out it logs and tries
# again for each.
BACKLOG = 128
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
    """Lets a few messages of a kind through in LOG_SECONDS: what clients cause must not fill the disk."""

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


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for the end of a head for ever, once it has its first byte."""

    _timer: asyncio.TimerHandle | None = None

    def __init__(self, limits: ConnectionLimits, **arguments: Any) -> None:
        """`arguments`: uvicorn's own."""
        super().__init__(**arguments)
        self._limits = limits
        self._idle_since = 0.0  # by the loop's clock: when it was opened, or its last request came

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._watch()
        self._make_place()

    def _make_place(self) -> None:
        """Close an idle connection, at worst this one, where there are more than all or one address may have."""
        crowd = [other for other in self.connections if isinstance(other, PatientProtocol)]
        if len(crowd) <= self._limits.total:
            address = _address(self)
            if address in ("127.0.0.1", "::1", ""):
                return
            crowd = [other for other in crowd if _address(other) == address]
            if len(crowd) <= self._limits.per_address:
                return
        idle = [other for other in crowd if other is not self and other._is_idle()]
        closed = min(idle, key=lambda other: other._idle_since, default=self)
        closed.transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
        if not self._is_idle():
            self._idle_since = self.loop.time()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._forget()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP ends the request that it came in, too: uvicorn would let that answer after the refusal."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
            if cycle.response_started:
                self.transport.close()
                return
        super().send_400_response(msg)

    def _watch(self) -> None:
        """Let the time run from a head's beginning to its end, whatever arrives in between."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _address(connection: object) -> str:
    """Return the address of a connection's client; empty where it is not known."""
    client: tuple[str, int] | None = getattr(connection, "client", None)
    return client[0] if client else ""


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which by itself would stop listening at once: a probe would see no answer rather than a 503."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._admission = service, service.admission
        self._began = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First: drain. A second time: leave at once."""
        if self._admission.draining:
            self.should_exit = self.force_exit = True
        else:
            seconds = self._service.settings.drain_seconds + EXIT_SECONDS
            watchdog = threading.Timer(seconds, _end_process)
            watchdog.daemon = True
            watchdog.start()
        self._admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's own check ten times a second: whether to leave."""
        if self._admission.draining:
            now = asyncio.get_running_loop().time()
            self._began = self._began or now
            if now - self._began >= self._service.settings.drain_seconds:
                self._service.abandon()
                self.should_exit = True
            self.should_exit = self.should_exit or not self._admission.open
        return await super().on_tick(counter)


def _end_process() -> None:
    """End the process though a thread of it still runs, such as an engine that never returns."""
    log.error("the process did not end within %s seconds after the drain: ended without its threads", EXIT_SECONDS)
    os._exit(1)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises UserError where it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as e:
        raise UserError(
            f"--host {host} --port {port}: expected an address to listen on, found {e.strerror or e}"
        ) from e


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C. Prints the address once requests are taken."""
    service: Service = app.state.service
    limits = ConnectionLimits.of_process(service.settings.max_connections)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=partial(PatientProtocol, limits),  # type: ignore[arg-type]  # uvicorn calls it, as it would a class
        loop="asyncio",
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
        backlog=BACKLOG,
    )
    # What it warns of, writing to a client that has gone, is the client's right, and is noticed anyway.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    logging.getLogger("asyncio").addFilter(RateLimit())
    log.addFilter(RateLimit())
    server = DrainingServer(config, service)
    host, port = listener.getsockname()[:2]
    print(f"{service.settings.model_name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
