"""Figures for Prometheus, under vLLM's names where they mean the same, so that its dashboards serve here too."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """One server's figures, in a registry of their own."""

    def __init__(
        self,
        model_name: str,
        running: Callable[[], float],
        waiting: Callable[[], float],
        cache_usage: Callable[[], float],
    ) -> None:
        """`running`, `waiting`: choices that have a row, and those that have none yet; `cache_usage`: 0 to 1.

        They are asked when scraped.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        for name, about, function in (
            ("vllm:num_requests_running", "Choices that have a row of the KV cache.", running),
            ("vllm:num_requests_waiting", "Choices admitted that have no row yet.", waiting),
            ("vllm:kv_cache_usage_perc", "Share of the KV cache that running choices fill, 0 to 1.", cache_usage),
        ):
            Gauge(name, about, ["model_name"], registry=self.registry).labels(model_name).set_function(function)
        self.prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of admitted requests.", model_name)
        self.generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated.", model_name)
        self.prefix_queries = self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up.", model_name)
        self.prefix_hits = self._counter("vllm:prefix_cache_hits", "Prompt tokens found in the KV cache.", model_name)
        self.first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From a request's head to its first token.", _SECONDS, model_name
        )
        self.between_tokens = self._histogram(
            "vllm:inter_token_latency_seconds", "From one token of a choice to the next.", _SECONDS, model_name
        )
        self.whole_request = self._histogram(
            "vllm:e2e_request_latency_seconds", "From a request's head to its last token.", _SECONDS, model_name
        )
        self.prompt_length = self._histogram("vllm:request_prompt_tokens", "Prompt tokens.", _TOKENS, model_name)
        self.answer_length = self._histogram("vllm:request_generation_tokens", "Answer tokens.", _TOKENS, model_name)
        self._finished = Counter(
            "vllm:request_success", "Choices that came to an end.", ["model_name", "finished_reason"],
            registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "ernie:requests_refused", "Requests answered with an error, by its code.", ["model_name", "code"],
            registry=self.registry,
        )  # fmt: skip
        self._model_name = model_name

    def finished(self, reason: str) -> None:
        """A choice ended: stop, length, or abort where nobody waits for it any more."""
        self._finished.labels(self._model_name, reason).inc()

    def refused(self, code: str) -> None:
        """A request was answered with an error."""
        self._refused.labels(self._model_name, code).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text form."""
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, model_name: str) -> Counter:
        return Counter(name, about, ["model_name"], registry=self.registry).labels(model_name)

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...], model_name: str) -> Histogram:
        made = Histogram(name, about, ["model_name"], registry=self.registry, buckets=buckets)
        return made.labels(model_name)
