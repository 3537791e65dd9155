"""Whatever happens in whatever order, admission does what plain lists say it should."""

from random import Random

import pytest
from hypothesis import HealthCheck, settings

from router.core.admission_queue import QueueOrder
from tests.support.admission_machine import AdmissionAgainstLists

TestAdmissionAgainstLists = AdmissionAgainstLists.TestCase
TestAdmissionAgainstLists.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

LIVES = [
    pytest.param(15, 100, 5, 4, [6, 7, 4, 6], id="all-limits"),
    pytest.param(10, 100, None, 1, [None] * 4, id="only-over-all"),
    pytest.param(None, 100, 3, 16, [6, 6, 6, 6], id="only-of-replicas"),
    pytest.param(12, 12, None, 4, [6, 6, None, 4], id="short-queue"),
]


@pytest.mark.parametrize("queue_order", ["response_ratio", "fcfs"])
@pytest.mark.parametrize(("max_tokens", "queue_requests", "aging_s", "quantum", "limits"), LIVES)
def test_a_long_life_is_as_the_lists_say(
    max_tokens: int | None,
    queue_requests: int,
    aging_s: float | None,
    quantum: int,
    limits: list[int | None],
    queue_order: QueueOrder,
) -> None:
    """Thousands of steps without a fresh start, mostly with much waiting."""
    rng = Random(7)
    machine = AdmissionAgainstLists()
    machine.start(max_tokens, queue_requests, 60, aging_s, quantum, queue_order, limits)
    for _ in range(2500):
        model, pick, later = rng.choice("mn"), rng.randrange(1000), rng.random() < 0.2
        step = rng.random()
        if step < 0.45:
            tokens, priority = rng.choice([1, 2, 3, 3, 4, 5, 8]), rng.choice([0, 0, 0, 0, 1, -1, 9])
            work = rng.choice([None, (8, 8, 8), (8, 2, 8), (64, 64, 2), (64, 4, 16), (1, 1, 1)])
            body_bytes = rng.randrange(3)
            machine.offer(model, tokens, rng.choice("abc"), priority, body_bytes, later, work)
        elif step < 0.75 and machine.model.admitted:
            machine.finish(pick, later)
        elif step < 0.8 and machine.model.admitted:
            machine.place_or_move(pick, rng.randrange(1000), later)
        elif step < 0.85 and machine.model.waiting:
            machine.withdraw(pick, later, by_finish=pick % 2 == 0)
        elif step < 0.87 and machine.model.waiting:
            machine.caches_change(pick, rng.choice([(8, 2, 8), (8, 8, 1)]), 3, later)
        elif step < 0.95:
            machine.time_passes(rng.choice([0, 0, 0, 1, 2]))
        elif step < 0.98:
            machine.expire(later)
        else:
            machine.replicas_change(
                model, rng.choice([(True, True), (True, False), (False, False)]), pick,
                rng.choice([6, 4, 7, None]) if limits[0] else None,
                rng.choice(["routable", "routable", "limit", "replace"]), later,
            )  # fmt: skip
            machine.replicas_are_back(rng.choice("mn"))
        machine.all_is_as_the_lists_say()
    assert machine.counts["admitted"] > 200
    assert machine.counts["queued"] > 400
