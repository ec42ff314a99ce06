"""Measure how fast a bundle answers, from the time at which each token of each request came.

The metrics have the names and the definitions of vLLM's `bench serve` where it has them; those of images are named
after AIPerf's (image_throughput, image_latency).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ernie_export.common.errors import InvalidValue
from ernie_export.runtime.bench.workload import Prompts, Workload
from ernie_export.runtime.feature_cache import encode_media
from ernie_export.runtime.pipeline import Model
from ernie_export.runtime.scheduler import Output
from ernie_export.runtime.scheduler_config import SchedulerConfig

PERCENTILES = (95, 99)

Clock = Callable[[], float]


@dataclass(frozen=True)
class RequestTimes:
    """The times of one request.

    Attributes:
        prompt_tokens: Tokens of its prompt.
        times: When each token of the answer came, in seconds after the request arrived.
    """

    prompt_tokens: int
    times: tuple[float, ...]

    @property
    def ttft(self) -> float:
        """Time to first token: waiting, preprocessing, encoding of images, prefill."""
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
    rounds: tuple[tuple[RequestTimes, ...], ...]

    @property
    def requests(self) -> tuple[RequestTimes, ...]:
        """Requests of all rounds."""
        return tuple(request for requests in self.rounds for request in requests)

    def metrics(self) -> dict[str, Any]:
        """Return latencies in milliseconds over all requests (ITL: over all tokens), throughputs in tokens a second.

        output_throughput and total_token_throughput divide by the time of the rounds, prefill included;
        decode_throughput, which vLLM does not have, counts only while all requests of a round decode; it is None if
        they never did, because the first had ended when the last came out of prefill. Lists of a value for each request
        follow: input_lens, output_lens, and in seconds ttfts and itls.
        """
        requests = self.requests
        seconds = sum(max(request.times[-1] for request in round) for round in self.rounds)
        total_input = sum(request.prompt_tokens for request in requests)
        total_output = sum(len(request.times) for request in requests)
        metrics: dict[str, Any] = {
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
        metrics |= statistics("ttft_ms", [request.ttft for request in requests])
        metrics |= statistics("tpot_ms", [request.tpot for request in requests])
        metrics |= statistics("itl_ms", [itl for request in requests for itl in request.itls])
        metrics |= statistics("e2el_ms", [request.times[-1] for request in requests])
        return metrics | {
            "input_lens": [request.prompt_tokens for request in requests],
            "output_lens": [len(request.times) for request in requests],
            "ttfts": [request.ttft for request in requests],
            "itls": [list(request.itls) for request in requests],
        }

    def _decode_throughput(self) -> float | None:
        tokens = 0
        seconds = 0.0
        for requests in self.rounds:
            began = max(request.ttft for request in requests)
            later = [[time for time in request.times if time > began] for request in requests]
            steps = min(map(len, later))  # until the first request has its last token
            if steps:
                tokens += steps * len(requests)
                seconds += max(times[steps - 1] for times in later) - began
        return tokens / seconds if tokens else None


@dataclass(frozen=True)
class ImageTimes:
    """The times of images of one size, each encoded alone.

    Attributes:
        width: Pixels.
        height: Pixels.
        patches: Patches of an image.
        tokens: Its tokens in a prompt.
        preprocess: Seconds to resize and normalise each image.
        encode: Seconds to encode each image.
    """

    width: int
    height: int
    patches: int
    tokens: int
    preprocess: tuple[float, ...]
    encode: tuple[float, ...]

    def metrics(self) -> dict[str, Any]:
        """Return image_throughput in images a second and image_latency_ms, both of the encoder without resizing."""
        size = {"width": self.width, "height": self.height, "patches": self.patches, "tokens": self.tokens}
        metrics: dict[str, Any] = size | {"image_throughput": len(self.encode) / sum(self.encode)}
        metrics |= statistics("image_latency_ms", self.encode)
        return metrics | statistics("image_preprocess_ms", self.preprocess)


@dataclass(frozen=True)
class EncodedImage:
    """The measurement of one image.

    Attributes:
        grid: (1, rows, columns) in patches.
        preprocess: Seconds to resize and normalise it.
        encode: Seconds to encode it.
    """

    grid: tuple[int, int, int]
    preprocess: float
    encode: float


def statistics(name: str, seconds: "list[float] | tuple[float, ...]") -> dict[str, float]:
    """Return mean_NAME, median_NAME, std_NAME, p95_NAME and p99_NAME in milliseconds.

    Percentiles interpolate linearly.
    """
    values = np.array(seconds) * 1000
    ranks = {f"p{rank}_{name}": float(np.percentile(values, rank)) for rank in PERCENTILES}
    moments = {f"mean_{name}": values.mean(), f"median_{name}": np.median(values), f"std_{name}": values.std()}
    return {key: float(value) for key, value in moments.items()} | ranks


def measure(
    model: Model, workload: Workload, advance: Callable[[], None], clock: Clock = time.perf_counter
) -> tuple[tuple[BatchTimes, ...], tuple[ImageTimes, ...]]:
    """Measure every batch size and every size of images.

    They take turns, round after round, so that a slow minute of the machine affects them all.

    Args:
        model: The model.
        workload: What is measured.
        advance: Called after each batch and each image, `steps(workload)` times.
        clock: Returns the time in seconds.

    Raises:
        InvalidValue: The model cannot serve the workload.
    """
    prompts = Prompts(model, workload)
    rounds: dict[int, list[tuple[RequestTimes, ...]]] = {batch: [] for batch in workload.batches}
    encoded: dict[tuple[int, int], list[EncodedImage]] = {size: [] for size in workload.images}
    for number in range(workload.warmup + workload.rounds):
        counted = number >= workload.warmup
        for batch in rounds:
            requests = run_round(model, prompts, workload, batch, clock)
            if counted:
                rounds[batch].append(requests)
            advance()
        for size in encoded:
            image = encode(model, prompts.image(*size), clock)
            if counted:
                encoded[size].append(image)
            advance()
    merge = model.manifest.model.spatial_merge_size
    images = [image_times(width, height, times, merge) for (width, height), times in encoded.items()]
    return tuple(BatchTimes(batch, tuple(requests)) for batch, requests in rounds.items()), tuple(images)


def image_times(width: int, height: int, encoded: list[EncodedImage], merge: int) -> ImageTimes:
    """Combine measurements of images of one size.

    Args:
        width: Pixels.
        height: Pixels.
        encoded: One entry for each image.
        merge: Patches that a token merges along each side.
    """
    _, rows, columns = encoded[0].grid
    return ImageTimes(
        width=width,
        height=height,
        patches=rows * columns,
        tokens=rows * columns // merge**2,
        preprocess=tuple(image.preprocess for image in encoded),
        encode=tuple(image.encode for image in encoded),
    )


def steps(workload: Workload) -> int:
    """Return how many times `measure` calls `advance`."""
    return (workload.warmup + workload.rounds) * (len(workload.batches) + len(set(workload.images)))


def scheduler_config(workload: Workload) -> SchedulerConfig:
    """Return the scheduler's configuration for measuring: a round runs together, nothing is reused."""
    most = max(workload.batches)
    return SchedulerConfig(
        max_num_seqs=most, max_queue=most, kv_cache_bytes=2**62, feature_cache_bytes=0, enable_prefix_caching=False
    )


