"""Of a tenant's requests the warm go first where they are warm, until a cold one waited long."""

from collections.abc import Iterable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.lane import Lane
from router.core.ticket import Ticket, Work

Waiting = list[tuple[float, Work]]


def lane_of(
    waiting: Iterable[tuple[float, Work]], patience_s: float = inf
) -> tuple[Lane, list[Ticket]]:
    """Of requests that came at those times, with that work."""
    lane, tickets = Lane(patience_s), []
    for number, (came, work) in enumerate(waiting):
        ticket = Ticket("m", 1)
        ticket.number, ticket.entered_at, ticket.its_work = number, came, work
        lane.add(ticket)
        tickets.append(ticket)
    lane.check()
    return lane, tickets


def cold(tokens: int) -> Work:
    return Work.everywhere(tokens)


def warm_on(replica: str, tokens: int, whole: int = 1000) -> Work:
    return Work.of(whole, {replica: tokens})


@pytest.mark.parametrize(
    ("waiting", "now", "replica", "expected"),
    [
        pytest.param([(0, cold(100)), (0, cold(10))], 1, None, 1, id="little-work-first"),
        pytest.param([(0, cold(100)), (5, cold(10))], 5.4, "a", 0, id="who-has-waited-longer"),
        pytest.param([(0, cold(100)), (5, cold(10))], 5.6, "a", 1, id="for-its-work"),
        pytest.param([(0, cold(9)), (1, cold(9))], 5, "a", 0, id="same-work-is-first-come"),
        pytest.param([(0, cold(9)), (0, cold(8))], 0, "a", 0, id="nobody-has-waited"),
        pytest.param([(0, cold(900)), (0, warm_on("a", 10))], 1, "a", 1, id="warm-here"),
        pytest.param([(0, cold(900)), (0, warm_on("a", 10))], 1, "b", 0, id="warm-elsewhere"),
        pytest.param([(0, cold(900)), (0, warm_on("a", 10))], 1, None, 1, id="warm-somewhere"),
        pytest.param([(0, warm_on("a", 999)), (0, cold(1000))], 1, "a", 0, id="a-little-warmer"),
    ],
)
def test_who_is_next(waiting: Waiting, now: float, replica: str | None, expected: int) -> None:
    lane, tickets = lane_of(waiting)
    assert lane.head(now, replica)[1] is tickets[expected]


TIMES = st.lists(st.integers(0, 20), min_size=1, max_size=12).map(sorted)


@st.composite
def lives(draw: st.DrawFn) -> Waiting:
    made: Waiting = []
    for came in draw(TIMES):
        tokens = draw(st.integers(1, 300))
        less = {
            replica: least
            for replica in "ab"
            if (least := draw(st.integers(1, 2 * tokens))) < tokens
        }
        made.append((float(came), Work.of(tokens, less)))
    return made


@given(
    lives(),
    st.integers(20, 40),
    st.sampled_from(["a", "b", "c", None]),
    st.sampled_from([20.0, 45.0, inf]),
)
def test_the_next_has_at_least_half_the_highest_ratio(
    waiting: Waiting, now: int, replica: str | None, patience_s: float
) -> None:
    def ratio_of(ticket: Ticket) -> float:
        work = ticket.its_work
        tokens = work.least if replica is None else work.less.get(replica, work.tokens)
        waited_s = now - ticket.entered_at
        return waited_s / (tokens * max(0.01, 1.0 - waited_s / patience_s))

    lane, tickets = lane_of(waiting, patience_s)
    while tickets:
        ratio, head = lane.head(now, replica)
        assert ratio == ratio_of(head)
        assert 2 * ratio >= max(map(ratio_of, tickets))
        lane.remove(head)
        tickets.remove(head)
        lane.check()
        assert sorted(lane, key=lambda one: one.number) == tickets
    assert not lane
    assert not lane._warm, "nothing is kept of who has left"


@given(lives(), lives())
def test_weighed_anew_it_waits_as_if_it_had_come_so(waiting: Waiting, later: Waiting) -> None:
    lane, tickets = lane_of(waiting)
    for ticket, (_, work) in zip(tickets, later, strict=False):
        lane.weigh(ticket, work)
        lane.check()
    expected, _ = lane_of((one.entered_at, one.its_work) for one in tickets)
    for replica in ("a", "b", "c", None):
        ratio, head = lane.head(40.0, replica)
        same_ratio, same = expected.head(40.0, replica)
        assert (ratio, head.number) == (same_ratio, same.number)


def test_a_cold_one_goes_before_all_that_come_after_a_while() -> None:
    """Work 1,000, waiting for 10 s: who comes later with work 10 passes it only after 0.1 s."""
    lane, tickets = lane_of([(0.0, cold(1000)), (10.0, warm_on("a", 10))])
    assert lane.head(10.09, "a")[1] is tickets[0]
    assert lane.head(10.11, "a")[1] is tickets[1]
    assert lane.head(11_000.0, "b")[1] is tickets[0]


def test_who_would_soon_be_turned_away_goes_before_the_warm() -> None:
    waiting = [(0.0, cold(1000)), (28.0, warm_on("a", 20))]
    for patience_s, expected in ((inf, 1), (30.0, 0)):
        lane, tickets = lane_of(waiting, patience_s)
        assert lane.head(29.0, "a")[1] is tickets[expected]
    lane, tickets = lane_of(waiting, 20.0)
    assert lane.head(29.0, "a")[1] is tickets[0], "its time is over, and nobody has told it yet"
