"""Counters and histograms for the hot path: plain numbers, which become Prometheus's at a scrape.

prometheus_client's own lock and check at each increment, a microsecond apiece and a dozen of them
a request. All of ours are counted in one thread, the event loop's.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

Labels = tuple[str, ...]


class Counter:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, by: float = 1.0) -> None:
        self.value += by


class Histogram:
    """How many observations fell at or below each bound, and above all of them."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1.0
        self.sum += value


class CounterFamily(dict[Labels, Counter]):
    """A counter for each combination of labels, made when it is first asked for."""

    def __init__(self, name: str, help: str, labels: Sequence[str]) -> None:
        super().__init__()
        self.name, self.help, self.labels = name, help, labels

    def __missing__(self, labels: Labels) -> Counter:
        child = self[labels] = Counter()
        return child

    def metric(self) -> Metric:
        family = CounterMetricFamily(self.name, self.help, labels=self.labels)
        for labels, child in self.items():
            family.add_metric(labels, child.value)
        return family


class HistogramFamily(dict[Labels, Histogram]):
    """The same of histograms, all with the same bounds."""

    def __init__(
        self, name: str, help: str, labels: Sequence[str], bounds: Sequence[float]
    ) -> None:
        super().__init__()
        self.name, self.help, self.labels, self.bounds = name, help, labels, bounds

    def __missing__(self, labels: Labels) -> Histogram:
        child = self[labels] = Histogram(self.bounds)
        return child

    def metric(self) -> Metric:
        family = HistogramMetricFamily(self.name, self.help, labels=self.labels)
        for labels, child in self.items():
            family.add_metric(labels, list(_cumulative(child)), child.sum)
        return family


def _cumulative(histogram: Histogram) -> Iterator[tuple[str, float]]:
    total = 0.0
    for bound, count in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        total += count
        yield ("+Inf" if bound == float("inf") else str(bound)), total
