"""Which waiting sequence is next: response ratios, cached prefixes, memory; and nobody starves."""

from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.core.block_pool import BlockPool
from replica.core.queue_order import QueueOrder
from replica.core.queue_orders import QUEUE_ORDERS, QueueOrderName
from replica.core.response_ratio import ResponseRatio, cached_blocks
from replica.core.scheduler import Scheduler
from replica.core.sequence import Sequence
from tests.replica.core.driving import (
    BLOCK_SIZE,
    Answers,
    Pipeline,
    make_scheduler,
    request,
    run_all,
)
from tests.support.fake_runner import FakeRunner

LONG = range(1000, 1040)


def waiting(arrival: int, arrived_s: float, tokens: int, first: int = 0) -> Sequence:
    prompt = range(first, first + tokens)
    return Sequence(request=request(arrival, prompt), arrival=arrival, arrived_s=arrived_s)


def admitted(scheduler: Scheduler, now: float) -> list[int]:
    """Who got their first slice in the next step."""
    before = {one.request.sequence_id for one in scheduler._running}
    plan = scheduler.schedule(now)
    scheduler.check()
    assert plan is not None
    return [one.sequence_id for one in plan.slices if one.sequence_id not in before]


def with_long_and_short(order: QueueOrderName, short_s: float) -> Scheduler:
    """One place to run, and two that wait for it: 40 tokens since 0 s, and 4 since `short_s`."""
    scheduler = make_scheduler(running=1, queue_order=order)
    scheduler.submit(request(1, LONG), 0.0)
    scheduler.submit(request(2, range(4)), short_s)
    return scheduler


@pytest.mark.parametrize(
    ("order", "short_s", "first"),
    [
        ("fcfs", 1.0, 1),
        ("response_ratio", 1.0, 2),  # 9 s for 4 tokens, 10 s for 40
        ("response_ratio", 8.0, 2),  # 2 s for 4
        ("response_ratio", 9.5, 1),  # half a second for 4
    ],
    ids=["the oldest", "a short one", "a short one still", "one that waited long enough"],
)
def test_the_next_one_waited_longest_for_its_work(
    order: QueueOrderName, short_s: float, first: int
) -> None:
    assert admitted(with_long_and_short(order, short_s), 10.0) == [first]


def test_a_warm_one_passes_a_cold_one_of_the_same_length() -> None:
    scheduler = make_scheduler(running=1)
    run_all(scheduler, [request(1, range(40), 1)])
    scheduler.submit(request(2, LONG), 0.0)
    scheduler.submit(request(3, range(40)), 1.0)
    assert admitted(scheduler, 10.0) == [3]


def test_one_whose_prefix_was_evicted_counts_as_cold_again() -> None:
    scheduler = make_scheduler(running=1)
    run_all(scheduler, [request(1, range(40), 1)])
    scheduler.submit(request(2, LONG), 0.0)
    scheduler.submit(request(3, range(40)), 1.0)
    next(scheduler._waiting.candidates(5.0))  # it is looked at while it is warm
    scheduler.reset_prefix_cache()
    assert admitted(scheduler, 10.0) == [2]


def test_one_whose_prefix_was_computed_for_another_is_warm_though_it_is_no_head() -> None:
    scheduler = make_scheduler(running=1, batched_tokens=64, waiting=200)
    for number in range(100):  # colder ones, before it in its bucket
        scheduler.submit(request(number, range(1000 + 50 * number, 1050 + 50 * number)), 0.0)
    scheduler.submit(request(100, range(40), 1), 0.0)
    for _ in range(4):  # all were looked at, and cold
        next(scheduler._waiting.candidates(1.0))
    other = make_scheduler()
    run_all(other, [request(1, range(40), 1)])
    scheduler.pool = scheduler._waiting._pool = other.pool  # type: ignore[attr-defined]
    seen = [next(scheduler._waiting.candidates(1.0)).request.sequence_id for _ in range(4)]
    assert seen[-1] == 100


