"""Which tenants give up places in a full queue, so that none of them fills it for the others.

    waiting of one priority     a a a a a a   b b       8 places, all taken
    another of b comes          a a a a a ✗   b b b     a has more even without its youngest
    another of a comes          refused: nobody has more than a would have

A tenant's share is its part of the places plus its part of the bytes. The one with the largest
share gives up its youngest request, again and again, as long as it keeps no less than the
newcomer's tenant then has. Levels reached by waiting do not count, else whoever filled the queue
first would keep it; and nothing is shed for nothing: if that does not make room, nobody goes.

Source: McKenney 1990, Stochastic Fairness Queueing (drop from the longest queue).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from router.core.ticket import Ticket


class Places:
    """What waits of one tenant with one priority, by arrival."""

    __slots__ = ("body_bytes", "tickets")

    def __init__(self) -> None:
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.body_bytes = 0

    def add(self, ticket: Ticket) -> None:
        self.tickets[ticket] = None
        self.body_bytes += ticket.body_bytes

    def remove(self, ticket: Ticket) -> None:
        del self.tickets[ticket]
        self.body_bytes -= ticket.body_bytes


def excess(
    newcomer: Ticket,
    places: Mapping[str, Places],
    *,
    requests: int,
    body_bytes: int,
    queue_requests: int,
    queue_bytes: int,
) -> list[Ticket] | None:
    """Those that have to go so that `newcomer` may wait; None: it may not.

    Args:
        places: By tenant, of the newcomer's priority.
        requests, body_bytes: To be made free, at least.
        queue_requests, queue_bytes: The queue's size.
    """
    if requests <= 0 and body_bytes <= 0:
        return []

    def share(requests: int, body_bytes: int) -> int:
        """In whole numbers: a quotient's rounding would decide between equals."""
        return requests * queue_bytes + body_bytes * queue_requests

    shares = {name: share(len(one.tickets), one.body_bytes) for name, one in places.items()}
    own = shares.pop(newcomer.tenant, 0) + share(1, newcomer.body_bytes)
    youngest = {name: reversed(places[name].tickets) for name in shares}
    gone: list[Ticket] = []
    while requests > 0 or body_bytes > 0:
        tenant = max(shares, key=lambda name: (shares[name], name), default=None)
        ticket = None if tenant is None else next(youngest[tenant], None)
        if tenant is None or ticket is None:
            return None
        shares[tenant] -= share(1, ticket.body_bytes)
        if shares[tenant] < own:
            return None
        gone.append(ticket)
        requests -= 1
        body_bytes -= ticket.body_bytes
    return gone
