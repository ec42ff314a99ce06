"""Limits on concurrent requests, their bytes and their features; beyond them requests are refused at once."""

import asyncio
import math
import time
from concurrent.futures import Future
from typing import Any

from ernie_export.runtime.serving.http.errors import ApiError

MAX_RETRY_AFTER = 60  # seconds; the openai client takes no longer Retry-After


class Admission:
    """A counter of the choices and bytes of admitted requests. It is used from the event loop alone."""

    def __init__(self, max_requests: int, max_bytes: int, max_feature_bytes: int, max_num_seqs: int) -> None:
        """Start empty.

        Args:
            max_requests: Choices that run or wait together.
            max_bytes: Bytes of request bodies and fetched media held together.
            max_feature_bytes: Bytes of the features of images and videos that admitted requests hold together.
            max_num_seqs: Choices that run together, from which the Retry-After of a refusal is estimated.
        """
        self.count = 0  # choices of admitted requests
        self.open = 0  # admitted requests that have not ended
        self.draining = False
        self._bytes = 0
        self._feature_bytes = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._max_feature_bytes = max_feature_bytes
        self._max_num_seqs = max_num_seqs
        self._seconds = 1.0  # running mean of a request's time

    def admit(self) -> "Ticket":
        """Admit a request, which counts its choices once their number is known.

        Raises ApiError 429 if no further request is accepted now, 503 if the server is shutting down.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})
        if self.count >= self._max_requests or self._bytes > self._max_bytes:
            raise self.full()
        return Ticket(self)

    def change(self, count: int, size: int, feature_size: int) -> None:
        """Add choices and bytes, or subtract them if negative. Raises ApiError 429 where a sum exceeds its limit."""
        for change, total, limit in (
            (count, self.count, self._max_requests),
            (size, self._bytes, self._max_bytes),
            (feature_size, self._feature_bytes, self._max_feature_bytes),
        ):
            if change > 0 and total + change > limit:
                raise self.full()
        self.count += count
        self._bytes += size
        self._feature_bytes += feature_size

    def record_seconds(self, seconds: float) -> None:
        """Record how long a request took."""
        self._seconds += 0.1 * (seconds - self._seconds)

    def full(self) -> ApiError:
        """Return the error for a request beyond the limits, with an estimate of when to retry."""
        wait = min(max(1, math.ceil(self._seconds * self.count / self._max_num_seqs)), MAX_RETRY_AFTER)
        return ApiError(429, "too many requests are waiting", code="queue_full", headers={"Retry-After": str(wait)})


class Ticket:
    """The choices and bytes that one request counts for, until `release`."""

    def __init__(self, admission: Admission) -> None:
        self.began = time.monotonic()
        self._admission = admission
        admission.open += 1
        self._choices = 0
        self._bytes = 0
        self._feature_bytes = 0
        self._work: Future[Any] | None = None

    def take(self, choices: int = 0, size: int = 0, feature_size: int = 0) -> None:
        """Count so many more choices and bytes. Raises ApiError 429 beyond a limit."""
        self._admission.change(choices, size, feature_size)
        self._choices += choices
        self._bytes += size
        self._feature_bytes += feature_size

    def drop_bytes(self) -> None:
        """Stop counting bytes: the body and fetched files are no longer held."""
        self._admission.change(0, -self._bytes, 0)
        self._bytes = 0

    def keep_until(self, work: "Future[Any]") -> None:
        """Let the request count until `work` is done or cancelled, whenever `release` is called."""
        self._work = work

    def release(self) -> None:
        """End the request."""
        work, self._work = self._work, None  # whose exception's traceback may lead to this ticket
        if work is None or work.done():
            self._give_back()
        else:
            loop = asyncio.get_running_loop()
            work.add_done_callback(lambda work: loop.call_soon_threadsafe(self._give_back))

    def _give_back(self) -> None:
        if self._choices:
            self._admission.record_seconds(time.monotonic() - self.began)
        self._admission.change(-self._choices, -self._bytes, -self._feature_bytes)
        self._admission.open -= 1
