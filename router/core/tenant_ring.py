"""Whose request is next among tenants: surplus round robin on tokens, each in its lane's order.

    lanes     a ─────────▶ b ─────────▶ c ─────▶ (a)     a has its turn: it is served while its
    waiting   [900, 200]   [5,000]      []               deficit is above 0, whatever its next
    deficit   300          -4,000       -700             request costs, then b's turn begins

1. A tenant whose turn begins is granted the quantum. If its deficit is then above 0, its next
   request is next; else its turn is over.
2. Serving a request costs the deficit its tokens. At 0 or below the turn is over: the tenant goes
   to the end of the ring and keeps its deficit.
3. A tenant with nothing left to serve leaves the ring and a deficit above 0 is forgotten, so that
   nobody saves up by being idle. One below 0 stays until it is paid off, turn by turn, or nobody
   waits: who sends one large request at a time gets no more than others.
4. Before a whole round in which nobody could be served, the rounds that would serve nobody either
   are granted at once: a request of many quanta costs no more turns than one of two.

Which request is a tenant's next may depend on the moment and on the replica that has room (`Lane`);
whose turn it is does not, and asking changes nothing.

With requests of at most M tokens: while two tenants both have something waiting, what they are
served differs by at most quantum + M since they came together, by quantum + 2 M in any interval.

Sources: Adiseshu, Parulkar & Varghese 1996, A Reliable and Scalable Striping Protocol (surplus);
Shreedhar & Varghese 1996, Efficient Fair Queuing Using Deficit Round Robin. A turn is O(1), and so
is serving where requests are no larger than the quantum; else it is at worst O(tenants).
"""

from __future__ import annotations

from collections import OrderedDict

from router.core.ids import ReplicaId
from router.core.lane import Lane
from router.core.ticket import Ticket, Work


class TenantRing:
    """Tenants with something waiting, or something to pay; the one whose turn it is first."""

    def __init__(self, quantum_tokens: int, patience_s: float) -> None:
        assert quantum_tokens > 0, "a turn must be worth something"
        self._quantum_tokens = quantum_tokens
        self._patience_s = patience_s
        # An OrderedDict: a plain dict's first key is found slowly when others before it have gone.
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._waiting = 0

    def __bool__(self) -> bool:
        return self._waiting > 0

    def add(self, ticket: Ticket) -> None:
        """It waits in its tenant's lane."""
        lane = self._lanes.get(ticket.tenant)
        if lane is None:
            lane = self._lanes[ticket.tenant] = Lane(self._patience_s)
        lane.add(ticket)
        self._waiting += 1
        if self._waiting == 1:
            self._begin_turn()

    def weigh(self, ticket: Ticket, work: Work) -> None:
        """Its work is another now."""
        self._lanes[ticket.tenant].weigh(ticket, work)

    def head(self, now: float, replica: ReplicaId | None) -> tuple[float, Ticket]:
        """Who is next for a replica, or anywhere, as `Lane.head`. Something must be waiting."""
        return next(iter(self._lanes.values())).head(now, replica)

    def serve(self, ticket: Ticket) -> None:
        """Take out one of the tenant whose turn it is, at its cost."""
        tenant, lane = next(iter(self._lanes.items()))
        assert ticket.tenant == tenant, "only who has its turn is served"
        lane.deficit_tokens -= ticket.tokens  # 2
        self.remove(ticket)
        if lane and lane.deficit_tokens <= 0:
            self._lanes.move_to_end(tenant)
            self._begin_turn()

    def remove(self, ticket: Ticket) -> None:
        """Take out any ticket, at nobody's cost."""
        tenant = ticket.tenant
        lane, has_turn = self._lanes[tenant], tenant == next(iter(self._lanes))
        lane.remove(ticket)
        self._waiting -= 1
        if not self._waiting:
            self._lanes.clear()
        elif not lane:
            if lane.deficit_tokens >= 0:  # 3
                del self._lanes[tenant]
            elif has_turn:
                self._lanes.move_to_end(tenant)
            if has_turn:
                self._begin_turn()

    def _begin_turn(self) -> None:
        """Of the first that can be served. Something must be waiting."""
        lanes, turns = self._lanes, 0
        while True:
            if turns == len(lanes):
                self._skip_rounds()  # 4
                turns = 0
            tenant, lane = next(iter(lanes.items()))
            lane.deficit_tokens += self._quantum_tokens  # 1
            if lane and lane.deficit_tokens > 0:
                return
            if not lane and lane.deficit_tokens >= 0:
                del lanes[tenant]
            else:
                lanes.move_to_end(tenant)
                turns += 1

    def _skip_rounds(self) -> None:
        """Grants every tenant all rounds but the one in which the first of them can be served."""
        owed_tokens = min(-lane.deficit_tokens for lane in self._lanes.values() if lane)
        skipped_tokens = owed_tokens // self._quantum_tokens * self._quantum_tokens
        for lane in self._lanes.values():
            lane.deficit_tokens = min(0, lane.deficit_tokens + skipped_tokens)

    def check(self) -> list[Ticket]:
        """Assert what must always hold. Gives all tickets, tenant by tenant."""
        found: list[Ticket] = []
        for index, (tenant, lane) in enumerate(self._lanes.items()):
            lane.check()
            tickets = list(lane)
            assert all(ticket.tenant == tenant for ticket in tickets)
            found.extend(tickets)
            if index == 0:
                assert lane.deficit_tokens > 0, "it has its turn"
                assert tickets, "and something to be served"
            else:
                assert lane.deficit_tokens <= 0 or not tickets, "nobody is granted turns ahead"
        assert len(found) == self._waiting
        assert found or not self._lanes, "debts are kept only from those who wait"
        return found
