"""Our router where tokens in flight are limited: who finds no room waits, as in `router.gate`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from loadtests.sim.ours import Ours
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from protocol.errors import Overloaded
from protocol.kv_events import KvEvent
from router.config import AdmissionConfig
from router.core.admission import Admission
from router.core.admission_queue import QueueOrder
from router.core.policy import Policy
from router.core.ticket import Ticket, TicketState

_MODEL = "m"


_DEFAULTS = AdmissionConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    Attributes:
        max_tokens: Tokens in flight, over all replicas; None: no limit.
        replica_max_tokens: The same of each replica.
        queue_order, queue_timeout_s: See `AdmissionConfig`.
    """

    max_tokens: int | None = None
    replica_max_tokens: int | None = None
    queue_order: QueueOrder = _DEFAULTS.queue_order
    queue_timeout_s: float = _DEFAULTS.queue_timeout_s


class Gated:
    """`Ours` behind the router's admission: a `HoldsBack`."""

    poll_interval_s: float | None = None
    hears_events: bool = True
    tick_s: float = 0.1

    def __init__(
        self,
        replicas: Sequence[ReplicaFacts],
        rng: Random,
        limits: Limits,
        policy: Policy | None = None,
    ) -> None:
        self._ours = Ours(replicas, rng, policy)
        self._admission = Admission(
            max_tokens=limits.max_tokens,
            queue_order=limits.queue_order,
            queue_timeout_s=limits.queue_timeout_s,
            queue_requests=_DEFAULTS.queue_requests,
        )
        self._ids = [one.id for one in replicas]
        for name in self._ids:
            self._admission.capacity.add_replica(_MODEL, name, limits.replica_max_tokens)
        self._admission.capacity.set_routable(_MODEL, self._ids)
        self._tickets: dict[int, Ticket] = {}

    def hold_back(
        self,
        send: Callable[[SimRequest, int, float], None],
        turn_away: Callable[[SimRequest, float], None],
    ) -> None:
        self._send, self._turn_away = send, turn_away

    def route(self, request: SimRequest, now: float) -> int | None:
        ticket = Ticket(
            _MODEL,
            self._ours.tokens_of(request),
            request.tenant,
            owner=request,
            work=partial(self._ours.work_of, request),
        )
        try:
            shed = self._admission.offer(ticket, now)
        except Overloaded:
            self._turn_away(request, now)
            return None
        self._tickets[request.number] = ticket
        self._end_waits(shed, now)
        if ticket.state is TicketState.ADMITTED:
            return self._place(ticket, now)
        if shed:
            self._pump(now)
        return None

    def tick(self, now: float) -> None:
        self._end_waits(self._admission.expire(now), now)
        self._admission.look_again()
        self._pump(now)

    def first_token(self, request: SimRequest, replica: int, now: float) -> None:
        self._ours.first_token(request, replica, now)

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        self._ours.done(request, replica, cached_tokens, now)
        self._finish(request.number, now)

    def refused(self, request: SimRequest, replica: int, now: float) -> None:
        self._ours.refused(request, replica, now)
        self._finish(request.number, now)

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        self._ours.events(replica, events, now)

    def load(self, replica: int, load: Load, now: float) -> None:
        self._ours.load(replica, load, now)

    def lost(self, replica: int, now: float) -> None:
        self._ours.lost(replica, now)
        room = self._admission.capacity.models[_MODEL].replicas[self._ids[replica]]
        for number, ticket in list(self._tickets.items()):
            if ticket.replica is room:
                self._admission.finish(ticket, now)
                del self._tickets[number]
        self._pump(now)

    def _finish(self, number: int, now: float) -> None:
        self._admission.finish(self._tickets.pop(number), now)
        self._pump(now)

    def _pump(self, now: float) -> None:
        while (ticket := self._admission.admit_next(now)) is not None:
            self._send(_request(ticket), self._place(ticket, now), now)

    def _place(self, ticket: Ticket, now: float) -> int:
        excluded = self._admission.excluded(ticket)
        replica = self._ours.place(_request(ticket), now, excluded)
        self._admission.take(ticket, self._ids[replica])
        return replica

    def _end_waits(self, tickets: Sequence[Ticket], now: float) -> None:
        for ticket in tickets:
            request = _request(ticket)
            del self._tickets[request.number]
            self._turn_away(request, now)

    def check(self) -> None:
        self._ours.check()
        self._admission.check()
        assert len(self._tickets) == self._admission.queue.requests + sum(
            1 for _ in self._admission.capacity
        )


def _request(ticket: Ticket) -> SimRequest:
    assert isinstance(ticket.owner, SimRequest)
    return ticket.owner
