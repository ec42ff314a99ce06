"""How much is taken on at a time: beyond it, requests are refused at once rather than queued without bound."""

import asyncio
import math
import time
from concurrent.futures import Future
from typing import Any

from ernie_export.runtime.serving.http.errors import ApiError

LONGEST_WAIT = 60  # seconds; the openai client takes no longer Retry-After


class Admission:
    """Counts choices and bytes of bodies in hand. Used from the event loop alone."""

    def __init__(self, max_requests: int, max_bytes: int, rows: int) -> None:
        """`rows`: choices that run together, by which a refused client is told how long to wait."""
        self.count = 0  # choices in hand
        self.open = 0  # requests let in that have not ended
        self.draining = False
        self._bytes = 0
        self._max_requests, self._max_bytes, self._rows = max_requests, max_bytes, rows
        self._seconds = 1.0  # that a request takes, a running mean

    def admit(self) -> "Ticket":
        """Let one request in, if there is a place now; it takes it once it is known how many choices it wants.

        Raises ApiError 429 where there is none, 503 where the server is going down.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
        self._check(self.count + 1, self._bytes)
        return Ticket(self)

    def change(self, count: int, size: int) -> None:
        """Take on more, or with numbers below 0, be done with it. Raises ApiError 429."""
        if count > 0 or size > 0:
            self._check(self.count + count, self._bytes + size)
        self.count += count
        self._bytes += size

    def took(self, seconds: float) -> None:
        """Learn how long a request took."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def full(self) -> ApiError:
        """What a client is told who comes when there is no place: and when to come again."""
        wait = min(max(1, math.ceil(self._seconds * self.count / self._rows)), LONGEST_WAIT)
        return ApiError(429, "too many requests are waiting", code="queue_full", headers={"Retry-After": str(wait)})

    def _check(self, count: int, size: int) -> None:
        if count > self._max_requests or size > self._max_bytes:
            raise self.full()


class Ticket:
    """What one request has taken; `release` gives it back."""

    def __init__(self, admission: Admission) -> None:
        self.began = time.monotonic()
        self._admission = admission
        admission.open += 1
        self._choices = self._bytes = 0
        self._work: Future[Any] | None = None

    def take(self, choices: int = 0, size: int = 0) -> None:
        """So many more choices, so many more bytes. Raises ApiError 429."""
        self._admission.change(choices, size)
        self._choices += choices
        self._bytes += size

    def drop_bytes(self) -> None:
        """Body and fetched files are no longer held."""
        self._admission.change(0, -self._bytes)
        self._bytes = 0

    def keep_until(self, work: "Future[Any]") -> None:
        """Whatever becomes of the request, it takes its place until this work is done or was never begun."""
        self._work = work

    def release(self) -> None:
        """The request has ended."""
        if self._work is None or self._work.done():
            self._give_back()
        else:
            loop = asyncio.get_running_loop()
            self._work.add_done_callback(lambda work: loop.call_soon_threadsafe(self._give_back))

    def _give_back(self) -> None:
        if self._choices:
            self._admission.took(time.monotonic() - self.began)
        self._admission.change(-self._choices, -self._bytes)
        self._admission.open -= 1
