"""The rate at which a fleet is full: found where a fake one is, and judged by who waits."""

from collections.abc import Callable

import pytest

from loadtests.routing_bench.saturation import Unbounded, highest_rate, keeps_up
from loadtests.sim.world import Run, Served


def queue(arrivals_per_s: float, served_per_s: float, failed: bool = False) -> Run:
    """One server, one request after another."""
    run, free_s = Run(), 0.0
    for number in range(300):
        arrival_s = number / arrivals_per_s
        free_s = max(free_s, arrival_s) + 1 / served_per_s
        wait_s = free_s - arrival_s
        run.served.append(
            Served(number, arrival_s, 10, 10, 0, None if failed else wait_s, wait_s, failed=failed)
        )
    return run


@pytest.mark.parametrize(
    ("arrivals_per_s", "keeps"), [(5.0, True), (9.9, True), (10.5, False), (20.0, False)]
)
@pytest.mark.parametrize("failed", [False, True])
def test_a_queue_keeps_up_until_more_comes_than_it_serves(
    arrivals_per_s: float, keeps: bool, failed: bool
) -> None:
    assert keeps_up(queue(arrivals_per_s, 10.0, failed)) is keeps


def test_bursts_that_are_soon_served_are_kept_up_with() -> None:
    run = Run()
    for burst in range(6):
        for number in range(50):
            wait_s = (number + 1) / 100
            run.served.append(Served(number, burst * 60.0, 10, 10, 0, wait_s, wait_s))
    assert keeps_up(run)


def test_nothing_that_came_is_kept_up_with() -> None:
    assert keeps_up(Run())


def test_requests_without_a_first_token_wait_for_ever() -> None:
    run = queue(5.0, 10.0)
    for one in run.served[::4]:
        one.first_token_s = one.ended_s = None
    assert not keeps_up(run)


@pytest.mark.parametrize("start", [0.1, 9.0, 10.0, 11.0, 900.0])
def test_the_rate_is_found_from_wherever_the_search_begins(start: float) -> None:
    tried: list[float] = []

    def kept(rate: float) -> bool:
        tried.append(rate)
        return keeps_up(queue(rate, 10.0))

    found = highest_rate(kept, start)
    assert 9.4 <= found <= 10.4
    assert found in tried
    assert len(tried) <= 20
    assert len(set(tried)) == len(tried)


def always(rate: float) -> bool:
    return True


def never(rate: float) -> bool:
    return False


@pytest.mark.parametrize("kept", [always, never])
def test_a_search_without_an_end_is_told(kept: Callable[[float], bool]) -> None:
    with pytest.raises(Unbounded, match="no end between"):
        highest_rate(kept, 1.0)
