"""Trust in what a stream of events said: 1 while it is followed and fresh, less the less it is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.core.staleness import (
    LAG_FREE_S,
    LAG_HALF_S,
    MISSING_HALF_BATCHES,
    OFFSET_WINDOW_S,
    UNFOLLOWED_HALF_LIFE_S,
    UNFOLLOWED_TRUST,
    Staleness,
)

HOURS_OFF_S = 7 * 3600.0


def fresh(start: float = 1000.0) -> Staleness:
    """A stream of ten batches a second, followed, whose replica's clock is hours ahead."""
    staleness = Staleness()
    staleness.followed()
    for number in range(100):
        now = start + number / 10
        staleness.applied(now + HOURS_OFF_S, now)
    return staleness


def test_what_is_followed_and_fresh_is_believed_whatever_the_clocks_say() -> None:
    staleness = fresh()
    assert staleness.lag_s == pytest.approx(0, abs=1e-6)
    assert staleness.trust(1010.0, following=True) == 1.0


def test_an_idle_replica_is_not_stale() -> None:
    assert fresh().trust(100_000.0, following=True) == 1.0


def test_nothing_is_believed_that_was_never_followed() -> None:
    staleness = Staleness()
    staleness.unfollowed(5.0)
    staleness.applied(1.0, 6.0)
    assert staleness.trust(7.0, following=False) == 0.0


@pytest.mark.parametrize("lag_s", [0.01, 0.2, 1.0, 10.0, 100.0])
def test_a_slow_stream_is_believed_less_the_slower_it_is(lag_s: float) -> None:
    staleness = fresh()
    now = 1010.0 + lag_s
    staleness.applied(1010.0 + HOURS_OFF_S, now)
    assert staleness.lag_s == pytest.approx(lag_s, abs=1e-6)
    expected = 1 / (1 + max(0.0, lag_s - LAG_FREE_S) / LAG_HALF_S)
    assert staleness.trust(now, following=True) == pytest.approx(expected, abs=1e-6)
    assert staleness.trust(now + 20, following=True) > 0.99  # caught up, or idle


def test_a_stream_that_is_not_followed_is_half_believed_at_once_and_less_by_the_minute() -> None:
    staleness = fresh()
    staleness.unfollowed(1010.0)
    staleness.unfollowed(1020.0)  # said again: it has been so since
    for half_lives in range(4):
        now = 1010.0 + half_lives * UNFOLLOWED_HALF_LIFE_S
        expected = UNFOLLOWED_TRUST * 0.5**half_lives
        assert staleness.trust(now, following=False) == pytest.approx(expected)
    staleness.followed()
    assert staleness.trust(1100.0, following=True) == 1.0
    staleness.unfollowed(1200.0)
    assert staleness.trust(1200.0, following=False) == UNFOLLOWED_TRUST
    staleness.forgotten()
    assert staleness.trust(1200.0, following=False) == 0.0


@pytest.mark.parametrize("ts", [float("nan"), float("inf"), float("-inf")])
def test_a_time_stamp_that_is_no_time_says_nothing(ts: float) -> None:
    staleness = Staleness()
    staleness.followed()
    staleness.applied(ts, 10.0)
    staleness.check()
    assert staleness.lag_s is None
    assert staleness.trust(10.0, following=True) == 1.0


def test_missing_batches_lower_trust_until_they_are_applied() -> None:
    staleness = fresh()
    staleness.missing(MISSING_HALF_BATCHES)
    assert staleness.trust(1010.0, following=True) == pytest.approx(0.5)
    staleness.missing(0)
    assert staleness.trust(1010.0, following=True) == 1.0
    staleness.missing(3)
    staleness.followed()
    assert staleness.missing_batches == 0


@pytest.mark.parametrize("step_s", [-HOURS_OFF_S, -5.0, 5.0, HOURS_OFF_S])
def test_a_clock_that_is_set_is_no_lag(step_s: float) -> None:
    staleness = fresh()
    for number in range(10):
        now = 1010.0 + number / 10
        staleness.applied(now + HOURS_OFF_S + step_s, now)
    assert staleness.lag_s == pytest.approx(0, abs=1e-6)


def test_a_clock_that_drifts_is_no_lag() -> None:
    staleness = Staleness()
    staleness.followed()
    for second in range(0, 100_000, 10):
        staleness.applied(second * (1 - 100e-6), second)  # 100 parts in a million slow
        assert staleness.lag_s is not None
        assert staleness.lag_s <= 2 * OFFSET_WINDOW_S * 100e-6 < LAG_FREE_S
        staleness.check()


observations = st.lists(
    st.tuples(
        st.sampled_from(["applied", "missing", "followed", "unfollowed", "forgotten"]),
        st.floats(0, 1000),
        st.floats(-1e6, 1e6),
        st.integers(0, 10**6),
    ),
    max_size=30,
)


@given(observations, st.booleans(), st.floats(0, 1e6))
def test_trust_is_a_share_and_only_shrinks_while_nothing_is_heard(
    history: list[tuple[str, float, float, int]], following: bool, later_s: float
) -> None:
    staleness, now = Staleness(), 0.0
    for kind, passed_s, ts, batches in history:
        now += passed_s
        if kind == "applied":
            staleness.applied(ts, now)
        elif kind == "missing":
            staleness.missing(batches)
        elif kind == "unfollowed":
            staleness.unfollowed(now)
        else:
            getattr(staleness, kind)()
        staleness.check()
        assert 0 <= staleness.trust(now, following=following) <= 1
    assert 0 <= staleness.trust(now + later_s, following=False) <= UNFOLLOWED_TRUST
