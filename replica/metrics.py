"""All of the replica's Prometheus metrics, under vLLM's names and labels, so that dashboards,
autoscalers and routers made for vLLM read them unchanged; `warmroute:` where vLLM has none.

Source: vllm/v1/metrics/loggers.py; buckets as vLLM 0.32 exports them.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from replica.config import ReplicaConfig
from replica.engine.messages import Stats

_LABELS = ("model_name", "engine")

_FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FINISHED_REASONS = ("stop", "length", "abort", "error")

# Counter name → field of Stats that holds its total.
_TOTALS = {
    "vllm:prompt_tokens": ("prompt_tokens", "Prompt tokens of admitted requests."),
    "vllm:generation_tokens": ("generated_tokens", "Tokens generated."),
    "vllm:prefix_cache_queries": ("prefix_queries", "Prompt tokens looked up in the cache."),
    "vllm:prefix_cache_hits": ("prefix_hits", "Prompt tokens found in the cache."),
    "vllm:prompt_tokens_cached": ("prefix_hits", "Prompt tokens found in the cache."),
    # vLLM's prompt_tokens_recomputed is something else: cached tokens computed for their logits.
    "warmroute:recomputed_tokens": ("recomputed_tokens", "Tokens computed again after preemption."),
    "warmroute:compiled_kernels": ("compiled_kernels", "GPU kernels compiled; all before serving."),
    "vllm:num_preemptions": ("preemptions", "Sequences that lost their blocks while running."),
}


class ReplicaMetrics:
    """One replica's metrics in a registry of its own."""

    def __init__(self, config: ReplicaConfig) -> None:
        self._config = config
        self._registry = CollectorRegistry()
        self._labels = {"model_name": config.model.name, "engine": "0"}
        self._running = self._gauge("vllm:num_requests_running", "Sequences being computed.")
        self._waiting = self._gauge("vllm:num_requests_waiting", "Sequences waiting for a place.")
        self._usage = self._gauge(
            "vllm:kv_cache_usage_perc", "Share of KV blocks held by sequences, in [0, 1]."
        )
        self._totals = [
            (field, Counter(name, text, _LABELS, registry=self._registry).labels(**self._labels))
            for name, (field, text) in _TOTALS.items()
        ]
        self._last = Stats()
        self._success = Counter(
            "vllm:request_success",
            "Requests ended, by reason.",
            (*_LABELS, "finished_reason"),
            registry=self._registry,
        )
        for reason in FINISHED_REASONS:
            self._success.labels(**self._labels, finished_reason=reason)
        self.first_token_s = self._histogram(
            "vllm:time_to_first_token_seconds",
            "From the request's arrival to its first token.",
            _FIRST_TOKEN_BUCKETS_S,
        )
        self.inter_token_s = self._histogram(
            "vllm:inter_token_latency_seconds",
            "Between two tokens of a request.",
            _INTER_TOKEN_BUCKETS_S,
        )
        self.request_s = self._histogram(
            "vllm:e2e_request_latency_seconds",
            "From a request's arrival to its last token.",
            _REQUEST_BUCKETS_S,
        )
        self.queue_s = self._histogram(
            "vllm:request_queue_time_seconds",
            "From submission to admission.",
            _REQUEST_BUCKETS_S,
        )
        token_buckets = _token_buckets(config.model.max_model_len)
        self.prompt_tokens = self._histogram(
            "vllm:request_prompt_tokens", "Prompt tokens of a request.", token_buckets
        )
        self.generation_tokens = self._histogram(
            "vllm:request_generation_tokens", "Tokens generated for a request.", token_buckets
        )

    def update(self, stats: Stats) -> None:
        """Takes over the engine's state after a step."""
        self._running.set(stats.running)
        self._waiting.set(stats.waiting)
        if stats.total_blocks:
            if not self._last.total_blocks:
                self._describe_cache(stats.total_blocks)
            self._usage.set(stats.held_blocks / stats.total_blocks)
        for field, counter in self._totals:
            growth = getattr(stats, field) - getattr(self._last, field)
            if growth:
                counter.inc(growth)
        self._last = stats

    def request_ended(self, finished_reason: str) -> None:
        assert finished_reason in FINISHED_REASONS
        self._success.labels(**self._labels, finished_reason=finished_reason).inc()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self._registry).labels(**self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, _LABELS, buckets=buckets, registry=self._registry).labels(
            **self._labels
        )

    def _describe_cache(self, total_blocks: int) -> None:
        config = self._config
        facts = {
            "block_size": str(config.engine.block_size),
            "num_gpu_blocks": str(total_blocks),
            "enable_prefix_caching": str(config.engine.prefix_cache),
            "cache_dtype": config.model.dtype,
            "kv_cache_size_tokens": str(config.engine.block_size * total_blocks),
        }
        Gauge(
            "vllm:cache_config_info",
            "The KV cache's configuration.",
            (*_LABELS, *facts),
            registry=self._registry,
        ).labels(**self._labels, **facts).set(1)


class RequestTimes:
    """One request's times, told to the metrics as they become known."""

    def __init__(self, metrics: ReplicaMetrics, arrived_s: float) -> None:
        """
        Args:
            arrived_s: Seconds, on the clock `token` is given too.
        """
        self._metrics = metrics
        self._arrived_s = arrived_s
        self._last_token_s: float | None = None
        self._tokens = 0

    def token(self, now: float, queue_time_s: float | None) -> None:
        """A token arrived; the first one comes with the time its sequence was queued."""
        self._tokens += 1
        if queue_time_s is not None:
            self._metrics.queue_s.observe(queue_time_s)
        if self._last_token_s is None:
            self._metrics.first_token_s.observe(now - self._arrived_s)
        else:
            self._metrics.inter_token_s.observe(now - self._last_token_s)
        self._last_token_s = now

    def ended(self, finished_reason: str, prompt_tokens: int) -> None:
        self._metrics.request_ended(finished_reason)
        if finished_reason in ("stop", "length") and self._last_token_s is not None:
            self._metrics.request_s.observe(self._last_token_s - self._arrived_s)
            self._metrics.prompt_tokens.observe(prompt_tokens)
            self._metrics.generation_tokens.observe(self._tokens)


def _token_buckets(max_tokens: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 … up to `max_tokens`."""
    buckets: list[float] = []
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale > max_tokens:
                return tuple(buckets)
            buckets.append(step * scale)
        scale *= 10
