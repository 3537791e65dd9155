"""Who waits goes in an order that knows caches and lets nobody starve."""

from router.core.ticket import TicketState, Work
from tests.support.admissions import admission_of, offer, pump


def test_nobody_ages_before_somebody_more_urgent_comes() -> None:
    admission = admission_of(aging_s=10.0)
    running = offer(admission, 10)
    older, old = offer(admission, 10, now=0.0), offer(admission, 10, now=8.0)
    assert pump(admission, 100.0) == []
    assert (older.level, old.level) == (0, 0)
    admission.finish(running, 15.0)
    urgent = offer(admission, 1, priority=-1, now=115.0)
    assert urgent.state is TicketState.WAITING, "they have waited for it, and come first"
    assert (older.level, old.level, urgent.level) == (-1, -1, -1)
    assert (older.entered_at, old.entered_at, urgent.entered_at) == (10.0, 18.0, 115.0)


def test_the_warm_wait_for_the_replica_that_holds_their_prefix() -> None:
    admission = admission_of({"m0": 10, "m1": 10})
    running = [offer(admission, 10), offer(admission, 10)]
    warm = [offer(admission, 5, work=(100, {"m1": 4})) for _ in range(3)]
    cold = [offer(admission, 5, work=(100, {}), now=1.0) for _ in range(3)]
    admission.finish(running[1], 2.0)
    assert pump(admission, 2.0) == warm[:2]
    admission.finish(warm[0], 3.0)
    assert pump(admission, 3.0) == warm[2:]
    admission.finish(running[0], 4.0)
    assert pump(admission, 4.0) == cold[:2]


def test_a_cold_one_does_not_starve() -> None:
    admission = admission_of()
    running = offer(admission, 10)
    cold = offer(admission, 10, work=(1000, {}))
    passed = 0
    for second in range(1, 1000):
        warm = offer(admission, 10, work=(1000, {"m0": 10}), now=float(second))
        admission.finish(running, second + 0.5)
        [running] = pump(admission, second + 0.5)
        if running is cold:
            break
        assert running is warm
        passed += 1
    # 18.5 s of 30 for 1,000 tokens is 0.048, 19.5 s is 0.056; 0.5 s for a warm one's 10 is 0.051.
    assert passed == 18


def test_a_replica_is_kept_for_its_next_while_others_go_on() -> None:
    admission = admission_of({"m0": 10, "m1": 10})
    running = [offer(admission, 6), offer(admission, 6), offer(admission, 4), offer(admission, 4)]
    large = offer(admission, 8, work=(100, {"m0": 1}))
    small = offer(admission, 4, work=(50, {}))
    assert large.state is small.state is TicketState.WAITING
    admission.finish(running[0], 1.0)
    assert pump(admission, 1.0) == [], "m0 is kept for the large one, which does not fit yet"
    admission.finish(running[3], 2.0)
    assert pump(admission, 2.0) == [small], "m1 is not"
    assert admission.capacity.models["m"].replicas["m1"].in_flight_tokens == 10


def test_who_is_too_large_for_a_replica_keeps_the_others_from_none_for_long() -> None:
    admission = admission_of({"m0": 10, "m1": 20})
    running = [offer(admission, 10), offer(admission, 20)]
    large = offer(admission, 15, work=(10, {}))
    small = offer(admission, 5, work=(10, {}))
    admission.finish(running[0], 1.0)
    assert pump(admission, 1.0) == [], "all wait until the large one has gone where it fits"
    admission.finish(running[1], 2.0)
    assert pump(admission, 2.0) == [large, small]


def test_first_come_first_served_asks_for_no_cache() -> None:
    admission = admission_of({"m0": 10, "m1": 10}, queue_order="fcfs")
    running = [offer(admission, 10), offer(admission, 10)]
    cold = offer(admission, 10, work=(100, {}))
    warm = offer(admission, 10, work=(100, {"m0": 1}), now=1.0)
    cold.work = warm.work = None
    admission.queue.look(100)
    for ended, expected in zip(running, (cold, warm), strict=True):
        admission.finish(ended, 2.0)
        assert pump(admission, 2.0) == [expected]


def test_who_waits_is_looked_at_anew_in_turn() -> None:
    admission = admission_of(queue_requests=9)
    running = offer(admission, 10)
    waiting = [offer(admission, 10, work=(100, {})) for _ in range(4)]
    now_cached = Work.of(100, {"m0": 1})
    for ticket in waiting:
        ticket.work = lambda: now_cached
    admission.queue.look(2)
    assert [one.its_work is now_cached for one in waiting] == [True, True, False, False]
    admission.queue.look(1)
    admission.queue.look(100)
    assert all(one.its_work is now_cached for one in waiting)
    admission.check()
    admission.finish(running, 1.0)
    assert pump(admission, 1.0) == waiting[:1]
