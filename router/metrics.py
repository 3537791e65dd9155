"""Every metric the router counts, under its name; counted by the data plane, read at /metrics.

Labels are bounded: models and replicas of the configuration, statuses, outcomes.
"""

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

from router.counting import CounterFamily, HistogramFamily

_LATENCY_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0,
    100.0, 250.0, 600.0,
)  # fmt: skip


class RouterMetrics:
    """One process's counts, and a registry that exports them."""

    def __init__(self) -> None:
        self.requests = CounterFamily(
            "warmroute_requests",
            "Requests answered, by the status sent to the client (499: the client left; 101: a"
            " tunnel, when it is over).",
            ["model", "replica", "status"],
        )
        self.attempts = CounterFamily(
            "warmroute_attempts",
            "Attempts on replicas, by how they ended.",
            ["model", "replica", "outcome"],
        )
        self.resumes = CounterFamily(
            "warmroute_resumes",
            "Streams that broke after their first event: resumed elsewhere, or impossible to.",
            ["model", "outcome"],
        )
        self.first_byte_seconds = HistogramFamily(
            "warmroute_time_to_first_byte_seconds",
            "First byte of the request in to first body byte of the answer out.",
            ["model"],
            _LATENCY_BUCKETS_S,
        )
        self.ttft_targets = CounterFamily(
            "warmroute_ttft_targets",
            "Streams with a target for their first token, by whether the first byte met it.",
            ["model", "outcome"],
        )
        self.request_seconds = HistogramFamily(
            "warmroute_request_seconds",
            "First byte of the request in to last byte of the answer out.",
            ["model"],
            _LATENCY_BUCKETS_S,
        )
        self.queue_seconds = HistogramFamily(
            "warmroute_queue_seconds",
            "How long requests waited for room, of those that had to.",
            ["model"],
            _LATENCY_BUCKETS_S,
        )
        self.prompt_tokens = CounterFamily(
            "warmroute_prompt_tokens",
            "Prompt tokens of answers that reported usage.",
            ["model", "replica"],
        )
        self.matched_tokens = CounterFamily(
            "warmroute_matched_tokens",
            "Prompt tokens predicted to be cached, of answers that reported cached tokens.",
            ["model", "replica"],
        )
        self.cached_tokens = CounterFamily(
            "warmroute_cached_tokens",
            "Prompt tokens that were cached, as reported by replicas that ever reported a hit.",
            ["model", "replica"],
        )
        self.match_error_tokens = CounterFamily(
            "warmroute_match_error_tokens",
            "Sum of |predicted - reported| cached tokens.",
            ["model", "replica"],
        )
        self.match_overestimate_tokens = CounterFamily(
            "warmroute_match_overestimate_tokens",
            "Prompt tokens predicted to be cached that had to be computed.",
            ["model", "replica"],
        )
        self.match_underestimate_tokens = CounterFamily(
            "warmroute_match_underestimate_tokens",
            "Prompt tokens cached although that was not predicted.",
            ["model", "replica"],
        )
        self.regret_tokens = CounterFamily(
            "warmroute_regret_tokens",
            "Prompt tokens of answered requests computed although another ready or suspect"
            " replica held them when the replica was chosen: by its KV events, or as believed"
            " of one without; tried before or not. Once a request.",
            ["model"],
        )
        self.completion_tokens = CounterFamily(
            "warmroute_completion_tokens",
            "Generated tokens of answers that reported usage.",
            ["model", "replica"],
        )
        self._families: list[CounterFamily | HistogramFamily] = [
            one for one in vars(self).values() if isinstance(one, CounterFamily | HistogramFamily)
        ]
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> list[Metric]:
        """For the registry."""
        return [family.metric() for family in self._families]
