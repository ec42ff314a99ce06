"""Continuous batching: requests arrive at any time, and each step adds a token to all that run.

Any thread may step: a caller that waits for its own answer, or a server's thread that does nothing else (`run`).
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ernie_export.common.errors import ContextLengthExceeded, without_frames
from ernie_export.runtime.answer_text import Piece
from ernie_export.runtime.batch import LENGTH_STEP, Batch
from ernie_export.runtime.engines import Engine
from ernie_export.runtime.sampling import Logprobs
from ernie_export.runtime.scheduler_config import SchedulerConfig
from ernie_export.runtime.sequence import Sequence


class QueueFull(Exception):
    """Too many requests are waiting; a later attempt may succeed."""


@dataclass(frozen=True)
class Output:
    """The part of an answer that one step adds. The last output of a request, and only that, has a finish_reason.

    Attributes:
        text: Text that can be shown now; may be empty.
        token: The token's id; None where the answer ends without one.
        logprobs: Log probabilities of the token, if its sampling asks for them.
        finish_reason: "stop", "length", "cancelled", "timeout", or "error" and then `error` is the cause.
        error: The exception that ended the answer.
        reasoning: Thoughts before the answer that can be shown now.
        stop_reason: The stop string or the id of `stop_token_ids` that ended the answer; None where neither did.
    """

    text: str
    token: int | None = None
    logprobs: Logprobs | None = None
    finish_reason: str = ""
    error: BaseException | None = None
    reasoning: str = ""
    stop_reason: str | int | None = None


class Request:
    """A submitted request. `sequence` holds the prompt, and the answer generated so far."""

    def __init__(self, sequence: Sequence, on_output: Callable[[Output], None], deadline: float) -> None:
        self.sequence = sequence
        self.on_output = on_output
        self.deadline = deadline
        self.cancelled = False
        self.done = False

    def cancel(self) -> None:
        """Stop computing the answer and free its slot before the next step begins. Any thread may call this."""
        self.cancelled = True


class Reservation:
    """A place in the queue of a scheduler, for one request. `Scheduler.reserve` makes it."""

    def __init__(self, enqueue: Callable[[Request], None], deadline: float) -> None:
        """Create a reservation whose request is queued by `enqueue` and ends at `deadline` by `time.monotonic()`."""
        self._enqueue = enqueue
        self._deadline = deadline
        self.used = False

    def submit(self, sequence: Sequence, on_output: Callable[[Output], None]) -> Request:
        """Queue a sequence in the reserved place. A reservation takes one request.

        `on_output` is called by the thread that steps, and must return soon; where it raises, the request is cancelled.
        Raises ContextLengthExceeded for a sequence longer than the KV cache may become.
        """
        if self.used:
            raise RuntimeError("the reserved place is taken already")
        request = Request(sequence, on_output, self._deadline)
        self._enqueue(request)
        self.used = True
        return request


class Scheduler:
    """A queue of requests and the batch of those that run.

    `reserve`, `step` and `close` may be called from any thread; one thread steps at a time.
    """

    def __init__(self, engine: Engine[Any], config: SchedulerConfig) -> None:
        self._engine = engine
        self.config = config
        self._stepping = threading.Lock()  # guards _batch and _active
        self._batch = self._new_batch()
        self._active: dict[Sequence, Request] = {}
        self._changed = threading.Condition()  # guards the attributes below
        self._waiting: deque[Request] = deque()
        self._reserved = 0
        self._closed = False

    @property
    def running(self) -> int:
        """The number of requests that have a slot of the KV cache."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """The number of requests without a slot, those in preprocessing included."""
        return len(self._waiting) + self._reserved

    @property
    def max_cached_tokens(self) -> int:
        """The most tokens that the KV cache may hold, all requests together."""
        return self._batch.max_cached_tokens

    @property
    def cache_usage(self) -> float:
        """The fraction of the KV cache that running requests have filled, 0 to 1."""
        tokens = sum(len(sequence.prompt.input_ids) + len(sequence.tokens) for sequence in list(self._active))
        return tokens / self._batch.max_cached_tokens

    @contextmanager
    def reserve(self, timeout: float | None = None) -> Iterator["Reservation"]:
        """Hold a place in the queue while a request is prepared; without a `submit` in the block, release it.

        The answer ends `timeout` seconds from now. Raises QueueFull if too many requests wait.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            if self._closed:
                raise RuntimeError("the model is closed")
            if self.waiting >= self.config.max_queue:
                raise QueueFull(f"{self.waiting} requests are waiting")
            self._reserved += 1
        reservation = Reservation(self._enqueue, deadline)
        try:
            yield reservation
        finally:
            if not reservation.used:
                with self._changed:
                    self._reserved -= 1

    def _enqueue(self, request: "Request") -> None:
        """Turn a reservation into a waiting request. Raises ContextLengthExceeded if the KV cache cannot hold it."""
        length = request.sequence.num_tokens_reserved()
        maximum = self._batch.max_cached_tokens
        if length > maximum:
            limit = f"at most {maximum} tokens (kv_cache_bytes is {self.config.kv_cache_bytes})"
            raise ContextLengthExceeded("prompt and answer", limit, length)
        with self._changed:
            self._reserved -= 1
            self._waiting.append(request)
            self._changed.notify_all()

    def step(self) -> bool:
        """Prefill at most one chunk of a prompt, append a token to all that run, and return whether requests are left.

        An error of the engine in decode ends all requests that run, since the content of the cache is then unknown; one
        in prefill ends that request. Neither affects later requests.
        """
        with self._stepping:
            try:
                self._end_early()
                self._enter()
                self._prefill()
                self._decode()
            except BaseException as e:
                self._fail_all(e)
                if not isinstance(e, Exception):
                    raise
            return bool(self._active or self._waiting)

    def run(self) -> None:
        """Step whenever there are requests, until `close`. A server runs this in a thread of its own."""
        while not self._closed:
            if not self.step():
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closed)

    def close(self) -> None:
        """Refuse further requests and end the current ones."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._stepping:
            self._fail_all(RuntimeError("the model was closed"))

    def _new_batch(self) -> Batch[Any]:
        config = self.config
        return Batch(
            self._engine,
            num_slots=config.max_num_seqs,
            max_seq_len=LENGTH_STEP,
            cache_bytes=config.kv_cache_bytes,
            enable_prefix_caching=config.enable_prefix_caching,
            prefill_chunk=config.prefill_chunk,
            prefill_chunk_while_decoding=config.prefill_chunk_while_decoding,
        )

    def _end_early(self) -> None:
        now = time.monotonic()
        for request in [*self._active.values(), *self._waiting]:
            if request.cancelled or now >= request.deadline:
                self._end(request, "cancelled" if request.cancelled else "timeout")

    def _enter(self) -> None:
        """Give the request that has waited longest a slot, if one is free and no other is in prefill."""
        if not self._waiting or self._batch.entering is not None:
            return
        request = self._waiting[0]
        try:
            entered = self._batch.enter(request.sequence)
        except Exception as e:  # for example no memory for a larger cache; running sequences are unchanged
            self._end(request, "error", e)
            self._batch.forget()
            return
        if entered:
            with self._changed:
                self._waiting.popleft()
            self._active[request.sequence] = request

    def _prefill(self) -> None:
        sequence = self._batch.entering
        if sequence is None:
            return
        try:
            piece = self._batch.advance()
        except Exception as e:
            self._end(self._active[sequence], "error", e)
            return
        if piece is not None:
            self._emit(sequence, piece)

    def _decode(self) -> None:
        if self._batch.running:
            for sequence, piece in self._batch.step():
                self._emit(sequence, piece)

    def _emit(self, sequence: Sequence, piece: Piece) -> None:
        """Deliver the output that a step added to a sequence."""
        request = self._active[sequence]
        if sequence.finish_reason:
            del self._active[sequence]
        token = None if sequence.error or not sequence.tokens else sequence.tokens[-1]
        logprobs = sequence.logprobs[-1] if sequence.logprobs else None
        output = Output(
            text=piece.text,
            token=token,
            logprobs=logprobs,
            finish_reason=sequence.finish_reason,
            error=sequence.error,
            reasoning=piece.reasoning,
            stop_reason=sequence.stop_reason,
        )
        self._deliver(request, output)

    def _end(self, request: Request, reason: str, error: BaseException | None = None) -> None:
        """End a waiting or active request before its last token."""
        sequence = request.sequence
        sequence.finish_reason = reason
        sequence.error = error and without_frames(error)
        if self._active.pop(sequence, None) is None:
            with self._changed:
                self._waiting.remove(request)
        else:
            self._batch.remove(sequence)
        rest = sequence.text.finish()
        self._deliver(request, Output(rest.text, None, None, reason, error, rest.reasoning))

    def _fail_all(self, error: BaseException) -> None:
        self._batch = self._new_batch()
        for request in [*self._active.values(), *(self._waiting if self._closed else ())]:
            self._end(request, "error", error)

    def _deliver(self, request: Request, output: Output) -> None:
        request.done = bool(output.finish_reason)
        try:
            request.on_output(output)
        except Exception:  # nobody listens any more
            request.cancel()
