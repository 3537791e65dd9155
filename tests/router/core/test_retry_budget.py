"""Retries are a share of traffic, plus a little."""

from hypothesis import given
from hypothesis import strategies as st

from router.core.retry_budget import RetryBudget


def spend(budget: RetryBudget, now: float) -> int:
    count = 0
    while budget.affords_retry(now):
        budget.retry()
        budget.check()
        count += 1
    return count


def test_a_quiet_router_may_retry_at_the_minimum_rate() -> None:
    budget = RetryBudget(ratio=0.0, min_per_s=0.5, now=0.0)
    assert spend(budget, 0.0) == 5
    assert spend(budget, 0.0) == 0
    assert 3 <= spend(budget, 1000.0) <= 5


def test_requests_pay_for_their_share_and_what_is_unused_fades() -> None:
    budget = RetryBudget(ratio=0.25, min_per_s=0.0, now=0.0)
    assert not budget.affords_retry(0.0)
    for _ in range(40):
        budget.request(0.0)
    assert spend(budget, 0.0) == 10
    for _ in range(40):
        budget.request(1.0)
    assert spend(budget, 100.0) == 0


def test_a_retry_found_affordable_stays_so_a_moment_later() -> None:
    budget = RetryBudget(ratio=1.0, min_per_s=0.0, now=0.0)
    budget.request(0.0)
    assert budget.affords_retry(0.0)
    budget.retry()  # a microsecond later; it must not matter


def test_a_clock_that_stands_still_or_goes_back_harms_nothing() -> None:
    budget = RetryBudget(ratio=0.5, min_per_s=1.0, now=10.0)
    budget.request(5.0)
    budget.check()
    assert budget.affords_retry(0.0)


@given(
    st.floats(0, 1), st.floats(0, 5), st.lists(st.tuples(st.floats(0, 5), st.booleans()))
)  # fmt: skip
def test_retries_never_exceed_share_and_rate(
    ratio: float, min_per_s: float, steps: list[tuple[float, bool]]
) -> None:
    budget = RetryBudget(ratio=ratio, min_per_s=min_per_s, now=0.0)
    now, requests, retries = 0.0, 0, 0
    for elapsed_s, is_request in steps:
        now += elapsed_s
        if is_request:
            budget.request(now)
            requests += 1
        else:
            retries += spend(budget, now)
        budget.check()
    assert retries <= ratio * requests + min_per_s * (now + 10.0) + 1e-6