@pytest.mark.parametrize("queue_order", list(QUEUE_ORDERS))
def test_the_preempted_come_before_who_is_new(queue_order: QueueOrderName) -> None:
    scheduler = make_scheduler(blocks=8, running=2, queue_order=queue_order)
    pipeline = Pipeline(scheduler, FakeRunner(BLOCK_SIZE), Answers())
    for number in (1, 2):
        scheduler.submit(request(number, range(number * 100, number * 100 + 9), 14), 0.0)
    pipeline.step()
    scheduler.submit(request(3, [300], 1), pipeline.now)  # of much the highest ratio
    while scheduler.counters.preemptions == 0:
        pipeline.step()
    while 2 in who_waits(scheduler):
        assert 3 in who_waits(scheduler)
        pipeline.step()


def memory_is_short() -> tuple[Scheduler, Pipeline]:
    """12 blocks, 7 of them with 1, which generates; 2 waits for 6, and 3, for which 3 would do,
    is the next one by its ratio a second later."""
    scheduler = make_scheduler(blocks=12)
    pipeline = Pipeline(scheduler, FakeRunner(BLOCK_SIZE), Answers())
    scheduler.submit(request(1, range(26), 20), 0.0)
    scheduler.submit(request(2, range(100, 124), 2), 0.0)
    pipeline.step()
    scheduler.submit(request(3, range(200, 212), 2), pipeline.now)
    for _ in range(3):
        pipeline.step()
    assert who_waits(scheduler) == {2, 3}
    return scheduler, pipeline


def who_waits(scheduler: Scheduler) -> set[int]:
    return {one.request.sequence_id for one in scheduler._waiting}


def test_who_does_not_fit_is_not_passed_while_only_time_passes() -> None:
    scheduler, pipeline = memory_is_short()
    while 1 not in pipeline.answers.finish:
        assert who_waits(scheduler) == {2, 3}
        pipeline.step()
    pipeline.plan()  # memory came free, and there is room for both
    assert not who_waits(scheduler)


def test_who_does_not_fit_is_passed_by_a_higher_ratio_once_memory_came_free() -> None:
    scheduler = make_scheduler(blocks=15)
    pipeline = Pipeline(scheduler, FakeRunner(BLOCK_SIZE), Answers())
    scheduler.submit(request(1, range(26), 20), 0.0)
    scheduler.submit(request(4, range(300, 302), 5), 0.0)
    scheduler.submit(request(2, range(100, 140), 2), 0.0)
    pipeline.step()
    scheduler.submit(request(3, range(200, 220), 2), pipeline.now)
    while 4 not in pipeline.answers.finish:
        pipeline.step()
        assert who_waits(scheduler) == {2, 3}
    pipeline.step()
    assert who_waits(scheduler) == {2}, "2 does not fit even now"


def test_who_does_not_fit_is_passed_by_a_higher_ratio_once_somebody_came() -> None:
    scheduler, pipeline = memory_is_short()
    scheduler.submit(request(4, range(300, 340), 2), pipeline.now)
    pipeline.step()
    assert who_waits(scheduler) == {2, 4}


