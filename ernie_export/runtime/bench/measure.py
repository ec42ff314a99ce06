"""How fast a bundle answers: when each token of each request came, and what follows from that.

The figures have the names and the definitions of vLLM's `bench serve` where it has them; those of pictures are named
after AIPerf's (image_throughput, image_latency).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime.bench.workload import Prompts, Workload
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.scheduler import Output, SchedulerConfig

PERCENTILES = (95, 99)

Clock = Callable[[], float]


@dataclass(frozen=True)
class Answer:
    """One request, answered. `times`: when each of its tokens was there, in seconds after the request arrived."""

    prompt_tokens: int
    times: tuple[float, ...]

    @property
    def ttft(self) -> float:
        """Time to first token: waiting, preprocessing, the pictures' encoding, prefill."""
        return self.times[0]

    @property
    def itls(self) -> tuple[float, ...]:
        """Inter-token latencies: from each token to the next."""
        return tuple(np.diff(self.times).tolist())

    @property
    def tpot(self) -> float:
        """Time per output token after the first."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


@dataclass(frozen=True)
class BatchTimes:
    """Rounds of `batch` requests that arrived together."""

    batch: int
    rounds: tuple[tuple[Answer, ...], ...]

    @property
    def requests(self) -> tuple[Answer, ...]:
        """Those of all rounds."""
        return tuple(request for requests in self.rounds for request in requests)

    def figures(self) -> dict[str, Any]:
        """Latencies in milliseconds over all requests (ITL: over all tokens), throughputs in tokens a second.

        output_throughput and total_token_throughput divide by the whole of the rounds, prefill included;
        decode_throughput, which is ours, counts only while all requests of a round decode; None if they never did,
        because the first had ended when the last came out of prefill. Lists of a value for each request follow:
        input_lens, output_lens, and in seconds ttfts and itls.
        """
        requests = self.requests
        seconds = sum(max(request.times[-1] for request in round) for round in self.rounds)
        total_input = sum(request.prompt_tokens for request in requests)
        total_output = sum(len(request.times) for request in requests)
        figures: dict[str, Any] = {
            "max_concurrency": self.batch,
            "num_prompts": len(requests),
            "completed": len(requests),
            "duration": seconds,
            "total_input_tokens": total_input,
            "total_output_tokens": total_output,
            "request_throughput": len(requests) / seconds,
            "output_throughput": total_output / seconds,
            "total_token_throughput": (total_input + total_output) / seconds,
            "decode_throughput": self._decode_throughput(),
        }
        figures |= statistics("ttft_ms", [request.ttft for request in requests])
        figures |= statistics("tpot_ms", [request.tpot for request in requests])
        figures |= statistics("itl_ms", [itl for request in requests for itl in request.itls])
        figures |= statistics("e2el_ms", [request.times[-1] for request in requests])
        return figures | {
            "input_lens": [request.prompt_tokens for request in requests],
            "output_lens": [len(request.times) for request in requests],
            "ttfts": [request.ttft for request in requests],
            "itls": [list(request.itls) for request in requests],
        }

    def _decode_throughput(self) -> float | None:
        tokens, seconds = 0, 0.0
        for requests in self.rounds:
            began = max(request.ttft for request in requests)
            later = [[time for time in request.times if time > began] for request in requests]
            steps = min(map(len, later))  # until the first request has its last token
            if steps:
                tokens += steps * len(requests)
                seconds += max(times[steps - 1] for times in later) - began
        return tokens / seconds if tokens else None


@dataclass(frozen=True)
class PictureTimes:
    """Pictures of one size, each encoded alone: its patches, its tokens in a prompt, seconds of both steps."""

    width: int
    height: int
    patches: int
    tokens: int
    preprocess: tuple[float, ...]
    encode: tuple[float, ...]

    def figures(self) -> dict[str, Any]:
        """image_throughput in pictures a second and image_latency_ms: the encoder alone, resizing left out."""
        size = {"width": self.width, "height": self.height, "patches": self.patches, "tokens": self.tokens}
        figures: dict[str, Any] = size | {"image_throughput": len(self.encode) / sum(self.encode)}
        figures |= statistics("image_latency_ms", self.encode)
        return figures | statistics("image_preprocess_ms", self.preprocess)


def statistics(name: str, seconds: "list[float] | tuple[float, ...]") -> dict[str, float]:
    """mean_NAME, median_NAME, std_NAME, p95_NAME and p99_NAME, in milliseconds (percentiles interpolate linearly)."""
    values = np.array(seconds) * 1000
    ranks = {f"p{rank}_{name}": float(np.percentile(values, rank)) for rank in PERCENTILES}
    spread = {f"mean_{name}": values.mean(), f"median_{name}": np.median(values), f"std_{name}": values.std()}
    return {key: float(value) for key, value in spread.items()} | ranks


def measure(
    model: Model, workload: Workload, advance: Callable[[], None], clock: Clock = time.perf_counter
) -> tuple[tuple[BatchTimes, ...], tuple[PictureTimes, ...]]:
    """Measure every batch size and every size of picture; `advance` is called after each, `steps(workload)` times.

    They take turns, round after round, so that a slow minute of the machine meets them all. Raises UserError for a
    workload that the model cannot serve.
    """
    prompts = Prompts(model, workload)
    rounds: dict[int, list[tuple[Answer, ...]]] = {batch: [] for batch in workload.batches}
    encoded: dict[tuple[int, int], list[tuple[float, float]]] = {size: [] for size in workload.images}
    grids: dict[tuple[int, int], tuple[int, int, int]] = {}
    for number in range(workload.warmup + workload.rounds):
        for batch in rounds:
            requests = answer(model, prompts, workload, batch, clock)
            if number >= workload.warmup:
                rounds[batch].append(requests)
            advance()
        for size in encoded:
            grids[size], seconds = encode(model, prompts.picture(*size), clock)
            if number >= workload.warmup:
                encoded[size].append(seconds)
            advance()
    merge = model.manifest.model.spatial_merge_size
    pictures = []
    for (width, height), both in encoded.items():
        _, rows, columns = grids[width, height]
        preprocess, encoder = zip(*both, strict=True)
        tokens = rows * columns // merge**2
        pictures.append(PictureTimes(width, height, rows * columns, tokens, preprocess, encoder))
    return tuple(BatchTimes(batch, tuple(found)) for batch, found in rounds.items()), tuple(pictures)


def steps(workload: Workload) -> int:
    """How many times `measure` reports an advance."""
    return (workload.warmup + workload.rounds) * (len(workload.batches) + len(set(workload.images)))


def scheduler_config(workload: Workload) -> SchedulerConfig:
    """Return the scheduler's configuration for measuring: a round runs together, nothing is reused."""
    most = max(workload.batches)
    return SchedulerConfig(
        max_num_seqs=most, max_queue=most, kv_cache_bytes=2**62, feature_cache_bytes=0, enable_prefix_caching=False
    )


