"""Every metric the router exports, under its name; observed by the data plane, read at /metrics.

Labels are bounded: models and replicas of the configuration, statuses, outcomes.
"""

from typing import TypeVar, cast

from prometheus_client import CollectorRegistry, Counter, Histogram

Metric = TypeVar("Metric", bound=Counter | Histogram)

_LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 600,
)  # fmt: skip


class Children(dict[tuple[str, ...], Metric]):
    """A metric's children by their label values, each made once: `labels()` takes microseconds."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._metric: Metric = metric

    def __missing__(self, labels: tuple[str, ...]) -> Metric:
        child = cast(Metric, self._metric.labels(*labels))
        self[labels] = child
        return child


class RouterMetrics:
    """One registry and the metrics in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Children(
            Counter(
                "warmroute_requests",
                "Requests answered, by the status sent to the client (499: the client left).",
                ["model", "replica", "status"],
                registry=self.registry,
            )
        )
        self.attempts = Children(
            Counter(
                "warmroute_attempts",
                "Attempts on replicas, by how they ended.",
                ["model", "replica", "outcome"],
                registry=self.registry,
            )
        )
        self.first_byte_seconds = Children(
            Histogram(
                "warmroute_time_to_first_byte_seconds",
                "First byte of the request in to first body byte of the answer out.",
                ["model"],
                buckets=_LATENCY_BUCKETS_S,
                registry=self.registry,
            )
        )
        self.request_seconds = Children(
            Histogram(
                "warmroute_request_seconds",
                "First byte of the request in to last byte of the answer out.",
                ["model"],
                buckets=_LATENCY_BUCKETS_S,
                registry=self.registry,
            )
        )
        self.prompt_tokens = Children(
            Counter(
                "warmroute_prompt_tokens",
                "Prompt tokens of answers that reported usage.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
        self.matched_tokens = Children(
            Counter(
                "warmroute_matched_tokens",
                "Prompt tokens predicted to be cached, of answers that reported cached tokens.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
        self.cached_tokens = Children(
            Counter(
                "warmroute_cached_tokens",
                "Prompt tokens that were cached, as reported by replicas that ever reported a hit.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
        self.match_error_tokens = Children(
            Counter(
                "warmroute_match_error_tokens",
                "Sum of |predicted - reported| cached tokens.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
        self.match_overestimate_tokens = Children(
            Counter(
                "warmroute_match_overestimate_tokens",
                "Prompt tokens predicted to be cached that had to be computed.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
        self.match_underestimate_tokens = Children(
            Counter(
                "warmroute_match_underestimate_tokens",
                "Prompt tokens cached although that was not predicted.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
        self.regret_tokens = Children(
            Counter(
                "warmroute_regret_tokens",
                "Prompt tokens of answered requests computed although another ready or suspect"
                " replica held them when the replica was chosen: by its KV events, or as believed"
                " of one without; tried before or not. Once a request.",
                ["model"],
                registry=self.registry,
            )
        )
        self.completion_tokens = Children(
            Counter(
                "warmroute_completion_tokens",
                "Generated tokens of answers that reported usage.",
                ["model", "replica"],
                registry=self.registry,
            )
        )
