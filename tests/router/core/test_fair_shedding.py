"""A full queue is shared by the tenants of a priority, whoever filled it first."""

import pytest

from protocol.errors import Overloaded
from router.core.ticket import Ticket
from tests.support.admissions import admission_of, offer


@pytest.mark.parametrize(
    ("waiting", "newcomer", "shed"),
    [
        pytest.param("aaaa", "b", [3], id="the-youngest-of-who-has-all"),
        pytest.param("aaab", "b", [2], id="as-long-as-that-one-keeps-no-less"),
        pytest.param("aabb", "b", None, id="shared-fairly"),
        pytest.param("aabb", "c", [3], id="of-equals-always-the-same"),
        pytest.param("aaab", "a", None, id="nobody-has-more"),
        pytest.param("aaaa", "a", None, id="its-own-is-not-shed"),
        pytest.param("abcd", "e", None, id="one-each"),
    ],
)
def test_no_tenant_fills_the_queue_for_the_others(
    waiting: str, newcomer: str, shed: list[int] | None
) -> None:
    admission = admission_of(queue_requests=4)
    offer(admission, 10)
    there = [offer(admission, 1, tenant=tenant) for tenant in waiting]
    ticket = Ticket("m", 1, newcomer)
    if shed is None:
        with pytest.raises(Overloaded):
            admission.offer(ticket, 0.0)
    else:
        assert admission.offer(ticket, 0.0) == [there[index] for index in shed]
        assert "fewer waiting" in admission.refusal(there[shed[0]], 0.0).message
    admission.check()


def test_who_filled_the_queue_long_ago_gives_way_to_others_too() -> None:
    admission = admission_of(queue_requests=4, aging_s=10.0)
    offer(admission, 10)
    there = [offer(admission, 1, tenant="a", now=0.0) for _ in range(3)]
    offer(admission, 1, tenant="c", priority=-2, now=25.0)
    ticket = Ticket("m", 1, "b")
    assert admission.offer(ticket, 25.0) == [there[2]]
    assert there[0].level == -2


def test_large_bodies_count_as_places() -> None:
    admission = admission_of(queue_requests=10, queue_bytes=100)
    offer(admission, 10)
    there = [offer(admission, 1, tenant="a", body_bytes=30) for _ in range(3)]
    offer(admission, 1, tenant="b", body_bytes=1)
    with pytest.raises(Overloaded):
        offer(admission, 1, tenant="c", body_bytes=80)  # more than a would keep
    ticket = Ticket("m", 1, "c", body_bytes=35)
    assert admission.offer(ticket, 0.0) == [there[2]]
    admission.check()
