"""Prompts that wait and prompts that run share a step's budget: the most urgent is first."""

from collections.abc import Iterable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.core.queue_orders import QueueOrderName
from tests.replica.core.driving import (
    BLOCK_SIZE,
    Answers,
    Pipeline,
    make_scheduler,
    request,
)
from tests.support.fake_runner import FakeRunner

LONG = range(1000, 1100)


class Driven:
    """A scheduler whose steps are taken at times of the test's choice."""

    def __init__(self, **settings: Any) -> None:
        self.scheduler = make_scheduler(**settings)
        self._pipeline = Pipeline(self.scheduler, FakeRunner(BLOCK_SIZE), Answers())

    def came(self, number: int, prompt: Iterable[int], at: float, max_tokens: int = 1) -> None:
        self.scheduler.submit(request(number, prompt, max_tokens), at)

    def step(self, now: float) -> list[tuple[int, int]]:
        """Whom the next step computes, and how many tokens of each."""
        self._pipeline.now = now - 1.0
        plan = self._pipeline.plan()
        self._pipeline.settle()
        return [] if plan is None else [(one.sequence_id, one.num_tokens) for one in plan.slices]


def with_a_long_one(order: QueueOrderName = "response_ratio", *, steps: int = 1) -> Driven:
    """A prompt of 100 tokens came at 0 s, and as many steps of 32 of them were taken."""
    driven = Driven(batched_tokens=32, queue_order=order)
    driven.came(1, LONG, 0.0)
    for _ in range(steps):
        driven.step(0.0)
    return driven


@pytest.mark.parametrize(
    ("order", "steps", "came_s", "step"),
    [
        ("response_ratio", 1, 8.5, [(2, 10), (1, 22)]),  # 1.5 s for 10 tokens, 10 s for 68
        ("response_ratio", 1, 8.6, [(1, 32)]),  # 1.4 s
        ("response_ratio", 3, 8.5, [(1, 4), (2, 10)]),  # 10 s for the last 4
        ("fcfs", 1, 1.0, [(1, 32)]),
    ],
    ids=["a short one", "it waited too little", "little is left", "first come"],
)
def test_who_waited_longest_for_the_rest_of_its_work_is_first(
    order: QueueOrderName, steps: int, came_s: float, step: list[tuple[int, int]]
) -> None:
    driven = with_a_long_one(order, steps=steps)
    driven.came(2, range(10), came_s)
    assert driven.step(10.0) == step


def test_who_is_passed_gets_what_is_left_of_the_budget_though_others_wait() -> None:
    driven = with_a_long_one()
    driven.came(2, range(10), 5.0)
    driven.came(3, range(200, 280), 5.0)  # less urgent than the rest of 1
    assert driven.step(10.0) == [(2, 10), (1, 22)]


def test_of_two_that_run_the_more_urgent_goes_on() -> None:
    driven = with_a_long_one()
    driven.came(2, range(40), 1.0)
    assert driven.step(10.0) == [(2, 32)]  # 9 s for 40 tokens
    assert driven.step(11.0) == [(2, 8), (1, 24)]


def test_one_that_shares_what_a_running_one_computes_next_waits_for_it() -> None:
    driven = with_a_long_one()
    driven.came(2, [*LONG[:48], 7], 0.0)  # 32 of them are cached, 16 come next
    assert driven.step(10.0) == [(1, 32)], "it is more urgent, and would compute them twice"
    assert driven.step(11.0) == [(2, 1), (1, 31)]


def test_memory_stays_kept_for_who_did_not_fit_while_others_run() -> None:
    """1 and 2 hold 34 of 40 blocks; 3 lacks some, 4 would fit, and is more urgent at last."""
    driven = Driven(batched_tokens=8, blocks=40)
    driven.came(1, range(36), 0.0, max_tokens=30)
    for _ in range(5):
        driven.step(0.0)
    driven.came(2, LONG, 0.0)
    driven.step(0.0)
    driven.came(4, range(300, 308), 30.0)
    driven.came(3, range(200, 264), 0.0)
    for _ in range(6):  # 31 s for 64 tokens, 1 s for 8; at last 2 has less than 64 left
        assert driven.step(31.0) == [(1, 1), (2, 7)]
    assert driven.step(80.0) == [(1, 1), (2, 7)]  # 80 s, and 50 s
    assert {one.request.sequence_id for one in driven.scheduler._waiting} == {3, 4}


def test_the_preempted_pass_prompts_that_run() -> None:
    driven = Driven(batched_tokens=8, blocks=23)
    driven.came(0, range(12), 0.0, max_tokens=40)
    driven.step(0.0)
    driven.came(1, LONG[:60], 0.0)
    driven.step(1.0)
    driven.came(2, range(200, 206), 1.0, max_tokens=40)
    for number in range(8):
        driven.step(3.0 + number)
    assert driven.scheduler.counters.preemptions == 1
    assert {one.request.sequence_id for one in driven.scheduler._waiting} == {2}
    driven.scheduler.abort(0)
    first, *others = driven.step(11.0)
    assert first[0] == 2, "its prompt and answer are computed again"
    assert [number for number, _ in others] == [1]


@given(
    tokens=st.integers(33, 90),
    others=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    in_flight=st.integers(1, 2),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_who_runs_does_not_starve_however_many_pass(
    tokens: int, others: list[int], in_flight: int
) -> None:
    """Newcomers always wait, and could always fill a step."""
    scheduler = make_scheduler(batched_tokens=8, running=4, waiting=4, prefix_cache=False)
    pipeline = Pipeline(scheduler, FakeRunner(BLOCK_SIZE), Answers(), in_flight)
    numbers = count(1)
    scheduler.submit(request(0, range(10_000, 10_000 + tokens), 1), 0.0)
    while 0 not in pipeline.answers.finish:
        pipeline.step()
        while scheduler.num_running + scheduler.num_waiting < 8:
            number = next(numbers)
            prompt = range(number * 50, number * 50 + others[number % len(others)])
            scheduler.submit(request(number, prompt, 1), pipeline.now)
        # Seven others at most are more urgent at any time, and none of them needs 6 steps of 8.
        assert pipeline.now <= 2 * tokens * 8 * 6
