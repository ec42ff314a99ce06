"""Prometheus metrics, under vLLM's names where they mean the same, so that its dashboards work here too."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class CacheCounts(Protocol):
    """What is counted of a cache.

    Attributes:
        queries: Items looked up.
        hits: Those that were found.
    """

    queries: int
    hits: int


@dataclass(frozen=True)
class CacheSize:
    """What does not change of the KV cache.

    Attributes:
        tokens: Most tokens that it holds, all choices together.
        max_model_len: Most tokens of one prompt and its answer.
        bytes: Most bytes that it takes.
        prefix_caching: Whether prompts reuse what it holds of earlier ones.
    """

    tokens: int
    max_model_len: int
    bytes: int
    prefix_caching: bool

    def labels(self) -> dict[str, str]:
        """Return the labels of vLLM's `cache_config_info` that mean something here.

        The cache has no blocks: a token is one, so that their number times their size is what the cache holds, as
        autoscalers and routers reckon.
        """
        return {
            "block_size": "1",
            "num_gpu_blocks": str(self.tokens),
            "kv_cache_size_tokens": str(self.tokens),
            "kv_cache_max_concurrency": str(self.tokens / self.max_model_len),
            "kv_cache_memory_bytes": str(self.bytes),
            "enable_prefix_caching": str(self.prefix_caching),
        }


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(
        self,
        model_name: str,
        running: Callable[[], float],
        waiting: Callable[[], float],
        cache_usage: Callable[[], float],
        features: CacheCounts,
        cache: CacheSize,
    ) -> None:
        """Register the metrics. The callbacks are called at each scrape.

        Args:
            model_name: The label of every metric.
            running: Returns the number of choices that have a slot of the KV cache.
            waiting: Returns the number of choices admitted without a slot.
            cache_usage: Returns the fraction of the KV cache in use, 0 to 1.
            features: The cache of features, whose counts are read.
            cache: The size of the KV cache.
        """
        self._model_name = model_name
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gauge("vllm:num_requests_running", "Choices that have a slot of the KV cache.", running)
        self._gauge("vllm:num_requests_waiting", "Choices admitted that have no slot yet.", waiting)
        self._gauge("vllm:kv_cache_usage_perc", "Fraction of the KV cache that running choices fill.", cache_usage)
        self._info("vllm:cache_config_info", "Always 1; the labels say what the KV cache holds.", cache.labels())
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of admitted requests.")
        self.cached_tokens = self._counter(
            "vllm:prompt_tokens_cached", "Those of them that the KV cache held, so that they were not computed."
        )
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.")
        self.prefix_queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up.")
        self.prefix_hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens found in the KV cache.")
        self._counter("vllm:num_preemptions", "Always 0: what has a slot of the KV cache keeps it to its end.")
        self.registry.register(_FeatureCounts(features, model_name))
        self.first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From a request's head to its first token.", _SECONDS
        )
        self.between_tokens = self._histogram(
            "vllm:inter_token_latency_seconds", "From one token of a choice to the next.", _SECONDS
        )
        self.whole_request = self._histogram(
            "vllm:e2e_request_latency_seconds", "From a request's head to its last token.", _SECONDS
        )
        self.queue_time = self._histogram(
            "vllm:request_queue_time_seconds", "From a choice's queueing to its slot of the KV cache.", _SECONDS
        )
        self.prefill_time = self._histogram(
            "vllm:request_prefill_time_seconds", "From a choice's slot to its first token.", _SECONDS
        )
        self.decode_time = self._histogram(
            "vllm:request_decode_time_seconds", "From a choice's first token to its last.", _SECONDS
        )
        self.inference_time = self._histogram(
            "vllm:request_inference_time_seconds", "From a choice's slot to its last token.", _SECONDS
        )
        self.prompt_length = self._histogram("vllm:request_prompt_tokens", "Prompt tokens.", _TOKENS)
        self.answer_length = self._histogram("vllm:request_generation_tokens", "Answer tokens.", _TOKENS)
        self.longest_answer = self._histogram(
            "vllm:request_max_num_generation_tokens", "Tokens of the longest choice of a request.", _TOKENS
        )
        self._finished = self._counter_by("finished_reason", "vllm:request_success", "Choices that came to an end.")
        self._refused = self._counter_by(
            "code", "ernie:requests_refused", "Requests answered with an error, by its code."
        )

    def finished(self, reason: str) -> None:
        """Count a choice that has ended: stop, length, or abort for one that was cancelled or timed out."""
        self._finished.labels(self._model_name, reason).inc()

    def refused(self, code: str) -> None:
        """Count a request that is answered with an error."""
        self._refused.labels(self._model_name, code).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, about: str, function: Callable[[], float]) -> None:
        Gauge(name, about, ["model_name"], registry=self.registry).labels(self._model_name).set_function(function)

    def _info(self, name: str, about: str, labels: dict[str, str]) -> None:
        labels = {"model_name": self._model_name, **labels}
        Gauge(name, about, list(labels), registry=self.registry).labels(**labels).set(1)

    def _counter(self, name: str, about: str) -> Counter:
        return Counter(name, about, ["model_name"], registry=self.registry).labels(self._model_name)

    def _counter_by(self, label: str, name: str, about: str) -> Counter:
        return Counter(name, about, ["model_name", label], registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, about, ["model_name"], registry=self.registry, buckets=buckets)
        return histogram.labels(self._model_name)


class _FeatureCounts(Collector):
    """The counts of the feature cache, read at each scrape."""

    def __init__(self, features: CacheCounts, model_name: str) -> None:
        self._features = features
        self._model_name = model_name

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counters."""
        for name, about, count in (
            ("vllm:mm_cache_queries", "Images and videos looked up in the feature cache.", self._features.queries),
            ("vllm:mm_cache_hits", "Images and videos found in the feature cache.", self._features.hits),
        ):
            family = CounterMetricFamily(name, about, labels=["model_name"])
            family.add_metric([self._model_name], count)
            yield family
