"""What comes to a replica is averaged over time, and says what a backlog costs those to come."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.demand import MEMORY_S, SECONDS_MIN, STRETCH_MAX, Demand
from router.core.fleet import Fleet, Replica
from router.core.lease_board import LeaseBoard, board_bytes
from router.core.states import State
from tests.support.rates import round_rates


def steady(requests_per_s: float, work_s: float, *, seconds: int = 200) -> tuple[Demand, float]:
    demand, now = Demand(), 0.0
    for number in range(round(seconds * requests_per_s)):
        now = number / requests_per_s
        demand.came(1.0, work_s, now)
    return demand, now


def test_nothing_has_come_so_nobody_is_delayed() -> None:
    assert Demand().delayed_per_s2(now=5.0) == 0.0


def test_a_steady_load_gives_the_formula() -> None:
    demand, now = steady(requests_per_s=2.0, work_s=0.25)
    assert demand.delayed_per_s2(now) == pytest.approx(2.0 / (1.0 - 0.5), rel=0.05)


def test_the_stretch_of_a_full_replica_has_an_end() -> None:
    demand, now = steady(requests_per_s=8.0, work_s=4.0)
    assert demand.delayed_per_s2(now) == pytest.approx(8.0 * STRETCH_MAX, rel=0.05)


def test_a_burst_is_no_rate() -> None:
    demand = Demand()
    for number in range(10):
        demand.came(1.0, 0.0, now=number * 1e-4)
    assert demand.delayed_per_s2(now=1e-3) == pytest.approx(10.0 / SECONDS_MIN, rel=0.01)


def test_an_idle_replica_forgets() -> None:
    demand, now = steady(requests_per_s=10.0, work_s=0.01)
    before = demand.delayed_per_s2(now)
    assert demand.delayed_per_s2(now + MEMORY_S) < 0.6 * before
    assert demand.delayed_per_s2(now + 20 * MEMORY_S) < 0.01 * before


@given(st.lists(st.tuples(st.floats(-1.0, 100.0), st.floats(0.0, 1e4)), max_size=30))
def test_it_is_a_finite_number_whatever_comes_and_whatever_clocks_say(
    steps: list[tuple[float, float]],
) -> None:
    demand, now = Demand(), 0.0
    for passed_s, work_s in steps:
        now += passed_s
        demand.came(1.0, work_s, now)
        demand.check()
        assert 0.0 <= demand.delayed_per_s2(now) < float("inf")


def test_what_comes_to_other_workers_counts_by_what_they_have_in_flight() -> None:
    def fleet(board: LeaseBoard | None) -> Fleet:
        rates = round_rates()
        made = Fleet(board)
        made.add(Replica(id="r0", rates=rates, state=State.READY))
        return made

    memory = memoryview(bytearray(board_bytes(2, 1)))
    ours, theirs = (
        fleet(LeaseBoard(memory, ["r0"], workers=2, worker=number)) for number in range(2)
    )
    alone = fleet(None)
    for _ in range(3):
        theirs.lease("r0", 10, 1.0, now=0.0)
    ours.look_at_others()
    ours.lease("r0", 10, 1.0, now=0.0)
    alone.lease("r0", 10, 1.0, now=0.0)
    ours.check()
    delayed = [one["r0"].demand.delayed_per_s2(0.0) for one in (ours, alone)]
    assert delayed[0] > 3.9 * delayed[1] > 0.0