@pytest.mark.parametrize("queue_order", list(QUEUE_ORDERS))
@given(
    tokens=st.integers(2, 40),
    others=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    places=st.integers(1, 3),
    running=st.integers(1, 3),
    answer=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_nobody_starves_however_short_the_others_are(
    queue_order: QueueOrderName,
    tokens: int,
    others: list[int],
    places: int,
    running: int,
    answer: int,
) -> None:
    """Newcomers fill the queue before each step; the bound is the docstring's."""
    scheduler = make_scheduler(
        running=running, waiting=places, blocks=20, queue_order=queue_order, prefix_cache=False
    )
    pipeline = Pipeline(scheduler, FakeRunner(BLOCK_SIZE), Answers())
    numbers = count(1)
    most = running + places

    def fill() -> None:
        while scheduler.num_running + scheduler.num_waiting < most:
            number = next(numbers)
            prompt = range(number * 50, number * 50 + others[number % len(others)])
            scheduler.submit(request(number, prompt, answer), pipeline.now)

    # It comes last, and all before it are short.
    while scheduler.num_running + scheduler.num_waiting < most - 1:
        number = next(numbers)
        scheduler.submit(request(number, [number], answer), 0.0)
    scheduler.submit(request(0, range(10_000, 10_000 + tokens), 1), 0.0)
    ends_s = running * (40 + 12 + answer)  # one after the other, a token a step
    bound_s = 2 * tokens * most * ends_s + ends_s
    while 0 not in pipeline.answers.finish:
        fill()
        pipeline.step()
        assert pipeline.now <= bound_s


def test_a_steady_flood_of_the_short_delays_a_long_one_by_as_much_as_its_work() -> None:
    """As many short ones as can be served: the shortest first would never take the long one."""
    scheduler = make_scheduler(running=1, waiting=8)
    pipeline = Pipeline(scheduler, FakeRunner(BLOCK_SIZE), Answers())
    scheduler.submit(request(0, LONG, 1), 0.0)
    numbers = count(1)
    while 0 not in pipeline.answers.finish:
        while scheduler.num_running + scheduler.num_waiting < 6:
            number = next(numbers)
            scheduler.submit(request(number, [number, 1], 1), pipeline.now)
        pipeline.step()
        # Of five short ones that wait, the next has waited 5 s for 2 tokens; it has 40.
        assert pipeline.now <= 2 * 5 / 2 * 40
    assert pipeline.now > 5 / 2 * 40 / 2, "it was passed by others"


@given(st.integers(0, 10**9))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_each_candidate_comes_once_whoever_is_taken_and_the_best_first(seed: int) -> None:
    random = Random(seed)
    queue = ResponseRatio(BlockPool(8, BLOCK_SIZE))
    arrived_s, there = 0.0, []
    for arrival in range(random.randrange(1, 40)):
        arrived_s += random.choice((0.0, random.expovariate(1)))
        there.append(waiting(arrival, arrived_s, random.choice((1, 3, 30, 200))))
        queue.add(there[-1])
    now = arrived_s + random.expovariate(1)
    kept = random.choice((None, *there))
    if kept is not None:
        queue.reserve(kept)
    seen: list[Sequence] = []
    for sequence in queue.candidates(now):
        best = max(ratio(one, now) for one in there if one not in seen)
        assert ratio(sequence, now) >= best / 2 or sequence is kept
        seen.append(sequence)
        if random.random() < 0.5:
            queue.remove(sequence)
            there.remove(sequence)
            seen.remove(sequence)
        queue.check()
    assert sorted(one.arrival for one in seen) == [one.arrival for one in there]
    assert len(queue) == len(list(queue)) == len(there)


def ratio(sequence: Sequence, now: float) -> float:
    return (now - sequence.arrived_s) / sequence.num_tokens


@given(st.integers(0, 60), st.integers(1, 61), st.integers(0, 60))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_cached_prefix_is_found_whatever_was_believed(
    stored: int, tokens: int, guess: int
) -> None:
    scheduler = make_scheduler(block_size=2)
    if stored:
        run_all(scheduler, [request(1, range(stored), 1)])
    sequence = waiting(0, 0.0, tokens)
    most = (tokens - 1) // 2
    found = cached_blocks(scheduler.pool, sequence, min(guess, most))
    assert found == min(stored // 2, most)


def test_a_look_at_a_cold_prompt_does_not_name_all_its_blocks() -> None:
    sequence = waiting(0, 0.0, 4000)
    assert cached_blocks(BlockPool(8, BLOCK_SIZE), sequence, 0) == 0
    assert len(sequence.block_keys) == 1


@pytest.mark.parametrize("name", list(QUEUE_ORDERS))
def test_an_aborted_one_is_no_candidate_even_if_memory_was_kept_for_it(
    name: QueueOrderName,
) -> None:
    queue: QueueOrder = QUEUE_ORDERS[name](BlockPool(8, BLOCK_SIZE))
    first, second = waiting(0, 0.0, 3), waiting(1, 0.5, 30)
    queue.add(first)
    queue.add(second)
    assert next(queue.candidates(1.0)) is first
    queue.reserve(first)
    queue.remove(first)
    queue.check()
    assert list(queue.candidates(2.0)) == [second]
