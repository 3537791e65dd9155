"""The tokens in flight, and the limits on them: of all models together and of each replica."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from router.core.ids import ReplicaId
from router.core.ticket import Ticket
from router.core.token_room import NO_LIMIT, ModelRoom, ReplicaRoom


class Capacity:
    """Counts what is admitted. Knows nothing of queues, and refuses nothing: it is asked first.

    Attributes:
        in_flight_tokens: Of all that is admitted and not freed.
        limited: Whether any limit is set.
    """

    def __init__(self, max_tokens: int | None) -> None:
        self.in_flight_tokens = 0
        self.limited = max_tokens is not None
        self.models: dict[str, ModelRoom] = {}
        self._max_tokens = NO_LIMIT if max_tokens is None else max_tokens
        self._admitted: set[Ticket] = set()

    def add_replica(self, model: str, replica: ReplicaId, max_tokens: int | None) -> None:
        """A new replica; it is not routable yet. None: no limit."""
        room = self.models.setdefault(model, ModelRoom())
        assert replica not in room.replicas, f"replica {replica!r} is there already"
        room.replicas[replica] = ReplicaRoom(replica)
        self.set_limit(model, replica, max_tokens)

    def remove_replica(self, model: str, replica: ReplicaId) -> None:
        """What runs there goes on until it is freed."""
        room = self.models[model]
        del room.replicas[replica]
        room.set_routable([one.id for one in room.routable if one.id != replica])
        self._see_limits()

    def set_limit(self, model: str, replica: ReplicaId, max_tokens: int | None) -> None:
        """It may take so many from now on. What is beyond that goes on."""
        room = self.models[model]
        room.replicas[replica].max_tokens = NO_LIMIT if max_tokens is None else max_tokens
        room.see_limits()
        self._see_limits()

    def set_routable(self, model: str, replicas: Iterable[ReplicaId]) -> None:
        """Only these may get requests from now on."""
        self.models[model].set_routable(replicas)

    def fits(self, model: str, tokens: int) -> bool:
        """Whether a request may be admitted now."""
        return self.fits_limit(tokens) and self.models[model].fits(tokens)

    def fits_limit(self, tokens: int) -> bool:
        """Whether the limit over all models allows it; one larger than that when all is idle."""
        limit = self._max_tokens
        return self.in_flight_tokens + min(tokens, limit) <= limit

    def admit(self, ticket: Ticket) -> None:
        """Room is kept for it until it is placed."""
        self._admitted.add(ticket)
        self.in_flight_tokens += ticket.tokens
        self.models[ticket.model].unplaced_tokens += ticket.tokens

    def excluded(self, ticket: Ticket, tried: Collection[ReplicaId]) -> Collection[ReplicaId]:
        """`tried`, and the replicas that have no room for this admitted ticket, or keep it for
        another.

        If that leaves none, because replicas have gone or a retry finds the others full, only
        `tried`: better a replica beyond its limit by one request than a request failed.
        """
        room = self.models[ticket.model]
        # One that moves must leave room for those that have no place yet.
        kept_tokens = 0 if ticket.replica is None else room.unplaced_tokens
        full = room.full(ticket.tokens, kept_tokens)
        kept = ticket.kept if ticket.replica is None else ()
        if not full and not kept:
            return tried
        excluded = {*tried, *full}
        for passed_over in (excluded.union(kept), excluded):
            if any(one.id not in passed_over for one in room.routable):
                return passed_over
        return tried

    def place(self, ticket: Ticket, replica: ReplicaId) -> None:
        """It runs there from now on, and no longer where it ran before."""
        room = self.models[ticket.model]
        self._displace(ticket, room)
        ticket.replica = placed = room.replicas[replica]
        placed.in_flight_tokens += ticket.tokens

    def free(self, ticket: Ticket) -> None:
        """An admitted ticket is over."""
        self._admitted.remove(ticket)
        self.in_flight_tokens -= ticket.tokens
        self._displace(ticket, self.models[ticket.model])

    def forget_kept(self) -> None:
        """Nobody waits: no replica is kept for anybody."""
        for room in self.models.values():
            room.forget_kept()

    @property
    def keeps(self) -> bool:
        """Whether a replica is kept for somebody."""
        return any(
            replica.kept_for is not None
            for room in self.models.values()
            for replica in room.replicas.values()
        )

    def _displace(self, ticket: Ticket, room: ModelRoom) -> None:
        if ticket.replica is None:
            room.unplaced_tokens -= ticket.tokens
        else:
            ticket.replica.in_flight_tokens -= ticket.tokens

    def _see_limits(self) -> None:
        self.limited = self._max_tokens != NO_LIMIT or any(
            replica.max_tokens != NO_LIMIT
            for room in self.models.values()
            for replica in room.replicas.values()
        )

    def __iter__(self) -> Iterator[Ticket]:
        """All that is admitted."""
        return iter(self._admitted)

    def __repr__(self) -> str:
        limit = "" if self._max_tokens == NO_LIMIT else f"/{self._max_tokens}"
        rooms = "".join(f"; {name}: {room!r}" for name, room in self.models.items())
        return f"{len(self._admitted)} requests, {self.in_flight_tokens}{limit} tokens{rooms}"

    def check(self) -> None:
        """Assert what must always hold: totals are the sums over what is admitted."""
        assert self.in_flight_tokens == sum(ticket.tokens for ticket in self._admitted)
        placed: dict[ReplicaRoom, int] = {}
        unplaced = dict.fromkeys(self.models, 0)
        for ticket in self._admitted:
            if ticket.replica is None:
                unplaced[ticket.model] += ticket.tokens
            else:
                placed[ticket.replica] = placed.get(ticket.replica, 0) + ticket.tokens
        for name, room in self.models.items():
            room.check()
            assert room.unplaced_tokens == unplaced[name]
            for replica in room.replicas.values():
                assert replica.in_flight_tokens == placed.get(replica, 0), "each is counted once"
