"""The metrics of several workers as one router's: what each counted adds up, also when it is gone.

Counters and histograms are sums. Of gauges some are shares of a whole (leases, memory), the others
each worker's own view of the same thing, of which the worst is shown.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric

Labels = tuple[tuple[str, str], ...]
Samples = dict[tuple[str, Labels], float]

_SUMS = ("counter", "histogram")
_GAUGES: dict[str, Callable[[float, float], float]] = {
    "warmroute_replica_leases": float.__add__,
    "warmroute_replica_pending_prefill_tokens": float.__add__,
    "warmroute_queued_requests": float.__add__,
    "warmroute_prefix_tree_bytes": float.__add__,
    "warmroute_prefix_tree_resident_bytes": float.__add__,
    "warmroute_replica_cached_tokens": max,
    "warmroute_replica_capacity_tokens": max,
    "warmroute_replica_state": max,  # two states are 1 while workers disagree
    "warmroute_kv_event_lag_seconds": max,
    "warmroute_kv_events_missing": max,
    "warmroute_kv_events_synced": min,
    "warmroute_replica_trust": min,
}


class Family(msgspec.Struct, frozen=True):
    """One metric with all its samples, as a worker tells it."""

    name: str
    help: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


_decoder = msgspec.msgpack.Decoder(list[Family])


def told(registry: CollectorRegistry) -> bytes:
    """All a worker's registry holds, to be told to whoever merges it."""
    return msgspec.msgpack.encode(
        [
            Family(
                metric.name,
                metric.documentation,
                metric.type,
                [(one.name, dict(one.labels), float(one.value)) for one in metric.samples],
            )
            for metric in registry.collect()
        ]
    )


class WorkerMetrics:
    """What the workers last told, and what those that have ended had counted. A collector."""

    def __init__(self, workers: int) -> None:
        self._told: list[list[Family]] = [[] for _ in range(workers)]
        self._ended: list[Family] = []

    def hear(self, worker: int, payload: bytes) -> None:
        """A worker's `told`. Raises msgspec.DecodeError."""
        self._told[worker] = _decoder.decode(payload)

    def ended(self, worker: int) -> None:
        """Its gauges are gone, its counts stay: else the sums would go back."""
        counts = [one for one in self._told[worker] if one.type in _SUMS]
        self._told[worker] = []
        self._ended = _merge([self._ended, counts])

    def collect(self) -> list[Metric]:
        """For a registry."""
        metrics = []
        for family in _merge([*self._told, self._ended]):
            metric = Metric(family.name, family.help, family.type)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            metrics.append(metric)
        return metrics


def _merge(workers: Sequence[Iterable[Family]]) -> list[Family]:
    merged: dict[str, tuple[Family, Samples]] = {}
    for family in (one for families in workers for one in families):
        _, samples = merged.setdefault(family.name, (family, {}))
        join = float.__add__ if family.type in _SUMS else _GAUGES[family.name]
        for name, labels, value in family.samples:
            key = (name, tuple(labels.items()))
            samples[key] = join(samples[key], value) if key in samples else value
    return [
        Family(
            family.name,
            family.help,
            family.type,
            [(name, dict(labels), value) for (name, labels), value in samples.items()],
        )
        for family, samples in merged.values()
    ]
