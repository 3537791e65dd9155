"""Predicted against actual: errors by their sign, and tokens computed though another held them."""

import pytest

from router.core.answer_scan import AnswerUsage
from router.core.states import StateEvent
from router.dataplane.route import Outcome
from tests.support.served import PROMPT, assign, clock, count, served, store


@pytest.mark.parametrize(
    ("cached", "regret"),
    [
        pytest.param(0, 8, id="all"),
        pytest.param(4, 4, id="what-it-had-itself-is-none"),
        pytest.param(8, 0, id="it-had-as-much"),
        pytest.param(None, 8, id="unreported"),
    ],
)
async def test_what_another_replica_held_and_the_chosen_computed_is_regretted(
    cached: int | None, regret: int
) -> None:
    model = served(events=True, replicas=2)  # round robin cares for no cache
    store(model, "r1", 2)
    assignment = assign(model)
    assert assignment.replica_id == "r0"
    assignment.release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, cached), clock())
    assert count(model, "regret_tokens") == regret


async def test_a_wrong_prediction_of_the_chosen_replica_alone_is_no_regret() -> None:
    model = served(events=True)
    store(model, "r0", 2)
    for cached in (8, 0):
        assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, cached), clock())
    assert count(model, "regret_tokens") == 0
    assert count(model, "match_overestimate_tokens", replica="r0") == 8


async def test_zeros_of_a_replica_that_never_reports_a_hit_are_not_compared() -> None:
    model = served(events=True, replicas=2)
    store(model, "r0", 2)
    store(model, "r1", 2)
    for _ in range(4):
        assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 0), clock())
    for name in ("match_error", "matched", "cached"):
        assert count(model, f"{name}_tokens", replica="r0") == 0, name
    assert count(model, "regret_tokens") == 0


async def test_a_request_is_regretted_once_however_often_it_is_tried() -> None:
    model = served(events=True, replicas=3)
    store(model, "r1", 2)
    for outcome in (Outcome.REFUSED, Outcome.BROKEN):
        failed = model.assign(PROMPT, (), output_tokens_max=None, streaming=True,
                              excluded={"r1"}, now=clock())  # fmt: skip
        failed.release(outcome, 0, AnswerUsage(), clock())
    last = model.assign(PROMPT, (), output_tokens_max=None, streaming=True,
                        excluded={"r1"}, now=clock())  # fmt: skip
    assert count(model, "regret_tokens") == 0
    last.release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 0), clock())
    assert count(model, "regret_tokens") == 8


async def test_what_a_dead_replica_held_is_not_regretted() -> None:
    model = served(events=True, replicas=2)
    store(model, "r1", 2)
    model.apply("r1", StateEvent.REQUEST_FAILED_CONNECT, clock())
    assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 0), clock())
    assert count(model, "regret_tokens") == 0


async def test_without_events_what_was_answered_elsewhere_is_regretted() -> None:
    model = served(events=False, replicas=2)
    tokens = len(PROMPT)  # a byte a token
    for _ in range(3):  # r0, r1, r0
        assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(tokens, 1, 0), clock())
    assert 0 < count(model, "regret_tokens") <= 2 * tokens


async def test_over_and_underestimates_are_told_apart() -> None:
    model = served(events=True)
    store(model, "r0", 1)
    for cached in (8, 4, 1, 0):
        assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, cached), clock())
        model.expire(clock() + 1.0)  # what was predicted of it is over: its events are all
    assert count(model, "match_overestimate_tokens", replica="r0") == 4 + 3
    assert count(model, "match_underestimate_tokens", replica="r0") == 4
    assert count(model, "match_error_tokens", replica="r0") == 11
    assert count(model, "matched_tokens", replica="r0") == 16
    assert count(model, "cached_tokens", replica="r0") == 13


async def test_more_cached_tokens_than_the_prompt_has_do_no_harm() -> None:
    model = served(events=True)
    assignment = assign(model)
    assignment.first_byte(clock() + 0.5, 200)
    assignment.release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 10**9), clock())
    model.cost.check()
