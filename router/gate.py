"""Lets requests in while there is room in the caches, and has the others wait: see core.admission.

    exchange ──enter──▶ gate ──admitted──▶ exchange.admitted()        at once, or when others end
                          └──turned away─▶ exchange.turned_away()     shed, or its time is over

Without a limit in the configuration nobody passes here.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, cast

import msgspec

from protocol.errors import BadRequest, Overloaded
from router.config import RouterConfig
from router.core.admission import Admission
from router.core.ticket import Ticket, TicketState
from router.dataplane.http1 import Request
from router.metrics import RouterMetrics
from router.served_model import ServedModel

PRIORITY_FIELD = b"x-warmroute-priority"
# llm-d's name for it (pkg/epp latency predictor), in milliseconds.
TTFT_TARGET_FIELD = b"x-slo-ttft-ms"
TENANT_FIELD = b"x-warmroute-tenant"


class Waiter(Protocol):
    """Who asked to enter."""

    def admitted(self) -> None: ...
    def turned_away(self, error: Overloaded) -> None: ...


class Gate:
    """Admission of all models of one process. Owned by its event loop."""

    def __init__(
        self, config: RouterConfig, models: Mapping[str, ServedModel], metrics: RouterMetrics
    ) -> None:
        self.admission = Admission(**msgspec.structs.asdict(config.admission))
        self._models = models
        self._waited_s = metrics.queue_seconds
        self._pumping = False
        for model in models.values():
            for replica in model.config.replicas:
                self.admission.capacity.add_replica(model.name, replica.id, replica.max_tokens)
            self._see_replicas(model)
            model.routable_changed = self._routable_changed

    @property
    def limited(self) -> bool:
        """Whether anybody can have to wait."""
        return self.admission.capacity.limited

    def enter(self, ticket: Ticket, now: float) -> bool:
        """Whether it may go on at once; else its owner, a `Waiter`, will be told.

        Raises:
            Overloaded: there is no place to wait.
        """
        shed = self.admission.offer(ticket, now)
        self._turn_away(shed, now)
        if shed:
            self.pump(now)
        return ticket.state is TicketState.ADMITTED

    def leave(self, ticket: Ticket, now: float) -> None:
        """It is over, however it ended, waiting or running. Twice is fine."""
        waited = ticket.state is TicketState.WAITING
        self.admission.finish(ticket, now)
        if waited:
            self._observe(ticket)
        self.pump(now)

    def pump(self, now: float) -> None:
        """Lets in whom there is room for."""
        if self._pumping:
            return  # whoever was let in has failed at once: the loop below goes on
        self._pumping = True
        try:
            while (ticket := self.admission.admit_next(now)) is not None:
                self._observe(ticket)
                _owner(ticket).admitted()
        finally:
            self._pumping = False

    def tick(self, now: float) -> None:
        """Ends waits that are too long, looks again at who waits; about ten times a second."""
        self._turn_away(self.admission.expire(now), now)
        self.admission.look_again()
        self.pump(now)

    def _turn_away(self, tickets: Iterable[Ticket], now: float) -> None:
        for ticket in tickets:
            self._observe(ticket)
            _owner(ticket).turned_away(self.admission.refusal(ticket, now))

    def _observe(self, ticket: Ticket) -> None:
        self._waited_s[(ticket.model,)].observe(ticket.waited_s)

    def _routable_changed(self, model: ServedModel, now: float) -> None:
        self._see_replicas(model)
        self.pump(now)

    def _see_replicas(self, model: ServedModel) -> None:
        routable = [one.id for one in model.fleet.routable]
        self.admission.capacity.set_routable(model.name, routable)


def _owner(ticket: Ticket) -> Waiter:
    assert ticket.owner is not None, "whoever waits is told"
    return cast(Waiter, ticket.owner)  # the core does not look at it


def tenant_of(request: Request) -> str:
    """Who shares fairly with others: as the client says, else by its API key."""
    tenant = request.header(TENANT_FIELD) or request.header(b"authorization") or b""
    return tenant.decode("latin-1")


def priority_of(request: Request, in_body: int | None) -> int:
    """Smaller is more urgent, as in vLLM; the header counts before the body.

    Raises:
        BadRequest: the header is no whole number.
    """
    value = request.header(PRIORITY_FIELD)
    if value is None:
        return in_body or 0
    try:
        return int(value)
    except ValueError as error:
        name = PRIORITY_FIELD.decode()
        raise BadRequest(f"{name} must be a whole number", param=name) from error


def ttft_target_of(request: Request) -> float | None:
    """Seconds within which the client wants its first token; None: it does not say.

    Raises:
        BadRequest: the header is no number of milliseconds above 0.
    """
    value = request.header(TTFT_TARGET_FIELD)
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds < float("inf"):
        name = TTFT_TARGET_FIELD.decode()
        raise BadRequest(f"{name} must be a number of milliseconds above 0", param=name)
    return milliseconds / 1000.0
