"""Admission: which requests run now, which wait and in what order, which are turned away.

Work is counted in tokens: what a request will occupy in a KV cache. Limits on the tokens in flight:
one over all models, one for each replica. Without a limit nobody waits.

The order among those that wait:

1. The most urgent level first, whatever the model. Waiting makes more urgent (`AdmissionQueue`).
2. Within a level the models take turns by the tokens they were admitted (`ModelTurns`).
3. Within a model and level the tenants take turns by tokens (`TenantRing`).
4. Of a tenant's requests the next is who has waited longest for what it has to compute: the warm go
   first, until a cold one has waited for long, or will be turned away (`Lane`). Or first come,
   first served.

Who is next depends on the replica that has room, by what its cache holds. Nobody overtakes the next
of its model there: if that one does not fit, nobody goes there, smaller and less urgent ones
neither. They would take what becomes free, and a large request would never find enough; as nothing
passes it, what runs will end and leave it room. Other replicas and models go on. If the next fits a
replica but not the limit over all, all models wait, for the same reason; and if a replica's limit
is too small for its next, all of the model wait until that has gone where the limit is larger.

A request larger than a limit counts as just as large as that: it runs when nothing else does (limit
over all), or when a replica with the model's largest limit is idle. Nothing is too large to run.

The wiring. `owner` is the caller's request; room is kept from a ticket's admission to its `take`:

    open       if admission.capacity.limited (else as ever), and if a replica is routable:
               for one in admission.offer(ticket, now): one.owner.fail(admission.refusal(one, now))
               then go on at once if ticket.state is ADMITTED, else wait for start()
    assign     exclude admission.excluded(ticket, tried); admission.take(ticket, chosen). On a retry
               the same again: it takes the ticket away from the replica that failed
    finished   admission.finish(ticket, now), however it ended, waiting or running; then pump
    pump       while one := admission.admit_next(now): one.owner.start()       # it assigns
    apply      after a transition: admission.capacity.set_routable(model, those that are); pump
    tick       for one in admission.expire(now): one.owner.fail(admission.refusal(one, now));
               admission.look_again(); pump
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from protocol.errors import Overloaded
from router.core.admission_queue import AdmissionQueue, QueueOrder
from router.core.capacity import Capacity
from router.core.drain_rate import DrainRate
from router.core.fair_shedding import excess
from router.core.ids import ReplicaId
from router.core.model_turns import ModelTurns
from router.core.ticket import LEVELS, Ticket, TicketState, clamped

# How many are looked at again at each tick: ten ticks a second, each look some 20 µs.
_LOOKS = 8
_RETRY_AFTER_S_LEAST = 1.0
_RETRY_AFTER_S_MOST = 60.0
# While nothing has been seen leaving.
_RETRY_AFTER_S_UNKNOWN = 10.0

# Looked up on every request: an enum's member takes several times as long to find as a name.
_NEW, _WAITING, _ADMITTED = TicketState.NEW, TicketState.WAITING, TicketState.ADMITTED
_FINISHED = TicketState.FINISHED


@dataclass(slots=True)
class AdmissionCounters:
    """How many requests ever were admitted, had to wait, and so on; and how long they waited.

    Attributes:
        admitted: With or without waiting.
        queued: Had to wait; they leave the queue admitted, shed, expired or withdrawn.
        refused: Came when the queue was full of what is no less urgent.
        left_queue, waited_s: How many no longer wait, and how long they did, together.
    """

    admitted: int = 0
    queued: int = 0
    refused: int = 0
    shed: int = 0
    expired: int = 0
    withdrawn: int = 0
    left_queue: int = 0
    waited_s: float = 0.0


class Next(NamedTuple):
    """Who is next of a model and fits a replica, whether or not it fits the limit over all.

    Attributes:
        kept: Replicas with some room, but for another, who is next there and needs more.
    """

    ticket: Ticket
    kept: Collection[ReplicaId] = ()


class Admission:
    """Pure: time is the caller's, in seconds.

    Attributes:
        capacity: The limits, and what is in flight. Whatever may make room there: pump.
        queue: What waits.
    """

    def __init__(
        self,
        *,
        max_tokens: int | None = None,
        queue_requests: int = 1024,
        queue_bytes: int = 256 * 1024**2,
        queue_timeout_s: float = 30.0,
        aging_s: float | None = 10.0,
        quantum_tokens: int = 8192,
        queue_order: QueueOrder = "response_ratio",
    ) -> None:
        """See `AdmissionConfig`."""
        self.capacity = Capacity(max_tokens)
        self.queue = AdmissionQueue(
            quantum_tokens=quantum_tokens,
            aging_s=aging_s,
            queue_order=queue_order,
            patience_s=queue_timeout_s,
        )
        self.counters = AdmissionCounters()
        self._queue_requests = queue_requests
        self._queue_bytes = queue_bytes
        self._queue_timeout_s = queue_timeout_s
        self._turns = {level: ModelTurns() for level in LEVELS}
        self._drain = DrainRate()

    def offer(self, ticket: Ticket, now: float) -> Sequence[Ticket]:
        """A new request: it is admitted, or waits, as its `state` says.

        Returns:
            Those that waited and are shed to make room for it: less urgent ones, youngest first,
            or those of a tenant that has more than its share. If there are any: pump.

        Raises:
            Overloaded: It would have to wait, and the queue is full of what is no less urgent, and
                shared fairly.
        """
        assert ticket.state is _NEW, "a request is offered once"
        assert ticket.tokens > 0, "every request occupies something"
        queue = self.queue
        if not queue.requests and self.capacity.fits(ticket.model, ticket.tokens):
            self._admit(ticket)
            return ()
        level = clamped(ticket.priority)
        queue.age(now, level)
        if self.capacity.fits(ticket.model, ticket.tokens) and self._comes_first(ticket, level):
            self._turns[level].admitted(ticket.model, ticket.tokens)
            self._admit(ticket)
            return ()
        shed = self._make_place(ticket, now)
        queue.add(ticket, now)
        ticket.state = _WAITING
        self.counters.queued += 1
        self._drain.start(now)
        return shed

    def admit_next(self, now: float) -> Ticket | None:
        """The next that waits is admitted, if it fits; None if not.

        To pump is to call it until it gives None: whenever there may be room, and now and then,
        since waiting changes the order.
        """
        if not self.queue.requests:
            return None
        self.queue.age(now)
        first = self._next()
        if first is None or not self.capacity.fits_limit(first.ticket.tokens):
            return None
        ticket = first.ticket
        ticket.kept = first.kept
        self._turns[ticket.level].admitted(ticket.model, ticket.tokens)
        self.queue.serve(ticket)
        self._left_queue(ticket, now)
        self._admit(ticket)
        return ticket

    def excluded(self, ticket: Ticket, tried: Collection[ReplicaId] = ()) -> Collection[ReplicaId]:
        """The replicas that the policy must pass over: `tried`, and those without room for it.

        Never all that are left: see `Capacity.excluded`.
        """
        assert ticket.state is _ADMITTED, "only what is admitted is placed"
        return self.capacity.excluded(ticket, tried)

    def take(self, ticket: Ticket, replica: ReplicaId) -> None:
        """It runs there from now on, and no longer where it ran before; if it did: pump."""
        assert ticket.state is _ADMITTED, "only what is admitted runs"
        self.capacity.place(ticket, replica)

    def finish(self, ticket: Ticket, now: float) -> bool:
        """It is over, however it ended, running or waiting: pump.

        False if it was over before: finishing twice is fine.
        """
        if ticket.state is not _ADMITTED:
            return self.withdraw(ticket, now)
        ticket.state = _FINISHED
        self.capacity.free(ticket)
        if self.queue.requests:
            self._drain.freed(ticket.tokens, now)
        return True

    def withdraw(self, ticket: Ticket, now: float) -> bool:
        """Its client has left: it waits no longer, at no cost to its tenant. False if it did not.

        Those behind it may fit where it did not: pump.
        """
        if ticket.state is not _WAITING:
            return False
        ticket.state = TicketState.WITHDRAWN
        self.queue.remove(ticket)
        self.counters.withdrawn += 1
        self._left_queue(ticket, now)
        return True

    def expire(self, now: float) -> list[Ticket]:
        """Those that have waited for `queue_timeout_s`, oldest first; they wait no longer: pump."""
        if not self.queue.requests:
            return []
        expired = self.queue.arrived_by(now - self._queue_timeout_s)
        for ticket in expired:
            ticket.state = TicketState.EXPIRED
            self.queue.remove(ticket)
            self.counters.expired += 1
            self._left_queue(ticket, now)
        return expired

    def look_again(self) -> None:
        """Some of those that wait are asked anew what they would have to compute: pump."""
        self.queue.look(_LOOKS)

    def refusal(self, ticket: Ticket, now: float) -> Overloaded:
        """What to answer one that was shed or has expired."""
        if ticket.state is TicketState.EXPIRED:
            message = f"the request has waited for {ticket.waited_s:.1f} s, as long as it may"
        else:
            assert ticket.state is TicketState.SHED, "nobody else is turned away after waiting"
            message = (
                "the queue is full, and more urgent requests have come, or some of tenants with"
                " fewer waiting"
            )
        return Overloaded(message, retry_after_s=self.retry_after_s(now))

    def retry_after_s(self, now: float) -> float:
        """When all that waits will have been admitted, judged by how fast what runs has ended."""
        drained_s = self._drain.seconds_for(self.queue.tokens, now)
        if drained_s is None:
            return _RETRY_AFTER_S_UNKNOWN
        return min(max(drained_s, _RETRY_AFTER_S_LEAST), _RETRY_AFTER_S_MOST)

    def _admit(self, ticket: Ticket) -> None:
        ticket.state = _ADMITTED
        self.capacity.admit(ticket)
        self.counters.admitted += 1

    def next_of(self, model: str) -> Next | None:
        """Of a model of which something waits; None: nobody may go.

        If several replicas have room for the next ones there, who has waited longest for its work.
        """
        room, queue = self.capacity.models[model], self.queue
        if not (room.limited and queue.by_ratio):
            _, ticket = queue.head(model, None)
            return Next(ticket) if room.fits(ticket.tokens) else None
        level, now = queue.level(model), queue.now
        chosen, highest = None, -1.0
        kept: list[ReplicaId] = []
        for replica in room.routable:
            if not room.has_room(replica, 1):
                continue
            before = room.kept_for(replica, now)
            if before is not None and before.state is _WAITING and before.level == level:
                kept.append(replica.id)
                continue
            ratio, ticket = queue.head(model, replica.id)
            if room.never_fits(replica, ticket.tokens):
                return Next(ticket) if room.fits(ticket.tokens) else None
            if not room.has_room(replica, ticket.tokens):
                kept.append(replica.id)
                room.keep(replica, ticket, now)
            elif ratio > highest:
                chosen, highest = ticket, ratio
        return None if chosen is None else Next(chosen, kept)

    def _next(self, but: str = "") -> Next | None:
        """Who is next of all models, or of those but one."""
        chosen, least = None, (0, 0)
        for model in self.queue.models:
            found = None if model == but else self.next_of(model)
            if found is not None:
                order = self._order(found.ticket)
                if chosen is None or order < least:
                    chosen, least = found, order
        return chosen

    def _order(self, ticket: Ticket) -> tuple[int, int]:
        """Among models: the level, then whose turn it is."""
        return ticket.level, self._turns[ticket.level].start(ticket.model)

    def _comes_first(self, ticket: Ticket, level: int) -> bool:
        """Whether a new request goes before all that wait and could run but for the limit over all.

        Not before those of its own model and level, who wait for their turns.
        """
        own = self.queue.level(ticket.model)
        if own is not None and own <= level:
            return False
        first = self._next(but=ticket.model)
        if first is None:
            return True
        order = (level, self._turns[level].start(ticket.model))
        return order < self._order(first.ticket)

    def _make_place(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Sheds what is less urgent until `ticket` may wait, too, and if that is not enough what
        is more than a tenant's share. Raises Overloaded."""
        queue = self.queue
        requests = queue.requests + 1 - self._queue_requests
        body_bytes = queue.body_bytes + ticket.body_bytes - self._queue_bytes
        if requests <= 0 and body_bytes <= 0:
            return []
        less_urgent = [level for level in LEVELS if level > clamped(ticket.priority)]
        more = excess(
            ticket,
            queue.places(ticket.priority),
            requests=requests - sum(queue.requests_by_level[level] for level in less_urgent),
            body_bytes=body_bytes - sum(queue.bytes_by_level[level] for level in less_urgent),
            queue_requests=self._queue_requests,
            queue_bytes=self._queue_bytes,
        )
        if more is None:
            ticket.state = TicketState.REFUSED
            self.counters.refused += 1
            raise Overloaded(
                f"{queue.requests} requests of {queue.body_bytes} bytes wait already",
                retry_after_s=self.retry_after_s(now),
            )
        shed: list[Ticket] = []
        while requests > 0 or body_bytes > 0:
            last = more.pop(0) if more else queue.last()
            last.state = TicketState.SHED
            queue.remove(last)
            self.counters.shed += 1
            self._left_queue(last, now)
            shed.append(last)
            requests -= 1
            body_bytes -= last.body_bytes
        return shed

    def _left_queue(self, ticket: Ticket, now: float) -> None:
        ticket.waited_s = max(0.0, now - ticket.offered_at)
        self.counters.left_queue += 1
        self.counters.waited_s += ticket.waited_s
        if not self.queue.requests:
            self._drain.stop(now)
            self.capacity.forget_kept()

    def __repr__(self) -> str:
        return f"<Admission {self.capacity!r}; {self.queue!r}>"

    def check(self) -> None:
        """Assert what must always hold, of the parts and of all together."""
        self.capacity.check()
        self.queue.check()
        self._drain.check()
        assert self.queue.requests <= self._queue_requests
        assert self.queue.body_bytes <= self._queue_bytes
        assert all(ticket.state is _WAITING for ticket in self.queue)
        assert all(ticket.state is _ADMITTED for ticket in self.capacity)
        assert self.queue.requests or not self.capacity.keeps
        counters = self.counters
        assert counters.queued == counters.left_queue + self.queue.requests
        turned_away = counters.shed + counters.expired + counters.withdrawn
        assert counters.left_queue - turned_away <= counters.admitted
