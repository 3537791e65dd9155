"""What several workers count is one router's, and is not forgotten when one of them ends."""

from prometheus_client import CollectorRegistry

from router.control.admin import FleetCollector
from router.control.worker_metrics import _GAUGES, WorkerMetrics, told
from router.core.admission import Admission
from router.metrics import RouterMetrics


def counted(requests: int) -> bytes:
    metrics = RouterMetrics()
    for _ in range(requests):
        metrics.requests["m", "a", "200"].inc()
        metrics.request_seconds[("m",)].observe(0.002)
    return told(metrics.registry)


def test_counts_add_up_and_stay_when_a_worker_ends() -> None:
    workers = WorkerMetrics(2)
    registry = CollectorRegistry()
    registry.register(workers)
    labels = {"model": "m", "replica": "a", "status": "200"}

    def requests() -> float | None:
        return registry.get_sample_value("warmroute_requests_total", labels)

    workers.hear(0, counted(3))
    workers.hear(1, counted(4))
    assert requests() == 7
    assert registry.get_sample_value("warmroute_request_seconds_count", {"model": "m"}) == 7
    bucket = {"model": "m", "le": "0.0025"}
    assert registry.get_sample_value("warmroute_request_seconds_bucket", bucket) == 7
    workers.ended(0)
    assert requests() == 7
    workers.hear(0, counted(1))
    assert requests() == 8
    workers.hear(1, counted(6))
    assert requests() == 10
    workers.ended(0)
    workers.ended(1)
    assert requests() == 10


def test_there_is_a_rule_for_every_gauge() -> None:
    gauges = {one.name for one in FleetCollector({}, Admission()).collect() if one.type == "gauge"}
    assert gauges == set(_GAUGES)
