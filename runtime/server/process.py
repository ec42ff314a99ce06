"""The command's process: it listens, and on SIGTERM or Ctrl-C takes no more, finishes what runs, and leaves."""

import asyncio
import socket
import sys
from types import FrameType

import uvicorn
from ernie_export.runtime.server.admission import Admission
from ernie_export.runtime.server.service import Service
from fastapi import FastAPI

IDLE_SECONDS = 75  # that a connection is kept between requests: longer than a proxy in front keeps it
GOODBYE_SECONDS = 2  # for responses to reach those who wait for them, once the requests have ended


class DrainingServer(uvicorn.Server):
    """uvicorn's server, which by itself would stop listening at once: a probe would see no answer rather than a 503."""

    def __init__(self, config: uvicorn.Config, admission: Admission, drain_seconds: float) -> None:
        super().__init__(config)
        self._admission, self._drain_seconds = admission, drain_seconds
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
            if not self._admission.count or now - self._began >= self._drain_seconds:
                self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=256)


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Answer until SIGTERM or Ctrl-C. Prints the address once requests are taken."""
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http="h11",
        loop="asyncio",
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GOODBYE_SECONDS,
    )
    server = DrainingServer(config, service.admission, service.settings.drain_seconds)
    host, port = listener.getsockname()[:2]
    print(f"{service.settings.model_name} at http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)
