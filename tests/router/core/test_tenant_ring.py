"""Tenants take turns by tokens, exactly as the paper's rounds say, and nobody is left behind."""

from collections import deque
from itertools import count
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.tenant_ring import TenantRing
from router.core.ticket import Ticket, Work

SAME = Work.everywhere(1)
_numbers = count()


def ticket(tenant: str, tokens: int, work: Work = SAME) -> Ticket:
    """It waits since 0.0."""
    made = Ticket("m", tokens, tenant)
    made.number, made.entered_at, made.its_work = next(_numbers), 0.0, work
    return made


def head_of(ring: TenantRing, now: float = 0.0, replica: str | None = None) -> Ticket:
    return ring.head(now, replica)[1]


def ring_of(quantum: int, *requests: tuple[str, int]) -> TenantRing:
    ring = TenantRing(quantum, inf)
    for tenant, tokens in requests:
        ring.add(ticket(tenant, tokens))
    return ring


def served(ring: TenantRing) -> list[tuple[str, int]]:
    """All of it, in order."""
    order: list[tuple[str, int]] = []
    while ring:
        head = head_of(ring)
        assert head_of(ring) is head, "asking changes nothing"
        ring.serve(head)
        ring.check()
        order.append((head.tenant, head.tokens))
    return order


@pytest.mark.parametrize(
    ("quantum", "requests", "expected"),
    [
        pytest.param(5, [("a", 9), ("a", 1)], [("a", 9), ("a", 1)], id="one-tenant-is-a-queue"),
        pytest.param(1, [("a", 1), ("a", 1), ("b", 1), ("b", 1)],
                     [("a", 1), ("b", 1), ("a", 1), ("b", 1)], id="in-turn"),
        pytest.param(4, [("a", 2), ("a", 2), ("a", 2), ("b", 3), ("b", 3)],
                     [("a", 2), ("a", 2), ("b", 3), ("b", 3), ("a", 2)], id="a-turn-is-a-quantum"),
        pytest.param(3, [("a", 9), ("a", 1), ("b", 3), ("b", 3), ("b", 3), ("b", 3)],
                     [("a", 9), ("b", 3), ("b", 3), ("b", 3), ("a", 1), ("b", 3)],
                     id="large-ones-are-paid-off"),
        pytest.param(1, [("a", 10**12), ("a", 1), ("b", 10**12 + 1), ("b", 1)],
                     [("a", 10**12), ("b", 10**12 + 1), ("a", 1), ("b", 1)],
                     id="many-quanta-at-once"),
    ],
)  # fmt: skip
def test_tenants_take_turns(
    quantum: int, requests: list[tuple[str, int]], expected: list[tuple[str, int]]
) -> None:
    assert served(ring_of(quantum, *requests)) == expected


def test_who_leaves_costs_its_tenant_nothing() -> None:
    ring = ring_of(4, ("b", 4), ("b", 4))
    left = ticket("a", 4)
    ring.add(left)
    ring.add(ticket("a", 3))
    ring.remove(left)
    assert served(ring) == [("b", 4), ("a", 3), ("b", 4)]


def test_who_leaves_in_debt_pays_before_it_is_served_again() -> None:
    ring = ring_of(10, ("a", 35), *[("b", 10)] * 5)
    ring.serve(head_of(ring))
    ring.add(ticket("a", 1))
    assert [tenant for tenant, _ in served(ring)] == ["b", "b", "b", "a", "b", "b"]


def test_debts_are_forgotten_once_paid_or_when_nobody_waits() -> None:
    ring = ring_of(10, ("a", 25), *[("b", 10)] * 4)
    ring.serve(head_of(ring))
    for left in (["b", "a"], ["b", "a"], ["b"]):
        assert list(ring._lanes) == left
        ring.serve(head_of(ring))
        ring.check()
    ring = ring_of(10, ("a", 25), ("b", 10))
    ring.serve(head_of(ring))
    ring.serve(head_of(ring))
    assert not ring
    assert not ring._lanes


def test_who_has_nothing_waiting_saves_nothing_and_is_forgotten() -> None:
    ring = ring_of(10, ("a", 1))
    ring.serve(head_of(ring))
    assert not ring
    assert not ring._lanes
    for _ in range(3):
        ring.add(ticket("a", 10))
        ring.add(ticket("b", 10))
    assert [tenant for tenant, _ in served(ring)] == ["a", "b"] * 3