def answer(model: Model, prompts: Prompts, workload: Workload, batch: int, clock: Clock) -> tuple[Answer, ...]:
    """One round: `batch` requests that arrive together, answered greedily to exactly the workload's length."""
    length = workload.output_tokens
    conversations = [prompts.next() for _ in range(batch)]
    times: list[list[float]] = [[] for _ in conversations]
    began = clock()

    def note(seen: list[float], output: Output) -> None:
        seen.append(clock() - began)

    requests = [
        model.submit(messages, partial(note, seen), min_new_tokens=length, max_new_tokens=length)
        for messages, seen in zip(conversations, times, strict=True)
    ]
    while model.scheduler.step():
        pass
    answers = []
    for request, seen in zip(requests, times, strict=True):
        if isinstance(request.sequence.error, MemoryError):
            tokens = request.sequence.num_tokens_reserved()
            expected = f"{batch} requests of {tokens} tokens whose KV cache fits the memory"
            raise UserError(f"--batch: expected {expected}, found no room") from request.sequence.error
        if request.sequence.error is not None:
            raise request.sequence.error
        answers.append(Answer(len(request.sequence.prompt.input_ids), tuple(seen)))
    return tuple(answers)


def encode(model: Model, picture: Image.Image, clock: Clock) -> tuple[tuple[int, int, int], tuple[float, float]]:
    """A picture's grid (1, rows, columns) in patches, and seconds: to resize and normalise it, to encode it."""
    began = clock()
    pixels, grids = model.preprocessor.images([picture])
    ready = clock()
    grid = (int(grids[0, 0]), int(grids[0, 1]), int(grids[0, 2]))
    encode_media(model.engine, [pixels], [grid], model.manifest.model.spatial_merge_size)
    return grid, (ready - began, clock() - ready)
