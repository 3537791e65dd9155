"""Requests are admitted within limits, wait in order, and are turned away with a time to return."""

import pytest

from protocol.errors import Overloaded
from router.core.drain_rate import DrainRate
from router.core.model_turns import ModelTurns
from router.core.ticket import Ticket, TicketState
from tests.support.admissions import admission_of, offer, place, pump


@pytest.mark.parametrize(
    ("limits", "max_tokens", "requests", "expected"),
    [
        pytest.param({"m0": None}, None, [999, 999], "aa", id="no-limit"),
        pytest.param({"m0": 10}, None, [4, 6, 1], "aaw", id="one-replica"),
        pytest.param({"m0": 10, "m1": 10}, None, [6, 6, 6], "aaw", id="not-cut-in-two"),
        pytest.param({"m0": 10}, 8, [4, 5], "aw", id="over-all"),
        pytest.param({"m0": 10}, None, [99, 1], "aw", id="too-large-runs-alone"),
        pytest.param({"m0": 10}, None, [1, 99], "aw", id="too-large-waits"),
        pytest.param({"m0": 10, "m1": 20}, None, [1, 99, 1], "aaa",
                     id="too-large-goes-where-the-limit-is-largest"),
        pytest.param({"m0": 10, "m1": 20}, None, [15, 15], "aw",
                     id="never-on-one-too-small-while-another-is-not"),
        pytest.param({"m0": None}, 10, [99, 1], "aw", id="too-large-over-all"),
        pytest.param({"m0": 10, "m1": None}, None, [99, 99], "aa", id="one-has-no-limit"),
    ],
)  # fmt: skip
def test_what_fits_is_admitted_at_once(
    limits: dict[str, int | None], max_tokens: int | None, requests: list[int], expected: str
) -> None:
    admission = admission_of(limits, max_tokens=max_tokens)
    assert "".join(offer(admission, tokens).state[0] for tokens in requests) == expected


@pytest.mark.parametrize(
    ("requests", "freed", "expected"),
    [
        # (model, tokens, tenant, priority), the first of each model fills its replica of 10
        pytest.param([("m", 2, "", 1), ("m", 2, "", -1), ("m", 2, "", 0)], "m",
                     [1, 2, 0], id="most-urgent-first"),
        pytest.param([("m", 9, "", 0), ("m", 1, "", 0)], "m", [0, 1], id="first-come-first-served"),
        pytest.param([("m", 99, "", 0), ("m", 1, "", 5)], "m", [0], id="nobody-overtakes-the-next"),
        pytest.param([("m", 2, "a", 0), ("m", 2, "a", 0), ("m", 9, "a", 0), ("m", 2, "b", 0)], "m",
                     [0, 1], id="the-next-of-the-tenant-whose-turn-it-is-blocks"),
        pytest.param([("m", 1, "a", 0), ("m", 4, "b", 0), ("m", 1, "c", 0)], "m",
                     [0, 1, 2], id="tenants-take-turns"),
        pytest.param([("m", 9, "", -5), ("n", 1, "", 5)], "n", [1], id="other-models-go-on"),
    ],
)  # fmt: skip
def test_when_there_is_room_those_that_wait_come_in_order(
    requests: list[tuple[str, int, str, int]], freed: str, expected: list[int]
) -> None:
    admission = admission_of({"m0": 10, "n0": 10})
    full = {model: offer(admission, 10, model=model) for model in "mn"}
    waiting = [
        offer(admission, tokens, model=model, tenant=tenant, priority=priority)
        for model, tokens, tenant, priority in requests
    ]
    assert pump(admission) == []
    assert admission.finish(full[freed], 1.0)
    assert pump(admission) == [waiting[index] for index in expected]


def test_a_more_urgent_request_does_not_wait_for_a_large_one() -> None:
    admission = admission_of()
    offer(admission, 5)
    large = offer(admission, 9)
    assert offer(admission, 2).state is TicketState.WAITING
    assert offer(admission, 2, priority=-1).state is TicketState.ADMITTED
    assert large.state is TicketState.WAITING


def test_models_share_the_limit_over_all_fairly_and_a_large_request_gets_its_turn() -> None:
    admission = admission_of({"m0": None, "n0": None}, max_tokens=12)
    running = [offer(admission, 12)]
    for _ in range(7):
        offer(admission, 2, model="m")
    large = offer(admission, 10, model="n")
    order: list[Ticket] = []
    while running:
        admission.finish(running.pop(0), 0.0)
        admitted = pump(admission)
        order += admitted
        running += admitted
    # Both models start even; the large one then needs what is left to end, and nothing passes it.
    assert order.index(large) <= 1
    assert len(order) == 8


