"""What becomes of one choice's outputs: they go from the stepping thread to the event loop, and are measured."""

import asyncio
import time

from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.sequence import Sequence
from ernie_export.runtime.serving.http.metrics import Metrics


class LongestAnswer:
    """The longest of the choices of one request, recorded once all have ended."""

    def __init__(self, choices: int, metrics: Metrics) -> None:
        self._left = choices
        self._longest = 0
        self._metrics = metrics

    def ended(self, tokens: int) -> None:
        """Note that a choice of so many tokens has ended. The stepping thread alone calls this."""
        self._left -= 1
        self._longest = max(self._longest, tokens)
        if not self._left:
            self._metrics.longest_answer.observe(self._longest)


class Listener:
    """A callback that hands one choice's outputs from the stepping thread to the event loop, and measures them."""

    def __init__(
        self,
        index: int,
        sequence: Sequence,
        loop: asyncio.AbstractEventLoop,
        outputs: "asyncio.Queue[tuple[int, Output]]",
        metrics: Metrics,
        began: float,
        longest: LongestAnswer,
        leads: bool,
    ) -> None:
        """Start to listen.

        Args:
            index: The choice's number.
            sequence: Its sequence.
            loop: The event loop.
            outputs: Where the loop takes the outputs from.
            metrics: What is measured.
            began: When the request's head came, by `time.monotonic()`.
            longest: Of the request's choices.
            leads: Whether it is the first choice of its prompt, whose tokens are counted once.
        """
        self._index = index
        self._sequence = sequence
        self._loop = loop
        self._outputs = outputs
        self._metrics = metrics
        self._began = began
        self._longest = longest
        self._leads = leads
        self._queued = time.monotonic()
        self._first = 0.0  # time of the first token
        self._last = 0.0  # time of the last token
        self._tokens = 0

    def __call__(self, output: Output) -> None:
        """Take an output, as the scheduler calls it."""
        now = time.monotonic()
        if output.token is not None:
            self._metrics.generation_tokens.inc()
            if self._tokens:
                self._metrics.between_tokens.observe(now - self._last)
            else:
                self._record_first_token(now)
            self._tokens += 1
            self._last = now
        if output.finish_reason:
            self._record_end(output.finish_reason, now)
        self._loop.call_soon_threadsafe(self._outputs.put_nowait, (self._index, output))

    def _record_first_token(self, now: float) -> None:
        self._first = now
        self._metrics.prefix_queries.inc(len(self._sequence.prompt.input_ids))
        self._metrics.prefix_hits.inc(self._sequence.reused)
        if self._leads:
            self._metrics.cached_tokens.inc(self._sequence.reused)
        self._metrics.queue_time.observe(self._sequence.entered - self._queued)
        self._metrics.prefill_time.observe(now - self._sequence.entered)
        if self._index == 0:
            self._metrics.first_token.observe(now - self._began)

    def _record_end(self, reason: str, now: float) -> None:
        self._metrics.finished({"cancelled": "abort", "timeout": "abort"}.get(reason, reason))
        self._metrics.whole_request.observe(now - self._began)
        self._metrics.answer_length.observe(self._tokens)
        self._longest.ended(self._tokens)
        if self._tokens:
            self._metrics.decode_time.observe(now - self._first)
            self._metrics.inference_time.observe(now - self._sequence.entered)
