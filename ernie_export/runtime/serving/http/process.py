"""The command's process: it listens, and on SIGTERM or Ctrl-C takes no more, finishes what runs, and leaves."""

import asyncio
import logging
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ernie_export.common.errors import UserError
from ernie_export.runtime.serving.http.service import Service

IDLE_SECONDS = 75  # that a connection is kept between requests: longer than a proxy in front keeps it
GOODBYE_SECONDS = 2  # for responses to reach those who wait for them, once the requests have ended


HEAD_SECONDS = 20  # that a request's head may take to arrive


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits for the end of a head for ever, once it has its first byte."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        super().data_received(data)
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


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises UserError where it can't be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as e:
        raise UserError(
            f"--host {host} --port {port}: expected an address to listen on, found {e.strerror or e}"
        ) from e


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C. Prints the address once requests are taken."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=PatientProtocol,
        loop="asyncio",
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )
    # What it warns of, writing to a client that has gone, is the client's right, and is noticed anyway.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    server = DrainingServer(config, service)
    host, port = listener.getsockname()[:2]
    print(f"{service.settings.model_name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