def test_a_model_that_had_no_room_has_saved_up_no_turns() -> None:
    turns = ModelTurns()
    for _ in range(100):
        turns.admitted("n", 5)
    order: list[str] = []
    for _ in range(6):
        chosen = min("mn", key=turns.start)
        turns.admitted(chosen, 5)
        order.append(chosen)
    assert 3 <= order.count("m") <= 4


def test_waiting_makes_more_urgent() -> None:
    admission = admission_of(aging_s=10.0)
    running = offer(admission, 10)
    old = offer(admission, 10, priority=2, now=0.0)
    young = offer(admission, 10, priority=0, now=20.5)
    assert old.level == 0, "it has waited for two levels"
    admission.finish(running, 20.5)
    assert pump(admission, 20.5) == [old]
    assert old.waited_s == 20.5
    admission.queue.age(10_000.0)
    assert young.level == 0, "nobody more urgent waits, whom it would have to pass"


@pytest.mark.parametrize(
    ("waiting", "newcomer", "shed"),
    [
        # (priority, bytes); three may wait, of 100 bytes
        pytest.param([(0, 1), (0, 1), (0, 1)], (0, 1), None, id="equal-is-refused"),
        pytest.param([(0, 1), (0, 1), (0, 1)], (1, 1), None, id="less-urgent-is-refused"),
        pytest.param([(1, 1), (2, 1), (2, 1)], (0, 1), [2], id="youngest-of-the-least-urgent"),
        pytest.param([(1, 1), (3, 1), (2, 1)], (0, 1), [1], id="least-urgent-first"),
        pytest.param([(1, 60), (2, 30)], (0, 90), [1, 0], id="bytes"),
        pytest.param([(1, 60), (0, 30)], (0, 90), None, id="nobody-is-shed-in-vain"),
        pytest.param([], (0, 101), None, id="a-body-beyond-the-bound"),
        pytest.param([(99, 1), (8, 1), (0, 1)], (7, 1), [1], id="priorities-are-clamped"),
    ],
)
def test_a_full_queue_sheds_what_is_less_urgent(
    waiting: list[tuple[int, int]], newcomer: tuple[int, int], shed: list[int] | None
) -> None:
    admission = admission_of(queue_requests=3, queue_bytes=100)
    offer(admission, 10)
    there = [offer(admission, 1, priority=one, body_bytes=size) for one, size in waiting]
    ticket = Ticket("m", 1, "", *newcomer)
    if shed is None:
        with pytest.raises(Overloaded):
            admission.offer(ticket, 0.0)
        assert ticket.state is TicketState.REFUSED
        assert admission.counters.refused == 1
    else:
        assert admission.offer(ticket, 0.0) == [there[index] for index in shed]
        assert all(there[index].state is TicketState.SHED for index in shed)
        assert ticket.state is TicketState.WAITING
    admission.check()


def test_of_one_level_the_youngest_is_shed_not_who_has_waited_to_be_there() -> None:
    admission = admission_of(queue_requests=2, aging_s=10.0)
    offer(admission, 10)
    old = offer(admission, 1, priority=1, now=0.0)
    young = offer(admission, 1, priority=0, now=9.0)
    urgent = Ticket("m", 1, priority=-1)
    assert admission.offer(urgent, 10.0) == [young]
    assert old.level == 0


def test_without_a_queue_what_does_not_fit_is_refused() -> None:
    admission = admission_of(queue_requests=0)
    offer(admission, 10)
    with pytest.raises(Overloaded) as caught:
        offer(admission, 1)
    assert caught.value.status == 429
    assert caught.value.retry_after_s is not None


def test_a_full_queue_refuses_nobody_who_need_not_wait() -> None:
    admission = admission_of({"m0": 10, "n0": 10}, queue_requests=1)
    offer(admission, 10)
    offer(admission, 1)
    assert offer(admission, 5, model="n").state is TicketState.ADMITTED


def test_who_has_waited_too_long_is_told_when_to_return() -> None:
    admission = admission_of()
    running = offer(admission, 10)
    first = offer(admission, 4, now=1.0)
    second = offer(admission, 4, now=2.0)
    assert admission.expire(30.9) == []
    assert admission.expire(31.0) == [first]
    refusal = admission.refusal(first, 31.0)
    assert refusal.status == 429
    assert "30.0 s" in refusal.message
    assert refusal.retry_after_s == 10.0, "nothing has been seen leaving"
    assert not admission.finish(first, 31.0), "it is over"
    admission.finish(running, 31.5)
    assert pump(admission, 31.5) == [second]
    counters = admission.counters
    assert (counters.expired, counters.left_queue, counters.waited_s) == (1, 2, 30.0 + 29.5)


def test_who_leaves_makes_way_for_those_behind() -> None:
    admission = admission_of()
    offer(admission, 5)
    large, small = offer(admission, 9), offer(admission, 5)
    assert admission.withdraw(large, 3.0)
    assert large.waited_s == 3.0
    assert not admission.withdraw(large, 3.0)
    assert pump(admission) == [small]
    assert not admission.withdraw(small, 3.0), "it runs"


