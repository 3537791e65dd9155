"""Many decode steps at once leave a scheduler as single steps do."""

from random import Random

import pytest

from replica.core.coast import coast, coast_steps_max
from replica.core.plan import StepPlan
from replica.core.queue_orders import QUEUE_ORDERS, QueueOrderName
from replica.core.scheduler import Scheduler
from replica.core.sequence import Sequence
from tests.replica.core.driving import (
    GREEDY,
    Answers,
    EventMirror,
    Pipeline,
    cached_truth,
    make_scheduler,
    request,
)
from tests.support.fake_runner import FakeRunner, expected_tokens, hashed_token


def next_tokens(sequence: Sequence, count: int) -> list[int]:
    return expected_tokens(sequence.token_ids, GREEDY, count, hashed_token(50))


def state(scheduler: Scheduler) -> object:
    return (
        [(one.token_ids, one.num_computed, len(one.blocks)) for one in scheduler._running],
        [one.request.sequence_id for one in scheduler._waiting],
        cached_truth(scheduler.pool),
        scheduler.pool.free_blocks,
        scheduler.counters,
    )


def places_of(plan: StepPlan | None) -> list[tuple[int, int, int]]:
    assert plan is not None
    return [(one.sequence_id, one.start, one.num_tokens) for one in plan.slices]


@pytest.mark.parametrize("queue_order", list(QUEUE_ORDERS))
@pytest.mark.parametrize("seed", list(range(40)))
def test_the_state_is_that_after_single_steps(seed: int, queue_order: QueueOrderName) -> None:
    random = Random(seed)
    settings = {
        "blocks": random.choice((14, 24, 60)),
        "block_size": random.choice((1, 4, 16)),
        "running": random.randrange(1, 6),
        "batched_tokens": 40,
    }
    pair = [make_scheduler(**settings, queue_order=queue_order) for _ in range(2)]
    for number in range(random.randrange(1, 7)):
        prompt = [*random.choices(range(3), k=random.randrange(12)), 100 + number]
        count = random.randrange(1, 40)
        capacity = pair[0].pool.total_blocks * pair[0].pool.block_size
        if len(prompt) + count - 1 <= capacity:
            for one in pair:
                one.submit(request(number, prompt, count), 0.0)
    single, coasting = (Pipeline(one, FakeRunner(one.pool.block_size), Answers()) for one in pair)
    mirror = EventMirror()
    while True:
        plans = [one.plan() for one in (single, coasting)]
        if plans[0] is None:
            break
        for one in (single, coasting):
            one.apply()
        steps = coast_steps_max(coasting.scheduler, plans[1])
        if steps:
            steps = random.randrange(1, steps + 1)
            coast(coasting.scheduler, steps, next_tokens)
            coasting.scheduler.check()
            coasting.now += steps
            for _ in range(steps):
                assert single.plan() is not None
                single.apply()
            # They go on alike: the same are admitted, and generate.
            following = [one.scheduler.schedule(one.now + 1.0) for one in (single, coasting)]
            assert places_of(following[0]) == places_of(following[1])
            break
        assert state(single.scheduler) == state(coasting.scheduler)
    assert state(single.scheduler) == state(coasting.scheduler)
    mirror.apply(coasting.scheduler.take_events())
    assert mirror.blocks.keys() == cached_truth(coasting.scheduler.pool)


def test_a_prompt_in_chunks_a_step_in_flight_or_an_end_in_sight_is_no_coasting() -> None:
    scheduler = make_scheduler(batched_tokens=8)
    pipeline = Pipeline(scheduler, FakeRunner(4), Answers())
    scheduler.submit(request(1, range(12), 4), 0.0)
    seen = []
    while (plan := pipeline.plan()) is not None:
        assert coast_steps_max(scheduler, plan) == 0  # in flight
        pipeline.apply()
        seen.append(coast_steps_max(scheduler, plan))
    # A chunk; the prompt's end, a prefill; then decodes, the last two too few to skip.
    assert seen == [0, 0, 0, 0, 0]
    scheduler.submit(request(2, [1], 9), 0.0)
    first = pipeline.plan()
    assert first is not None
    pipeline.apply()
    assert coast_steps_max(scheduler, first) == 7
    assert coast_steps_max(scheduler, StepPlan(slices=[])) == 0


@pytest.mark.parametrize("queue_order", list(QUEUE_ORDERS))
def test_no_coasting_while_who_waits_would_find_what_is_being_generated(
    queue_order: QueueOrderName,
) -> None:
    answer = expected_tokens(list(range(10)), GREEDY, 20, hashed_token(50))
    for said, steps in ((answer[:12], 0), (range(200, 212), 16)):
        scheduler = make_scheduler(blocks=8, queue_order=queue_order)
        pipeline = Pipeline(scheduler, FakeRunner(4), Answers())
        scheduler.submit(request(1, range(10), 20), 0.0)
        pipeline.step()
        scheduler.submit(
            request(2, [*range(10), *said, *range(300, 309)], 2), pipeline.now
        )  # does not fit
        for _ in range(2):
            plan = pipeline.plan()
            assert plan is not None
            pipeline.apply()
        assert scheduler.num_waiting == 1
        assert coast_steps_max(scheduler, plan) == steps
