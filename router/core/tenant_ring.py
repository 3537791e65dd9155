"""Whose request is next among tenants: deficit round robin on tokens, each in its lane's order.

    lanes     a ─────────▶ b ─────────▶ c ─────▶ (a)     a has its turn: it was granted `quantum`
    waiting   [900, 200]   [5,000]      [100]            tokens on top of what it had left; it is
    deficit   1,000        4,000        0                served while its first request costs no
                                                         more than its deficit, then b has its turn

1. A tenant whose turn begins is granted the quantum.
2. While its first request costs no more than its deficit, that request is next; serving it costs
   the deficit its tokens. Which one is first depends on the moment and on the replica that has
   room; asking for the same again changes nothing.
3. Else its turn is over: it goes to the end of the ring and keeps its deficit.
4. A tenant with nothing left to serve leaves the ring and its deficit is forgotten, so that nobody
   saves up by being idle, and idle tenants take no memory.
5. After a whole round in which nobody could be served, the rounds that would serve nobody either
   are granted at once: a request of many quanta costs no more turns than one of two.

With requests of at most M tokens: while two tenants both have something waiting, what they are
served differs by at most quantum + M since they came together, by quantum + 2 M in any interval.
(A turn is over only when the deficit is less than some request costs, so less than M, whichever of
the tenant's is first.)

Source: Shreedhar & Varghese 1996, Efficient Fair Queuing Using Deficit Round Robin. A turn is O(1),
and so is serving where requests are no larger than the quantum; else it is at worst O(tenants).
"""

from __future__ import annotations

from collections import OrderedDict

from router.core.ids import ReplicaId
from router.core.lane import Lane
from router.core.ticket import Ticket, Work


class TenantRing:
    """Tenants with something waiting, the one whose turn it is first."""

    def __init__(self, quantum_tokens: int) -> None:
        assert quantum_tokens > 0, "a turn must be worth something"
        self._quantum_tokens = quantum_tokens
        # An OrderedDict: a plain dict's first key is found slowly when others before it have gone.
        self._lanes: OrderedDict[str, Lane] = OrderedDict()
        self._turn_begun = False

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def add(self, ticket: Ticket) -> None:
        """It waits in its tenant's lane."""
        lane = self._lanes.get(ticket.tenant)
        if lane is None:
            lane = self._lanes[ticket.tenant] = Lane()
        lane.add(ticket)

    def weigh(self, ticket: Ticket, work: Work) -> None:
        """Its work is another now."""
        self._lanes[ticket.tenant].weigh(ticket, work)

    def head(self, now: float, replica: ReplicaId | None) -> tuple[float, Ticket]:
        """Who is next for a replica, or anywhere, as `Lane.head`. The ring must not be empty."""
        lanes, turns = self._lanes, 0
        while True:
            lane = next(iter(lanes.values()))
            if not self._turn_begun:
                lane.deficit_tokens += self._quantum_tokens  # 1
                self._turn_begun = True
            ratio, ticket = lane.head(now, replica)
            if ticket.tokens <= lane.deficit_tokens:  # 2
                return ratio, ticket
            lanes.move_to_end(ticket.tenant)  # 3
            self._turn_begun = False
            turns += 1
            if turns == len(lanes):
                self._skip_rounds(now, replica)  # 5

    def serve(self, ticket: Ticket) -> None:
        """Take out one that was a head at this moment, at its tenant's cost."""
        lane = self._lanes[ticket.tenant]
        assert lane.deficit_tokens >= ticket.tokens, "it was asked for"
        lane.deficit_tokens -= ticket.tokens
        lane.remove(ticket)
        if not lane:
            self._leave(ticket.tenant)

    def remove(self, ticket: Ticket) -> None:
        """Take out any ticket, at nobody's cost."""
        lane = self._lanes[ticket.tenant]
        lane.remove(ticket)
        if not lane:
            self._leave(ticket.tenant)

    def _leave(self, tenant: str) -> None:
        if tenant == next(iter(self._lanes)):
            self._turn_begun = False
        del self._lanes[tenant]  # 4

    def _skip_rounds(self, now: float, replica: ReplicaId | None) -> None:
        """Grants every tenant all rounds but the one in which the first of them can be served."""
        quantum = self._quantum_tokens
        short_tokens = min(
            lane.head(now, replica)[1].tokens - lane.deficit_tokens for lane in self._lanes.values()
        )
        assert short_tokens > 0, "nobody could be served"
        skipped_tokens = (short_tokens - 1) // quantum * quantum
        for lane in self._lanes.values():
            lane.deficit_tokens += skipped_tokens

    def check(self) -> list[Ticket]:
        """Assert what must always hold. Gives all tickets, tenant by tenant."""
        found: list[Ticket] = []
        for tenant, lane in self._lanes.items():
            assert lane, "who has nothing waiting is not in the ring"
            assert lane.deficit_tokens >= 0, "nobody is served on credit"
            lane.check()
            tickets = list(lane)
            assert all(ticket.tenant == tenant for ticket in tickets)
            found.extend(tickets)
        assert self._lanes or not self._turn_begun
        return found
