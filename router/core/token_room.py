"""How many tokens the replicas of a model may still take: what admission asks before it admits.

    replica   max_tokens   in flight   room        unplaced: 600 admitted tokens whose replica
    r0             1,000         700     300                 is not chosen yet
    r1             2,000         400   1,600       fits:     1,000 more, on r1: 400 + 600 + 1,000
    r2             1,000           0       -                 (r2 is not routable)

What is admitted but not placed yet may go to any replica with room for it, so more is admitted only
if one replica has room for all of that together. Then however the policy places them, each still
finds room: whatever it puts elsewhere only leaves more on that one.

A replica with some room may be kept for a request that needs more. To find that out takes longer
than all else here, so it is remembered for a while, unless there is more room than then or the
request waits no longer. The while is a millisecond for each replica: so the fleet's replicas are
looked at about a thousand times a second, at most, beside those that have got more room.

A request larger than every routable replica's limit counts as just as large as the largest limit:
it fits a replica with that limit which has nothing else to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from router.core.ids import ReplicaId

if TYPE_CHECKING:
    from router.core.ticket import Ticket

# Where no limit is set: more tokens than there will ever be.
NO_LIMIT = 1 << 62
KEPT_S_PER_REPLICA = 0.001


@dataclass(slots=True, eq=False)
class ReplicaRoom:
    """What is in flight on one replica, and how much may be, in tokens.

    Attributes:
        kept_for: Who was next there and did not fit, until `kept_until`; with so many tokens taken.
    """

    id: ReplicaId
    max_tokens: int = NO_LIMIT
    in_flight_tokens: int = 0
    kept_for: Ticket | None = field(default=None, repr=False)
    kept_until: float = field(default=0.0, repr=False)
    taken_tokens: int = field(default=0, repr=False)


class ModelRoom:
    """The replicas of one model.

    Attributes:
        routable: Those that may get requests now.
        limited: Whether one of them has a limit.
        unplaced_tokens: Admitted, but their replica is not chosen yet.
    """

    def __init__(self) -> None:
        self.replicas: dict[ReplicaId, ReplicaRoom] = {}
        self.routable: list[ReplicaRoom] = []
        self.unplaced_tokens = 0
        self._largest_limit = 0
        self.limited = False
        # It had room when we last looked: mostly it still has, and no other needs to be asked.
        self._roomy: ReplicaRoom | None = None

    def set_routable(self, replicas: Iterable[ReplicaId]) -> None:
        self.routable = [self.replicas[replica] for replica in replicas]
        self.see_limits()

    def see_limits(self) -> None:
        """Call it after a `max_tokens` or `routable` has changed."""
        limits = [replica.max_tokens for replica in self.routable]
        self._largest_limit = max(limits, default=0)
        self.limited = any(limit != NO_LIMIT for limit in limits)
        self._roomy = None
        self.forget_kept()

    def forget_kept(self) -> None:
        for replica in self.replicas.values():
            replica.kept_for = None

    def keep(self, replica: ReplicaRoom, ticket: Ticket, now: float) -> None:
        """It is next there, and does not fit."""
        replica.kept_for = ticket
        replica.kept_until = now + KEPT_S_PER_REPLICA * len(self.routable)
        replica.taken_tokens = replica.in_flight_tokens + self.unplaced_tokens

    def kept_for(self, replica: ReplicaRoom, now: float) -> Ticket | None:
        """Who was next there not long ago and still would not fit, whether or not it waits yet."""
        if replica.kept_until <= now:
            return None
        if replica.in_flight_tokens + self.unplaced_tokens < replica.taken_tokens:
            return None
        return replica.kept_for

    def fits(self, tokens: int) -> bool:
        """Whether one more request finds room, beside what is not placed yet."""
        if self._roomy is not None and self.has_room(self._roomy, tokens):
            return True
        for replica in self.routable:
            if self.has_room(replica, tokens):
                self._roomy = replica
                return True
        return False

    def has_room(self, replica: ReplicaRoom, tokens: int) -> bool:
        """Whether one more request finds room there, beside what is not placed yet."""
        needed = min(tokens, self._largest_limit) + self.unplaced_tokens
        return replica.in_flight_tokens + needed <= replica.max_tokens

    def never_fits(self, replica: ReplicaRoom, tokens: int) -> bool:
        """Whether it is too small for it, and another is not."""
        return replica.max_tokens < min(tokens, self._largest_limit)

    def full(self, tokens: int, kept_tokens: int) -> Collection[ReplicaId]:
        """The routable replicas without room for a request of `tokens` beside `kept_tokens`."""
        if not self.limited:
            return ()
        needed = min(tokens, self._largest_limit) + kept_tokens
        return [
            replica.id
            for replica in self.routable
            if replica.in_flight_tokens + needed > replica.max_tokens
        ]

    def __repr__(self) -> str:
        return ", ".join(
            f"{one.id} {one.in_flight_tokens}"
            + ("" if one.max_tokens == NO_LIMIT else f"/{one.max_tokens}")
            + ("" if one in self.routable else " (not routable)")
            for one in self.replicas.values()
        ) + (f", {self.unplaced_tokens} unplaced" if self.unplaced_tokens else "")

    def check(self) -> None:
        assert self.unplaced_tokens >= 0
        for replica in self.replicas.values():
            assert replica.in_flight_tokens >= 0
            assert replica.max_tokens > 0
        assert all(self.replicas[one.id] is one for one in self.routable), "what is gone is not"
        limits = [replica.max_tokens for replica in self.routable]
        assert self._largest_limit == max(limits, default=0)
        assert self.limited == any(limit != NO_LIMIT for limit in limits)
        assert self._roomy is None or self._roomy in self.routable