def test_the_one_whose_turn_it_is_may_leave() -> None:
    ring = ring_of(4, ("a", 2), ("b", 4), ("c", 4))
    ring.remove(head_of(ring))
    ring.check()
    assert served(ring) == [("b", 4), ("c", 4)]


def rounds(quantum: int, requests: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Surplus round robin as the paper has it, round by round."""
    queues: dict[str, deque[int]] = {}
    for tenant, tokens in requests:
        queues.setdefault(tenant, deque()).append(tokens)
    deficits = dict.fromkeys(queues, 0)
    active = deque(queues)
    order: list[tuple[str, int]] = []
    while active:
        tenant = active.popleft()
        deficits[tenant] += quantum
        while queues[tenant] and deficits[tenant] > 0:
            tokens = queues[tenant].popleft()
            deficits[tenant] -= tokens
            order.append((tenant, tokens))
        if queues[tenant]:
            active.append(tenant)
    return order


REQUESTS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 40)), max_size=30)


@given(st.integers(1, 50), REQUESTS)
def test_the_order_is_the_papers(quantum: int, requests: list[tuple[str, int]]) -> None:
    assert served(ring_of(quantum, *requests)) == rounds(quantum, requests)


@settings(deadline=None)
@given(
    st.integers(1, 50),
    st.lists(st.integers(1, 40), min_size=20, max_size=60),
    st.lists(st.integers(1, 40), min_size=20, max_size=60),
    REQUESTS,
)
def test_two_who_came_together_and_both_wait_differ_by_at_most_quantum_and_largest(
    quantum: int, of_a: list[int], of_b: list[int], others: list[tuple[str, int]]
) -> None:
    ring = ring_of(quantum, *[("c", tokens) for _, tokens in others])
    for tenant, tokens_of in (("a", of_a), ("b", of_b)):
        for tokens in tokens_of:
            ring.add(ticket(tenant, tokens))
    left = {"a": sum(of_a), "b": sum(of_b)}
    got = {"a": 0, "b": 0}
    while all(left.values()):
        head = head_of(ring)
        ring.serve(head)
        if head.tenant in got:
            left[head.tenant] -= head.tokens
            got[head.tenant] += head.tokens
            assert abs(got["a"] - got["b"]) <= quantum + 40


def test_who_is_first_of_a_tenant_depends_on_the_replica_and_the_moment() -> None:
    ring = TenantRing(100, inf)
    cold, warm = ticket("a", 9, Work.everywhere(64)), ticket("a", 9, Work.of(64, {"r0": 8}))
    ring.add(cold)
    ring.add(warm)
    assert [head_of(ring, 1.0, where) for where in ("r0", "r1", None)] == [warm, cold, warm]
    young = ticket("a", 9, Work.everywhere(8))
    young.entered_at = 9.0
    ring.add(young)
    assert head_of(ring, 9.5, "r1") is cold
    assert head_of(ring, 19.0, "r1") is young
    ring.weigh(young, Work.everywhere(64))
    ring.check()
    assert head_of(ring, 19.0, "r1") is cold


@settings(deadline=None)
@given(
    st.integers(1, 50),
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(1, 40), st.integers(1, 200)),
        min_size=40,
        max_size=80,
    ),
    st.lists(st.sampled_from(["r0", "r1", None]), min_size=80, max_size=80),
)
def test_turns_are_as_fair_whichever_replicas_ask(
    quantum: int, requests: list[tuple[str, int, int]], asking: list[str | None]
) -> None:
    ring = TenantRing(quantum, inf)
    left = {"a": 0, "b": 0}
    for tenant, tokens, work in requests:
        ring.add(ticket(tenant, tokens, Work.of(200, {"r0": work} if work < 200 else {})))
        left[tenant] += tokens
    got = {"a": 0, "b": 0}
    for now, where in enumerate(asking):
        if not all(left.values()):
            break
        ring.head(now, "r1")  # it may have room, and not take who is next
        head = head_of(ring, now, where)
        ring.serve(head)
        ring.check()
        left[head.tenant] -= head.tokens
        got[head.tenant] += head.tokens
        assert abs(got["a"] - got["b"]) <= quantum + 2 * 40
