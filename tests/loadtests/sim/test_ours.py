"""What our policy does to a fleet by itself: many come to hold a hot prefix, others one."""

from collections import defaultdict
from statistics import mean

import pytest

from loadtests.sim.ours import Ours
from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from loadtests.sim.world import ReplicaSpec, Run, simulate
from replica.core.timing import PRESETS

REPLICAS = 8
PREFIX = 4_000


def run_of(workload: str, requests_per_s: float) -> tuple[list[SimRequest], Run]:
    asked = list(generate(build(workload), seed=1, requests_per_s=requests_per_s, count=600))
    specs = [ReplicaSpec(preset=PRESETS["h100-8b"]) for _ in range(REPLICAS)]
    return asked, simulate(iter(asked), Ours, specs)


def counts_of(run: Run) -> list[int]:
    """Requests of each replica."""
    return [sum(one.replica == replica for one in run.served) for replica in range(REPLICAS)]


def holders(asked: list[SimRequest], run: Run) -> list[set[int]]:
    """Of each prefix, the most asked for first: the replicas that got it in the second half."""
    found: dict[bytes, list[int]] = defaultdict(list)
    for one in sorted(run.served, key=lambda served: served.request):
        found[asked[one.request].prompt[:PREFIX].tobytes()].append(one.replica)
    by_count = sorted(found.values(), key=len, reverse=True)
    return [set(replicas[len(replicas) // 2 :]) for replicas in by_count]


def test_a_prefix_that_one_replica_can_serve_stays_with_few() -> None:
    asked, run = run_of("trap-hot-prefix", 4.0)
    assert len(holders(asked, run)[0]) <= 3


def test_a_prefix_that_is_too_much_for_one_replica_is_soon_held_by_many() -> None:
    asked, run = run_of("trap-hot-prefix", 150.0)
    hot, *others = holders(asked, run)
    assert len(hot) >= REPLICAS / 2
    assert mean(map(len, others)) < 1.5, "the others need not be"
    counts = counts_of(run)
    assert max(counts) < 2 * mean(counts)


@pytest.mark.parametrize("requests_per_s", [5.0, 40.0])
def test_new_prefix_families_spread_over_the_fleet(requests_per_s: float) -> None:
    _, run = run_of("system-prompts", requests_per_s)
    counts = counts_of(run)
    assert min(counts) > 0
    assert max(counts) < 3 * mean(counts)
