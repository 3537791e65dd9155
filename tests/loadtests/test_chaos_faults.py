"""Which fault comes next: always one that leaves a healthy replica, and every kind in its turn."""

from collections import Counter
from random import Random

import pytest

from loadtests.chaos.faults import OF_REPLICAS, Fault, Order, next_order

BETWEEN_S = 2.0
ALL_READY = {"r0": "ready", "r1": "ready", "r2": "ready"}


def order(
    states: dict[str, str], troubled: set[str], seed: int = 1, *, kill_workers: bool = False
) -> Order | None:
    return next_order(
        states,
        troubled,
        Random(seed),
        between_bytes_s=BETWEEN_S,
        so_far={},
        kill_workers=kill_workers,
    )


@pytest.mark.parametrize(
    ("states", "troubled"),
    [
        ({"r0": "ready", "r1": "suspect", "r2": "ejected"}, set()),
        ({"r0": "ready", "r1": "draining", "r2": "starting"}, set()),
        (ALL_READY, {"r0", "r2"}),
        (ALL_READY, {"r0", "r1", "r2"}),
        ({}, set()),
    ],
    ids=["two down", "two not ready", "two troubled", "all troubled", "none known"],
)
def test_the_last_healthy_replica_is_left_alone(states: dict[str, str], troubled: set[str]) -> None:
    assert all(order(states, troubled, seed) is None for seed in range(50))


def test_whoever_is_healthy_may_be_hit_and_nobody_else() -> None:
    states = {**ALL_READY, "r3": "suspect"}
    victims = {found.victim for seed in range(100) if (found := order(states, {"r1"}, seed))}
    assert victims == {"r0", "r2"}


def test_the_same_seed_gives_the_same_fault() -> None:
    assert order(ALL_READY, set(), 5) == order(ALL_READY, set(), 5)
    assert len({order(ALL_READY, set(), seed) for seed in range(20)}) == 20


def test_every_kind_comes_once_before_any_comes_twice() -> None:
    random = Random(1)
    so_far: Counter[Fault] = Counter()
    for _ in range(3 * len(OF_REPLICAS)):
        found = next_order(ALL_READY, (), random, between_bytes_s=BETWEEN_S, so_far=so_far)
        assert found is not None
        so_far[found.fault] += 1
        assert max(so_far.values()) - min(so_far[one] for one in OF_REPLICAS) <= 1
    assert set(so_far) == set(OF_REPLICAS)


def test_pauses_are_shorter_or_longer_than_a_stream_may_be_silent() -> None:
    found = [one for seed in range(300) if (one := order(ALL_READY, set(), seed))]
    short = [one.lasts_s for one in found if one.fault is Fault.PAUSE_SHORT]
    # A second more, for timeouts are looked at once a second.
    long = [one.lasts_s for one in found if one.fault is Fault.PAUSE_LONG]
    assert max(short) <= BETWEEN_S / 2
    assert min(long) >= BETWEEN_S + 1


def test_workers_are_killed_only_where_there_are_several() -> None:
    with_workers = [order(ALL_READY, set(), seed, kill_workers=True) for seed in range(300)]
    without = [order(ALL_READY, set(), seed) for seed in range(300)]
    assert any(one is not None and one.fault is Fault.KILL_WORKER for one in with_workers)
    assert not any(one is not None and one.fault is Fault.KILL_WORKER for one in without)
