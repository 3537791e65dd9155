"""The scheduler against a runner that reads back what it wrote."""

import pytest

from replica.core.limits import NeverFits, QueueFull
from replica.core.plan import SamplingParams
from replica.core.queue_orders import QUEUE_ORDERS, QueueOrderName
from replica.core.sequence import Finish, SequenceRequest
from tests.replica.core.driving import (
    BLOCK_SIZE,
    GREEDY,
    Answers,
    EventMirror,
    Pipeline,
    cached_truth,
    make_scheduler,
    request,
    run_all,
    step,
)
from tests.support.fake_runner import FakeRunner, expected_tokens, hashed_token

PROMPTS = {
    1: range(40),
    2: [*range(20), *range(90, 110)],
    3: range(3),
    4: [*range(20), 7],
    5: range(100, 116),
    6: range(40),
}


def truth(prompt: object, count: int) -> list[int]:
    return expected_tokens(list(prompt), GREEDY, count, hashed_token(50))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"prefix_cache": False},
        {"batched_tokens": 8},
        {"batched_tokens": 1024},
        {"running": 1},
        {"blocks": 16},
        {"blocks": 15, "batched_tokens": 9, "running": 3},
        {"block_size": 1},
        {"block_size": 64, "blocks": 3},
    ],
    ids=[
        "plain",
        "cache off",
        "small chunks",
        "whole prompts",
        "singles",
        "preempted",
        "all at once",
        "blocks of one",
        "blocks larger than prompts",
    ],
)
@pytest.mark.parametrize("in_flight_max", [1, 2])
@pytest.mark.parametrize("queue_order", list(QUEUE_ORDERS))
def test_the_answers_do_not_depend_on_how_the_work_was_cut(
    settings: dict[str, object], in_flight_max: int, queue_order: QueueOrderName
) -> None:
    scheduler = make_scheduler(**settings, queue_order=queue_order)  # type: ignore[arg-type]
    requests = [request(i, p, 20) for i, p in PROMPTS.items()]
    answers = run_all(scheduler, requests, in_flight_max=in_flight_max)
    for sequence_id, prompt in PROMPTS.items():
        assert answers.tokens[sequence_id] == truth(prompt, 20)
        assert answers.finish[sequence_id] is Finish.LENGTH
    if settings.get("blocks") == 16:
        assert scheduler.counters.preemptions > 0, "this case is meant to preempt"


def test_a_second_equal_prompt_computes_its_last_block_only() -> None:
    scheduler = make_scheduler()
    runner = FakeRunner(BLOCK_SIZE)
    run_all(scheduler, [request(1, range(40), 1)], runner)
    assert runner.computed_tokens == 40
    answers = run_all(scheduler, [request(2, range(40), 1)], runner)
    assert runner.computed_tokens == 44
    assert answers.cached == {2: 36}
    assert scheduler.counters.prefix_queries == 80
    assert scheduler.counters.prefix_hits == 36


def test_siblings_in_one_step_compute_their_common_prefix_once() -> None:
    scheduler = make_scheduler(batched_tokens=256)
    runner = FakeRunner(BLOCK_SIZE)
    prompts = {i: [*range(40), 50 + i] for i in range(5)}
    answers = run_all(scheduler, [request(i, p, 1) for i, p in prompts.items()], runner)
    assert runner.computed_tokens == 41 + 4
    assert runner.steps == 2
    assert answers.cached == {0: 0, 1: 40, 2: 40, 3: 40, 4: 40}


