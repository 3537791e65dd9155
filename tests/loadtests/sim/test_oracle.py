"""The oracle: sooner than who sees nothing, not later than ours, and nothing left behind."""

from array import array
from statistics import mean

import pytest

from loadtests.sim.contest import all_routers
from loadtests.sim.oracle import Oracle
from loadtests.sim.report import Row, row_of
from loadtests.sim.request import SimRequest
from loadtests.sim.router import MakeRouter
from loadtests.sim.seeing import Coming
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from loadtests.sim.world import ReplicaSpec, World
from replica.core.timing import PRESETS

PRESET = PRESETS["h100-8b"]


def run(
    make: MakeRouter, name: str, rate: float, count: int, blocks: int, seed: int = 1
) -> tuple[Row, World]:
    requests = generate(build(name), seed=seed, requests_per_s=rate, count=count)
    world = World([ReplicaSpec(preset=PRESET, cache_blocks=blocks)] * 4, make, seed)
    row = row_of("any", world.run(requests), PRESET)
    world.router.check()  # type: ignore[attr-defined]
    return row, world


@pytest.mark.parametrize(
    ("name", "rate", "blocks"),
    [("agents", 7.0, 3000), ("documents", 5.0, 5000), ("siblings", 30.0, 6000)],
)
def test_it_is_sooner_than_in_turn_and_not_later_than_ours(
    name: str, rate: float, blocks: int
) -> None:
    def mean_s(make: MakeRouter) -> float:
        rows = [run(make, name, rate, 80, blocks, seed)[0] for seed in (1, 2, 3)]
        assert not any(row.failed for row in rows)
        return mean(row.ttft_mean_s for row in rows)

    oracle_s = mean_s(Oracle)
    assert oracle_s < 0.9 * mean_s(all_routers()["round_robin"])
    assert oracle_s <= 1.05 * mean_s(all_routers()["prefix_aware"])


def test_it_forgets_what_has_ended() -> None:
    _, world = run(Oracle, "agents", 7.0, 20, 3000)
    assert isinstance(world.router, Oracle)
    assert not world.router._flights


def prompt(first: int, tokens: int) -> "array[int]":
    return array("I", range(first, first + tokens))


def test_it_knows_who_comes_next_and_leaves_the_warm_replica_to_them() -> None:
    shared = prompt(0, 64_000)
    warm = SimRequest(number=0, arrival_s=0.0, prompt=shared, output_tokens=1)
    # Nothing of this one is cached anywhere; the one after it finds all on one replica.
    other = SimRequest(number=1, arrival_s=60.0, prompt=prompt(10**6, 64_000), output_tokens=1)
    follower = SimRequest(
        number=2, arrival_s=60.01, prompt=shared + prompt(10**7, 100), output_tokens=1
    )
    world = World([ReplicaSpec(preset=PRESET)] * 2, Oracle, 0)
    served = world.run([warm, other, follower]).served
    assert served[1].replica != served[0].replica
    assert served[2].replica == served[0].replica
    assert served[2].cached_tokens == 64_000


def test_a_replica_that_restarts_and_a_request_that_never_fits_leave_nothing() -> None:
    specs = [ReplicaSpec(preset=PRESET, cache_blocks=400, restarts_at_s=(1.0,))] * 2
    huge = SimRequest(number=0, arrival_s=0.0, prompt=prompt(0, 64_000), output_tokens=9)
    others = [
        SimRequest(number=n, arrival_s=n / 10, prompt=prompt(100_000 * n, 10_000), output_tokens=50)
        for n in range(1, 20)
    ]
    world = World(specs, Oracle, 0)
    run = world.run([huge, *others])
    assert run.served[0].failed
    assert any(one.failed for one in run.served[1:])
    assert isinstance(world.router, Oracle)
    world.router.check()
    assert not world.router._flights


def test_requests_can_be_looked_at_before_they_are_taken() -> None:
    requests = [
        SimRequest(number=n, arrival_s=float(n), prompt=prompt(n, 5), output_tokens=1)
        for n in range(5)
    ]
    coming = Coming(iter(requests))
    assert [one.number for one in coming.until(1.5)] == [0, 1]
    assert coming.peek() is requests[0]
    coming.take()
    assert [one.number for one in coming.until(9.0)] == [1, 2, 3, 4]
    for one in requests[1:]:
        assert coming.peek() is one
        coming.take()
    assert coming.peek() is None
    assert list(coming.until(99.0)) == []
