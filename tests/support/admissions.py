"""Admission on a small scale: of one model and replica unless told otherwise, placed at once."""

from router.core.admission import Admission
from router.core.admission_queue import QueueOrder
from router.core.ticket import Ticket, TicketState, Work


def admission_of(
    limits: dict[str, int | None] | None = None,
    *,
    max_tokens: int | None = None,
    queue_requests: int = 8,
    queue_bytes: int = 1000,
    aging_s: float | None = None,
    queue_order: QueueOrder = "response_ratio",
) -> Admission:
    """Of replicas named like m0, of model m."""
    admission = Admission(
        max_tokens=max_tokens,
        queue_requests=queue_requests,
        queue_bytes=queue_bytes,
        queue_timeout_s=30.0,
        aging_s=aging_s,
        quantum_tokens=10,
        queue_order=queue_order,
    )
    limits = {"m0": 10} if limits is None else limits
    for replica, limit in limits.items():
        admission.capacity.add_replica(replica[0], replica, limit)
    for model in {replica[0] for replica in limits}:
        admission.capacity.set_routable(model, [one for one in limits if one[0] == model])
    return admission


def offer(
    admission: Admission,
    tokens: int,
    *,
    model: str = "m",
    tenant: str = "",
    priority: int = 0,
    body_bytes: int = 0,
    now: float = 0.0,
    work: tuple[int, dict[str, int]] | None = None,
) -> Ticket:
    """Offered, and placed on the first replica with room if it is admitted.

    Args:
        work: Tokens to compute, and by replica if less.
    """
    ticket = Ticket(model, tokens, tenant, priority, body_bytes)
    if work is not None:
        most, less = work
        ticket.work = lambda: Work.of(most, less)
    admission.offer(ticket, now)
    if ticket.state is TicketState.ADMITTED:
        place(admission, ticket)
    admission.check()
    return ticket


def place(admission: Admission, ticket: Ticket) -> str:
    excluded = admission.excluded(ticket)
    routable = admission.capacity.models[ticket.model].routable
    chosen = next(one.id for one in routable if one.id not in excluded)
    admission.take(ticket, chosen)
    return chosen


def pump(admission: Admission, now: float = 0.0) -> list[Ticket]:
    admitted: list[Ticket] = []
    while (ticket := admission.admit_next(now)) is not None:
        place(admission, ticket)
        admitted.append(ticket)
        admission.check()
    return admitted