def test_a_sequence_that_waits_for_a_pending_block_lets_others_pass() -> None:
    scheduler = make_scheduler(batched_tokens=256)
    for one in (request(1, range(40)), request(2, range(40)), request(3, range(60, 80))):
        scheduler.submit(one, 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert [part.sequence_id for part in plan.slices] == [1, 3]


def test_generation_goes_before_prompts_and_prompts_fill_the_budget() -> None:
    scheduler = make_scheduler(batched_tokens=16)
    runner, answers = FakeRunner(BLOCK_SIZE), Answers()
    scheduler.submit(request(1, range(8)), 0.0)
    step(scheduler, runner, answers)
    scheduler.submit(request(2, range(50, 90)), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert [(part.sequence_id, part.start, len(part.token_ids)) for part in plan.slices] == [
        (1, 8, 1),
        (2, 0, 15),
    ]
    assert plan.slices[0].sampling is not None
    assert plan.slices[1].sampling is None


def test_different_salts_share_nothing_and_the_salt_is_reported_on_the_first_block() -> None:
    scheduler, runner = make_scheduler(), FakeRunner(BLOCK_SIZE)
    mirror = EventMirror()
    salted = request(2, range(9), 1, cache_salt="tenant-a")
    answers = run_all(scheduler, [request(1, range(9), 1), salted], runner)
    mirror.apply(scheduler.take_events())
    assert answers.cached == {1: 0, 2: 0}
    first_blocks = [extra for parent, _, extra in mirror.blocks.values() if parent is None]
    assert sorted(first_blocks, key=str) == [("tenant-a",), None]
    again = run_all(scheduler, [request(3, range(9), 1, cache_salt="tenant-a")], runner)
    assert again.cached == {3: 8}


def test_generated_blocks_are_found_by_the_next_turn() -> None:
    scheduler, runner = make_scheduler(), FakeRunner(BLOCK_SIZE)
    first = run_all(scheduler, [request(1, range(10), 12)], runner)
    history = [*range(10), *first.tokens[1]]
    second = run_all(scheduler, [request(2, [*history, 1, 2, 3], 1)], runner)
    assert second.cached == {2: 20}  # 22 tokens, the last one's KV was never computed: 5 blocks


@pytest.mark.parametrize("stop_index", [0, 3])
def test_a_stop_token_ends_the_sequence_and_is_its_last_token(stop_index: int) -> None:
    tokens = truth(range(5), 8)
    stop = tokens[stop_index]
    answers = run_all(make_scheduler(), [request(1, range(5), 8, stop_token_ids=frozenset({stop}))])
    assert answers.tokens[1] == tokens[: tokens.index(stop) + 1]
    assert answers.finish[1] is Finish.STOP


def test_a_sequence_ends_when_the_context_is_full() -> None:
    answers = run_all(make_scheduler(model_len=12), [request(1, range(10), 100)])
    assert len(answers.tokens[1]) == 2
    assert answers.finish[1] is Finish.LENGTH


def test_what_can_never_fit_is_refused_with_both_lengths() -> None:
    scheduler = make_scheduler(blocks=4, model_len=30)
    with pytest.raises(NeverFits, match="the prompt has 30 tokens; the context holds 30"):
        scheduler.submit(request(1, range(30)), 0.0)
    with pytest.raises(NeverFits, match="the whole KV cache holds 16"):
        scheduler.submit(request(1, range(10), 8), 0.0)
    scheduler.submit(request(1, range(10), 7), 0.0)  # 16 tokens of KV: the last has none


def test_a_full_queue_refuses() -> None:
    scheduler = make_scheduler(running=1, waiting=1)
    scheduler.submit(request(1, range(5)), 0.0)
    scheduler.submit(request(2, range(5)), 0.0)
    with pytest.raises(QueueFull, match="2 sequences are running or waiting"):
        scheduler.submit(request(3, range(5)), 0.0)
    scheduler.check()


def test_abort_frees_blocks_at_once_even_while_a_step_is_in_flight() -> None:
    scheduler = make_scheduler()
    runner = FakeRunner(BLOCK_SIZE)
    scheduler.submit(request(1, range(20)), 0.0)
    scheduler.submit(request(2, range(50, 60), 2), 0.0)
    plan = scheduler.schedule(0.0)
    assert plan is not None
    assert scheduler.abort(1)
    assert scheduler.pool.held_blocks == 3
    outputs = scheduler.apply(runner.run(plan), 0.0)
    assert [output.sequence_id for output in outputs] == [2]
    scheduler.check()
    assert not scheduler.abort(1)
    assert scheduler.abort(2)
    assert not scheduler.has_work
    assert scheduler.pool.held_blocks == 0


def test_a_waiting_sequence_can_be_aborted() -> None:
    scheduler = make_scheduler(running=1)
    scheduler.submit(request(1, range(20)), 0.0)
    scheduler.submit(request(2, range(20)), 0.0)
    assert scheduler.abort(2)
    assert run_all(scheduler, []).tokens.keys() == {1}


def test_the_oldest_is_never_preempted_and_preempted_ones_keep_their_place() -> None:
    scheduler = make_scheduler(blocks=12, running=4, batched_tokens=64)
    runner, answers = FakeRunner(BLOCK_SIZE), Answers()
    for i in range(4):
        scheduler.submit(request(i, range(i * 10, i * 10 + 6), 30), 0.0)
    finished: list[int] = []
    while step(scheduler, runner, answers):
        finished += [i for i in answers.finish if i not in finished]
    assert scheduler.counters.preemptions > 0
    assert finished == [0, 1, 2, 3]
    for i in range(4):
        assert answers.tokens[i] == truth(range(i * 10, i * 10 + 6), 30)


def test_after_a_reset_nothing_old_is_found_and_running_sequences_go_on() -> None:
    scheduler = make_scheduler(batched_tokens=16)
    runner, answers, mirror = FakeRunner(BLOCK_SIZE), Answers(), EventMirror()
    run_all(scheduler, [request(1, range(30), 1)], runner)
    scheduler.submit(request(2, range(60, 90), 20), 0.0)
    step(scheduler, runner, answers)
    scheduler.reset_prefix_cache()
    mirror.apply(scheduler.take_events())
    assert mirror.blocks == {}
    scheduler.submit(request(3, range(30), 1), 0.0)
    while step(scheduler, runner, answers):
        pass
    assert answers.cached == {2: 0, 3: 0}
    assert answers.tokens[2] == truth(range(60, 90), 20)
    mirror.apply(scheduler.take_events())
    assert mirror.blocks.keys() == cached_truth(scheduler.pool)
    assert len(mirror.blocks) == 30 // BLOCK_SIZE


def test_the_seed_is_part_of_the_plan() -> None:
    sampling = SamplingParams(temperature=1.0, seed=99)
    answers = run_all(
        make_scheduler(),
        [SequenceRequest(sequence_id=1, prompt_token_ids=[1, 2], sampling=sampling, max_tokens=3)],
    )
    assert answers.tokens[1] == expected_tokens([1, 2], sampling, 3, hashed_token(50))


def test_queue_time_is_told_once_with_the_first_token() -> None:
    scheduler = make_scheduler(running=1)
    runner = FakeRunner(BLOCK_SIZE)
    scheduler.submit(request(1, range(3), 2), 10.0)
    plan = scheduler.schedule(12.5)
    assert plan is not None
    (first,) = scheduler.apply(runner.run(plan), 13.0)
    plan = scheduler.schedule(13.0)
    assert plan is not None
    (second,) = scheduler.apply(runner.run(plan), 14.0)
    assert (first.queue_time_s, second.queue_time_s) == (2.5, None)


def test_a_step_is_planned_while_the_one_before_it_runs() -> None:
    scheduler = make_scheduler()
    runner, answers = FakeRunner(BLOCK_SIZE), Answers()
    pipeline = Pipeline(scheduler, runner, answers, in_flight_max=2)
    scheduler.submit(request(1, range(7), 3), 0.0)
    plans = [pipeline.plan(), pipeline.plan()]
    assert [list(plan.slices[0].token_ids) for plan in plans if plan] == [[*range(7)], []]
    pipeline.apply()
    third = pipeline.plan()
    assert third is not None
    assert (third.slices[0].start, third.slices[0].num_tokens) == (8, 1)
    pipeline.apply()
    # Its third token is its last: nothing is planned that could not count.
    assert pipeline.plan() is None
    pipeline.apply()
    assert answers.tokens[1] == truth(range(7), 3)
    assert runner.computed_tokens == 7 + 2


def test_a_stop_token_wastes_one_place_of_the_step_planned_already() -> None:
    scheduler = make_scheduler()
    runner = FakeRunner(BLOCK_SIZE)
    stop = truth(range(7), 3)[2]
    one = request(1, range(7), 20, stop_token_ids=frozenset({stop}))
    answers = run_all(scheduler, [one], runner, in_flight_max=2)
    assert answers.tokens[1] == truth(range(7), 3)
    assert answers.finish[1] is Finish.STOP
    assert runner.computed_tokens == 7 + 3
    assert scheduler.counters.generated_tokens == 3


def test_a_sequence_preempted_while_its_token_was_on_its_way_keeps_the_token() -> None:
    scheduler = make_scheduler(blocks=4)
    runner, answers = FakeRunner(BLOCK_SIZE), Answers()
    pipeline = Pipeline(scheduler, runner, answers, in_flight_max=2)
    scheduler.submit(request(1, range(8), 8), 0.0)
    scheduler.submit(request(2, range(50, 53), 6), 0.0)
    while scheduler.counters.preemptions == 0:
        assert pipeline.plan()
        if scheduler.counters.preemptions == 0 and len(pipeline.in_flight) == 2:
            pipeline.apply()
    assert pipeline.in_flight
    before = len(answers.tokens[2])
    pipeline.settle()
    assert len(answers.tokens[2]) == before + 1
    while pipeline.step():
        pass
    assert answers.tokens == {1: truth(range(8), 8), 2: truth(range(50, 53), 6)}
