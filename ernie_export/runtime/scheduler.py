"""Requests answered together: they come at any time, and each step serves all of them (continuous batching).

Anyone may step: a caller who waits for his own answer, or a thread of a server that does nothing else (`run`).
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ernie_export.common.errors import ContextLengthExceeded, InvalidValue
from ernie_export.runtime.batch import (
    LENGTH_STEP,
    PREFILL_CHUNK,
    PREFILL_CHUNK_WHILE_DECODING,
    Batch,
    Sequence,
)
from ernie_export.runtime.engines import Engine
from ernie_export.runtime.sampling import Logprobs


@dataclass(frozen=True)
class SchedulerConfig:
    """The limits of a scheduler: concurrency and memory.

    Attributes:
        max_num_seqs: Sequences that decode together.
        max_queue: Requests that wait for a slot before further ones are refused.
        kv_cache_bytes: The most that the KV cache of running and finished requests may take. Memory is allocated as
            tokens arrive.
        feature_cache_bytes: The most that cached features of images and videos may take.
        enable_prefix_caching: Whether a prompt reuses the keys and values that the cache still holds of an earlier one.
        prefill_chunk: Most prompt tokens in one prefill call.
        prefill_chunk_while_decoding: The same while other sequences decode, which wait for it.
    """

    max_num_seqs: int = 16
    max_queue: int = 64
    kv_cache_bytes: int = 4 * 2**30
    feature_cache_bytes: int = 512 * 2**20
    enable_prefix_caching: bool = True
    prefill_chunk: int = PREFILL_CHUNK
    prefill_chunk_while_decoding: int = PREFILL_CHUNK_WHILE_DECODING

    def __post_init__(self) -> None:
        for name, minimum in _MINIMUM.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise InvalidValue(name, f"a whole number of at least {minimum}", repr(value))


_MINIMUM = {
    "max_num_seqs": 1,
    "max_queue": 1,
    "kv_cache_bytes": 1,
    "feature_cache_bytes": 0,
    "prefill_chunk": 1,
    "prefill_chunk_while_decoding": 1,
}
DEFAULTS = SchedulerConfig()


class QueueFull(Exception):
    """Too many requests wait: try again later."""


@dataclass(frozen=True)
class Output:
    """What one step adds to an answer. The last one of a request, and only that, has a finish_reason.

    text: what can be shown now, perhaps nothing; token: the id, None where the answer is cut without one.
    finish_reason: "stop", "length", "cancelled", "timeout" or "error", and then `error` is the reason.
    """

    text: str
    token: int | None = None
    logprobs: Logprobs | None = None
    finish_reason: str = ""
    error: BaseException | None = None


class Request:
    """A request in the scheduler's hands. `sequence` has the prompt, and the answer as far as it has come."""

    def __init__(self, sequence: Sequence, deliver: Callable[[Output], None], deadline: float) -> None:
        self.sequence = sequence
        self.deliver = deliver
        self.deadline = deadline
        self.cancelled = False
        self.done = False

    def cancel(self) -> None:
        """From any thread: nothing more is computed for it, and its row is free, before the next step begins."""
        self.cancelled = True


class Scheduler:
    """Owns the batch. `submit`, `step` and `close` may be called from any thread; one thread steps at a time."""

    def __init__(self, engine: Engine, config: SchedulerConfig) -> None:
        self._engine = engine
        self.config = config
        self._stepping = threading.Lock()  # guards the batch and what is active
        self._batch = self._new_batch()
        self._active: dict[Sequence, Request] = {}
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Request] = deque()
        self._preparing = 0
        self._closed = False

    @property
    def running(self) -> int:
        """Requests that have a row of the KV cache."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Requests that have none yet, those in preprocessing included."""
        return len(self._waiting) + self._preparing

    @property
    def cache_usage(self) -> float:
        """The share of what the KV cache may hold that running requests have filled, 0 to 1."""
        tokens = sum(len(one.prompt.input_ids) + len(one.tokens) for one in list(self._active))
        return tokens / self._batch.max_cached_tokens

    def submit(
        self, make: Callable[[], Sequence], deliver: Callable[[Output], None], timeout: float | None = None
    ) -> Request:
        """Queue what `make` returns; it is called here, in the caller's thread, once there is a place.

        `deliver` is called by the thread that steps, and must return soon; where it raises, the request is cancelled.
        `timeout`: seconds from now. Raises QueueFull; UserError for a sequence longer than the KV cache may become.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with self._changed:
            if self._closed:
                raise RuntimeError("the model is closed")
            if self.waiting >= self.config.max_queue:
                raise QueueFull(f"{self.waiting} requests are waiting")
            self._preparing += 1
        try:
            request = Request(make(), deliver, deadline)
            found, most = request.sequence.num_tokens_reserved(), self._batch.max_cached_tokens
            if found > most:
                limit = f"at most {most} tokens (kv_cache_bytes is {self.config.kv_cache_bytes})"
                raise ContextLengthExceeded("prompt and answer", limit, found)
        except BaseException:
            with self._changed:
                self._preparing -= 1
            raise
        with self._changed:
            self._preparing -= 1
            self._waiting.append(request)
            self._changed.notify_all()
        return request

    def step(self) -> bool:
        """Prefill at most one chunk of a prompt and append a token to all that run; returns whether anything is left.

        A fault of the engine in decode ends all that run, since what the cache holds is then not known; one in prefill
        ends the one request. Neither hurts what comes later.
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
        """Step whenever there is something to do, until `close`: for a thread that does nothing else."""
        while not self._closed:
            if not self.step():
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._closed)

    def close(self) -> None:
        """Take no more requests and end those there are."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with self._stepping:
            self._fail_all(RuntimeError("the model was closed"))

    def _new_batch(self) -> Batch:
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
        """Give the request that has waited longest a row, if one is free and no other is in prefill."""
        if not self._waiting or self._batch.entering is not None:
            return
        request = self._waiting[0]
        try:
            entered = self._batch.enter(request.sequence)
        except Exception as e:  # such as memory for a larger cache; the rows that run were not touched
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
            self._hand_on(sequence, piece)

    def _decode(self) -> None:
        if self._batch.running:
            for sequence, piece in self._batch.step():
                self._hand_on(sequence, piece)

    def _hand_on(self, sequence: Sequence, piece: str) -> None:
        """Deliver what a step added to a sequence."""
        request = self._active[sequence]
        if sequence.finish_reason:
            del self._active[sequence]
        token = None if sequence.error else sequence.tokens[-1]
        logprobs = sequence.logprobs[-1] if sequence.logprobs else None
        self._deliver(request, Output(piece, token, logprobs, sequence.finish_reason, sequence.error))

    def _end(self, request: Request, reason: str, error: BaseException | None = None) -> None:
        """End a request, waiting or active, otherwise than by its last token."""
        sequence = request.sequence
        sequence.finish_reason, sequence.error = reason, error
        if self._active.pop(sequence, None) is None:
            with self._changed:
                self._waiting.remove(request)
        else:
            self._batch.remove(sequence)
        self._deliver(request, Output(sequence.text.finish(), None, None, reason, error))

    def _fail_all(self, error: BaseException) -> None:
        self._batch = self._new_batch()
        for request in [*self._active.values(), *(self._waiting if self._closed else ())]:
            self._end(request, "error", error)

    def _deliver(self, request: Request, output: Output) -> None:
        request.done = bool(output.finish_reason)
        try:
            request.deliver(output)
        except Exception:  # its listener is gone
            request.cancel()
