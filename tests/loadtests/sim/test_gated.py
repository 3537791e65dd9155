"""A simulated router with limits holds back what does not fit, and loses nothing of it."""

from functools import partial

from loadtests.sim.gated import Gated, Limits
from loadtests.sim.ours import Ours
from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from loadtests.sim.world import ReplicaSpec, Run, World
from replica.core.timing import PRESETS

SPEC = ReplicaSpec(preset=PRESETS["h100-8b"], cache_blocks=3000)


def asked(count: int = 150) -> list[SimRequest]:
    return list(generate(build("agents"), seed=3, requests_per_s=30.0, count=count))


def run_of(limits: Limits | None, *specs: ReplicaSpec) -> tuple[Run, World]:
    make = Ours if limits is None else partial(Gated, limits=limits)
    world = World(specs or [SPEC, SPEC], make, seed=0)
    run = world.run(asked())
    world.check()
    world.router.check()
    return run, world


def test_where_all_fits_it_is_the_same_run_as_without_limits() -> None:
    assert run_of(Limits(max_tokens=10**9))[0].served == run_of(None)[0].served


def test_no_more_is_in_flight_on_a_replica_than_its_limit() -> None:
    limit = 100_000
    world = World([SPEC, SPEC], partial(Gated, limits=Limits(replica_max_tokens=limit)), seed=0)
    most = 0

    def look(now: float) -> None:
        nonlocal most
        rooms = world.router._admission.capacity.models["m"].replicas.values()
        most = max(most, *(one.in_flight_tokens for one in rooms))
        world.at(now + 0.01, look)

    world.at(0.0, look)
    world.run(asked())
    assert limit / 2 < most <= limit


def test_who_waits_too_long_is_turned_away_and_has_failed() -> None:
    run, world = run_of(Limits(replica_max_tokens=100_000, queue_timeout_s=1.0))
    failed = [one for one in run.served if one.failed]
    counters = world.router._admission.counters
    assert 0 < len(failed) == counters.expired < len(run.served) == 150
    for one in failed:
        assert one.replica is None
        assert one.first_token_s is None
        assert one.ended_s is not None
        assert 1.0 <= one.ended_s < 1.2


def test_a_restart_ends_what_was_in_flight_there_and_lets_others_in() -> None:
    restarting = ReplicaSpec(
        preset=SPEC.preset, cache_blocks=SPEC.cache_blocks, restarts_at_s=(2.0, 3.0)
    )
    limits = Limits(replica_max_tokens=100_000, queue_timeout_s=1000.0)
    run, world = run_of(limits, restarting, restarting)
    lost = [one for one in run.served if one.failed]
    assert 0 < len(lost) < 150
    assert all(one.replica is not None for one in lost)
    assert world.router._admission.capacity.in_flight_tokens == 0
    assert all(one.first_token_s is not None for one in run.served if not one.failed)