def test_room_is_kept_for_what_is_admitted_until_it_is_placed() -> None:
    admission = admission_of({"m0": 10, "m1": 10})
    first, second = Ticket("m", 6), Ticket("m", 6)
    admission.offer(first, 0.0)
    admission.offer(second, 0.0)
    assert first.state is TicketState.ADMITTED
    assert second.state is TicketState.WAITING, "both might go to the same replica"
    place(admission, first)
    assert pump(admission) == [second]


def test_a_retry_moves_its_tokens_and_leaves_room_for_what_is_not_placed_yet() -> None:
    admission = admission_of({"m0": 10, "m1": 10, "m2": 10})
    moving = offer(admission, 6)
    assert admission.excluded(moving, {"m0"}) == {"m0"}
    unplaced = Ticket("m", 3)
    admission.offer(unplaced, 0.0)
    offer(admission, 2)
    assert set(admission.excluded(moving, ["m0"])) == {"m0"}
    beside = offer(admission, 3)
    assert beside.replica is not None
    assert beside.replica.id == "m1"
    assert set(admission.excluded(moving, ["m0"])) == {"m0", "m1"}
    admission.take(moving, "m2")
    rooms = admission.capacity.models["m"].replicas
    assert {one.id: one.in_flight_tokens for one in rooms.values()} == {"m0": 2, "m1": 3, "m2": 6}
    admission.check()


def test_a_retry_goes_beyond_a_limit_rather_than_fail() -> None:
    admission = admission_of({"m0": 10, "m1": 10})
    moving, other = offer(admission, 10), offer(admission, 10)
    assert other.replica is not None
    assert other.replica.id == "m1"
    assert set(admission.excluded(moving, ["m0"])) == {"m0"}
    admission.take(moving, "m1")
    admission.check()
    assert offer(admission, 10).state is TicketState.ADMITTED, "m0 is free"


def test_replicas_come_go_and_change() -> None:
    admission = admission_of({"m0": 10})
    running = offer(admission, 10)
    waiting = [offer(admission, tokens) for tokens in (8, 9, 3)]
    admission.capacity.add_replica("m", "m1", 8)
    assert pump(admission) == [], "it is not routable yet"
    admission.capacity.set_routable("m", ["m0", "m1"])
    assert pump(admission) == [waiting[0]]
    admission.capacity.set_limit("m", "m1", 17)
    assert pump(admission) == [waiting[1]]
    admission.capacity.remove_replica("m", "m0")
    admission.check()
    admission.finish(running, 0.0)
    admission.check()
    assert pump(admission) == []
    assert admission.capacity.limited
    admission.capacity.set_limit("m", "m1", None)
    assert pump(admission) == [waiting[2]]
    assert not admission.capacity.limited
    admission.capacity.set_routable("m", [])
    assert offer(admission, 1).state is TicketState.WAITING, "no replica may get it"


def test_its_state_can_be_read() -> None:
    admission = admission_of({"m0": 10, "n0": None}, max_tokens=20)
    offer(admission, 10)
    offer(admission, 4, priority=3)
    admission.offer(Ticket("n", 5), 0.0)
    assert repr(admission) == (
        "<Admission 2 requests, 15/20 tokens; m: m0 10/10; n: n0 0, 5 unplaced; "
        "1 waiting, 4 tokens: 1 in level 3>"
    )


def test_the_time_to_return_follows_how_fast_work_leaves_while_other_work_waits() -> None:
    rate = DrainRate()
    rate.freed(1_000_000, 0.0)
    assert rate.seconds_for(1000, 0.0) is None, "nothing waited: the clients set the pace"
    rate.start(100.0)
    for second in range(1, 61):
        rate.freed(50, 100.0 + second)
    after_a_minute = rate.seconds_for(1000, 160.0)
    assert after_a_minute == pytest.approx(20.0, rel=0.1)
    rate.stop(160.0)
    rate.start(1000.0)
    assert rate.seconds_for(1000, 1000.0) == after_a_minute, "idle time counts for nothing"
    stalled = rate.seconds_for(1000, 1030.0)
    assert stalled is not None
    assert stalled > 200.0
    rate.check()


@pytest.mark.parametrize(
    ("per_s", "expected"), [(1, 60.0), (100, 10.0), (10_000, 1.0)], ids=["slow", "usual", "fast"]
)
def test_the_time_to_return_is_bounded(per_s: int, expected: float) -> None:
    admission = admission_of({"m0": None}, max_tokens=100 * per_s)
    running = [offer(admission, per_s) for _ in range(100)]
    offer(admission, 1000)
    for second, ticket in enumerate(running, 1):
        admission.finish(ticket, float(second))
    assert admission.retry_after_s(100.0) == pytest.approx(expected, rel=0.1)
