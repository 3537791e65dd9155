"""Our counters and histograms export what prometheus_client's own would."""

import prometheus_client
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import Metric

from router.counting import CounterFamily, HistogramFamily

BOUNDS = (0.5, 1.0, 2.5)
LABELS = st.tuples(st.sampled_from("ab"))


def samples(metrics: list[Metric]) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
    return {
        (one.name, tuple(sorted(one.labels.items())), one.value)
        for metric in metrics
        for one in metric.samples
        if not one.name.endswith("_created")
    }


@given(st.lists(st.tuples(LABELS, st.sampled_from([0.0, 0.5, 0.75, 1.0, 2.0, 2.5, 9.0]))))
def test_they_export_what_prometheus_clients_own_would(
    observed: list[tuple[tuple[str], float]],
) -> None:
    counter, histogram = CounterFamily("c", "C.", ["x"]), HistogramFamily("h", "H.", ["x"], BOUNDS)
    their_counter = prometheus_client.Counter("c", "C.", ["x"], registry=None)
    their_histogram = prometheus_client.Histogram("h", "H.", ["x"], buckets=BOUNDS, registry=None)
    for labels, value in observed:
        counter[labels].inc(value)
        histogram[labels].observe(value)
        their_counter.labels(*labels).inc(value)
        their_histogram.labels(*labels).observe(value)
    theirs = [*their_counter.collect(), *their_histogram.collect()]
    assert samples([counter.metric(), histogram.metric()]) == samples(theirs)