def run_round(model: Model, prompts: Prompts, workload: Workload, batch: int, clock: Clock) -> tuple[RequestTimes, ...]:
    """Answer requests that arrive together, greedily and to exactly the workload's length.

    Args:
        model: The model.
        prompts: Makes the prompts.
        workload: Says how long the answers are.
        batch: Number of requests.
        clock: Returns the time in seconds.

    Raises:
        InvalidValue: The KV cache of so many requests does not fit the memory.
    """
    length = workload.output_tokens
    conversations = [prompts.next() for _ in range(batch)]
    times: list[list[float]] = [[] for _ in conversations]
    began = clock()

    def record(request_times: list[float], output: Output) -> None:
        request_times.append(clock() - began)

    requests = [
        model.submit(messages, partial(record, request_times), min_new_tokens=length, max_new_tokens=length)
        for messages, request_times in zip(conversations, times, strict=True)
    ]
    while model.scheduler.step():
        pass
    answered = []
    for request, request_times in zip(requests, times, strict=True):
        error = request.sequence.error
        if isinstance(error, MemoryError):
            tokens = request.sequence.num_tokens_reserved()
            expected = f"{batch} requests of {tokens} tokens whose KV cache fits the memory"
            raise InvalidValue("--batch", expected, "too little memory") from error
        if error is not None:
            raise error
        answered.append(RequestTimes(len(request.sequence.prompt.input_ids), tuple(request_times)))
    return tuple(answered)


def encode(model: Model, image: Image.Image, clock: Clock) -> EncodedImage:
    """Preprocess and encode one image, and measure both."""
    began = clock()
    pixels, grids = model.preprocessor.images([image])
    ready = clock()
    grid = (int(grids[0, 0]), int(grids[0, 1]), int(grids[0, 2]))
    encode_media(model.engine, [pixels], [grid], model.manifest.model.spatial_merge_size)
    return EncodedImage(grid, ready - began, clock() - ready)
