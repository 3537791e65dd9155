"""What waits for admission, in the order it is admitted: by level, then tenants in turn.

    model m   level -1   TenantRing     A request starts in the level that is its priority, and
              level  0   TenantRing     each `aging_s` comes to the next more urgent one, where its
    model n   level  0   TenantRing     waiting begins anew (`Lane`).

Nobody ages beyond the most urgent priority that waits: ageing is for passing those who came with
one, and among those of the same priority a level each `aging_s` would be first come, first served.
When a more urgent one comes, who has waited for it comes up at once.

The same tickets lie in two more orders, so that whatever happens costs O(1) for each ticket it
happens to (and O(levels) once): by arrival within each priority, where the oldest expires and the
youngest is shed, and by coming to each level, where the first is the next to age. Of one priority
the older is never less urgent than the younger, so the youngest of the least urgent level is the
last of some priority. Of each priority it is also known which tenant has how much: the one with the
most gives way to others when the queue is full.

What a request would have to compute is asked when it begins to wait, and again now and then, since
caches change: `look`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

from router.core.fair_shedding import Places
from router.core.ids import ReplicaId
from router.core.tenant_ring import TenantRing
from router.core.ticket import LEAST_URGENT, LEVELS, Ticket, Work, clamped

QueueOrder = Literal["response_ratio", "fcfs"]
_SAME = Work.everywhere(1)


class AdmissionQueue:
    """Unbounded: whoever adds keeps the bounds.

    Attributes:
        by_ratio: Whether what caches hold counts: who is next may depend on the replica.
        now: The time last told.
        requests, tokens, body_bytes: Of all that waits.
        requests_by_level, bytes_by_level: The same, level by level.
    """

    def __init__(
        self,
        *,
        quantum_tokens: int,
        aging_s: float | None,
        queue_order: QueueOrder,
        patience_s: float,
    ) -> None:
        """
        Args:
            patience_s: After which the caller turns away who waits.
            queue_order: Of a tenant's requests. Those of the same work come first come first
                served; with "fcfs" all count as such.
        """
        self.requests = 0
        self.tokens = 0
        self.body_bytes = 0
        self.requests_by_level = dict.fromkeys(LEVELS, 0)
        self.bytes_by_level = dict.fromkeys(LEVELS, 0)
        self._quantum_tokens = quantum_tokens
        self._aging_s = aging_s
        self._patience_s = patience_s
        self.by_ratio = queue_order == "response_ratio"
        # By model, then level; only what is not empty.
        self._rings: dict[str, dict[int, TenantRing]] = {}
        self._by_arrival: dict[int, OrderedDict[Ticket, None]] = {
            priority: OrderedDict() for priority in LEVELS
        }
        self._by_tenant: dict[int, dict[str, Places]] = {priority: {} for priority in LEVELS}
        self._by_entry: dict[int, OrderedDict[Ticket, None]] = {
            level: OrderedDict() for level in LEVELS
        }
        # Whose work is to be asked next is first; all of them, or nobody where it does not count.
        self._looks: OrderedDict[Ticket, None] = OrderedDict()
        self._arrivals = 0
        self.now = float("-inf")
        # Nobody ages before, nor beyond.
        self._ages_at = float("inf")
        self._most_urgent = LEAST_URGENT

    @property
    def models(self) -> Iterable[str]:
        """Those for which something waits."""
        return self._rings.keys()

    def level(self, model: str) -> int | None:
        """The most urgent in which something of this model waits."""
        rings = self._rings.get(model)
        return min(rings) if rings else None

    def head(self, model: str, replica: ReplicaId | None) -> tuple[float, Ticket]:
        """Who is next of a model for which something waits, as `Lane.head`, at the time last told.

        First come, first served it is the same for every replica.
        """
        rings = self._rings[model]
        return rings[min(rings)].head(self.now, replica)

    def add(self, ticket: Ticket, now: float) -> None:
        """It waits from now on, in the level of its priority."""
        priority = clamped(ticket.priority)
        self.age(now, priority)
        self._most_urgent = min(self._most_urgent, priority)
        ticket.number = self._arrivals
        self._arrivals += 1
        ticket.offered_at = ticket.entered_at = self.now
        ticket.level = priority
        ticket.its_work = _SAME
        if self.by_ratio:
            ticket.its_work = _work(ticket)
            self._looks[ticket] = None
        self.requests += 1
        self.tokens += ticket.tokens
        self.body_bytes += ticket.body_bytes
        self._by_arrival[priority][ticket] = None
        self._by_tenant[priority].setdefault(ticket.tenant, Places()).add(ticket)
        self._enter(ticket)

    def serve(self, ticket: Ticket) -> None:
        """Take out its model's head, at its tenant's cost."""
        self._ring_of(ticket).serve(ticket)
        self._left(ticket)

    def remove(self, ticket: Ticket) -> None:
        """Take out any ticket, at nobody's cost."""
        self._ring_of(ticket).remove(ticket)
        self._left(ticket)

    def age(self, now: float, newcomer: int = LEAST_URGENT) -> None:
        """Moves up those that have been in their level for long enough.

        Args:
            newcomer: The priority of one that is about to wait, or to pass those who do.

        The least urgent level first: who has waited for two levels' time comes up twice. Each
        level's order of coming stays one of time, since nothing was added later than the last call.
        """
        self.now = max(self.now, now)
        if self._aging_s is None:
            return
        if self.now < self._ages_at and newcomer >= self._most_urgent:
            return
        self._ages_at = float("inf")
        most_urgent = min(self._most_urgent, newcomer)
        for level in range(LEAST_URGENT, most_urgent, -1):
            entered = self._by_entry[level]
            while entered:
                ticket = next(iter(entered))
                ages_at = ticket.entered_at + self._aging_s
                if ages_at > self.now:
                    self._ages_at = min(self._ages_at, ages_at)
                    break
                self._ring_of(ticket).remove(ticket)
                self._leave(ticket)
                ticket.level -= 1
                ticket.entered_at += self._aging_s
                self._enter(ticket)

    def look(self, count: int) -> None:
        """Asks some of them anew what they would have to compute, in turn."""
        for _ in range(min(count, len(self._looks))):
            ticket = next(iter(self._looks))
            self._looks.move_to_end(ticket)
            self._ring_of(ticket).weigh(ticket, _work(ticket))

    def arrived_by(self, moment: float) -> list[Ticket]:
        """Those that came at `moment` or before, oldest first."""
        found: list[Ticket] = []
        for tickets in self._by_arrival.values():
            for ticket in tickets:
                if ticket.offered_at > moment:
                    break
                found.append(ticket)
        found.sort(key=_number)
        return found

    def last(self) -> Ticket:
        """The youngest of the least urgent level. Something must be waiting."""
        lasts = [next(reversed(tickets)) for tickets in self._by_arrival.values() if tickets]
        return max(lasts, key=_level_and_number)

    def places(self, priority: int) -> Mapping[str, Places]:
        """By tenant, what waits with this priority, whatever its level is by now."""
        return self._by_tenant[clamped(priority)]

    def _ring_of(self, ticket: Ticket) -> TenantRing:
        return self._rings[ticket.model][ticket.level]

    def _enter(self, ticket: Ticket) -> None:
        level = ticket.level
        rings = self._rings.setdefault(ticket.model, {})
        ring = rings.get(level)
        if ring is None:
            ring = rings[level] = TenantRing(self._quantum_tokens, self._patience_s)
        ring.add(ticket)
        self._by_entry[level][ticket] = None
        if self._aging_s is not None and level > self._most_urgent:
            self._ages_at = min(self._ages_at, ticket.entered_at + self._aging_s)
        self.requests_by_level[level] += 1
        self.bytes_by_level[level] += ticket.body_bytes

    def _leave(self, ticket: Ticket) -> None:
        """It has left its level's ring."""
        level = ticket.level
        rings = self._rings[ticket.model]
        if not rings[level]:
            del rings[level]
            if not rings:
                del self._rings[ticket.model]
        del self._by_entry[level][ticket]
        self.requests_by_level[level] -= 1
        self.bytes_by_level[level] -= ticket.body_bytes

    def _left(self, ticket: Ticket) -> None:
        """It has left its ring, and waits no longer."""
        self._leave(ticket)
        if self.by_ratio:
            del self._looks[ticket]
        priority = clamped(ticket.priority)
        arrivals = self._by_arrival[priority]
        del arrivals[ticket]
        if not arrivals and priority == self._most_urgent:
            self._most_urgent = self._most_urgent_waiting()
        places = self._by_tenant[priority][ticket.tenant]
        places.remove(ticket)
        if not places.tickets:
            del self._by_tenant[priority][ticket.tenant]
        self.requests -= 1
        self.tokens -= ticket.tokens
        self.body_bytes -= ticket.body_bytes

    def _most_urgent_waiting(self) -> int:
        return next((one for one in LEVELS if self._by_arrival[one]), LEAST_URGENT)

    def __iter__(self) -> Iterator[Ticket]:
        """All that waits, in no order of its own."""
        for tickets in self._by_arrival.values():
            yield from tickets

    def __repr__(self) -> str:
        levels = ", ".join(
            f"{requests} in level {level}"
            for level, requests in self.requests_by_level.items()
            if requests
        )
        return f"{self.requests} waiting, {self.tokens} tokens" + (f": {levels}" if levels else "")

    def check(self) -> None:
        """Assert what must always hold: every order has the same tickets, sums are sums."""
        waiting = set(self)
        assert len(waiting) == self.requests
        assert sum(ticket.tokens for ticket in waiting) == self.tokens
        assert sum(ticket.body_bytes for ticket in waiting) == self.body_bytes
        in_rings: list[Ticket] = []
        for model, rings in self._rings.items():
            assert rings, "a model for which nothing waits is not kept"
            for level, ring in rings.items():
                found = ring.check()
                assert found, "nor is a level"
                assert all(one.model == model and one.level == level for one in found)
                in_rings.extend(found)
        assert len(in_rings) == len(waiting)
        assert set(in_rings) == waiting
        assert set(self._looks) == (waiting if self.by_ratio else set())
        for level, entered in self._by_entry.items():
            times = [ticket.entered_at for ticket in entered]
            assert times == sorted(times), "in the order they came"
            assert all(ticket.level == level and ticket in waiting for ticket in entered)
            assert len(entered) == self.requests_by_level[level]
            assert sum(one.body_bytes for one in entered) == self.bytes_by_level[level]
        assert sum(self.requests_by_level.values()) == self.requests
        assert self._most_urgent == self._most_urgent_waiting()
        for priority, tenants in self._by_tenant.items():
            assert all(one.tickets for one in tenants.values()), "idle tenants are not kept"
            there = [ticket for one in tenants.values() for ticket in one.tickets]
            assert set(there) == set(self._by_arrival[priority])
            for tenant, one in tenants.items():
                assert all(ticket.tenant == tenant for ticket in one.tickets)
                assert one.body_bytes == sum(ticket.body_bytes for ticket in one.tickets)
        for tickets in self._by_arrival.values():
            numbers = [ticket.number for ticket in tickets]
            assert numbers == sorted(numbers)
            levels = [ticket.level for ticket in tickets]
            assert levels == sorted(levels), "of one priority the older is never less urgent"


def _work(ticket: Ticket) -> Work:
    return Work.everywhere(ticket.tokens) if ticket.work is None else ticket.work()


def _number(ticket: Ticket) -> int:
    return ticket.number


def _level_and_number(ticket: Ticket) -> tuple[int, int]:
    return ticket.level, ticket.number
