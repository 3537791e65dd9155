"""Admission told as plain lists: what waits, what runs where, and who may be next."""

from __future__ import annotations

from dataclasses import dataclass

from router.core.ticket import Ticket


@dataclass(eq=False)
class Entry:
    """A ticket that waits or is admitted; `replica` is where it runs."""

    ticket: Ticket
    arrived: float
    number: int
    level: int
    replica: str | None = None

    @property
    def priority(self) -> int:
        return max(-8, min(8, self.ticket.priority))


class AdmissionModel:
    """Recomputes everything from lists each time it is asked.

    Attributes:
        limits: By model, then replica; None is no limit.
        routable: By model.
    """

    def __init__(self, max_tokens: int | None, aging_s: float | None, patience_s: float) -> None:
        self.max_tokens = max_tokens
        self.patience_s = patience_s
        self.aging_s = aging_s
        self.limits: dict[str, dict[str, int | None]] = {}
        self.routable: dict[str, list[str]] = {}
        self.waiting: list[Entry] = []
        self.admitted: list[Entry] = []
        self.arrivals = 0

    # Room

    def in_flight(self, replica: str) -> int:
        return sum(one.ticket.tokens for one in self.admitted if one.replica == replica)

    def unplaced(self, model: str) -> int:
        return sum(
            one.ticket.tokens
            for one in self.admitted
            if one.replica is None and one.ticket.model == model
        )

    def has_room(self, model: str, replica: str, tokens: int, beside: int = 0) -> bool:
        """Whether it fits there; one that is too large for all fits where the limit is largest."""
        limit = self.limits[model][replica]
        if limit is None:
            return True
        limits = [self.limits[model][one] for one in self.routable[model]]
        too_large = all(one is not None and one < tokens for one in limits)
        if too_large:
            largest = max(one for one in limits if one is not None)
            return limit == largest and self.in_flight(replica) + beside == 0
        return self.in_flight(replica) + beside + tokens <= limit

    def fits_a_replica(self, model: str, tokens: int) -> bool:
        beside = self.unplaced(model)
        return any(
            self.has_room(model, replica, tokens, beside) for replica in self.routable[model]
        )

    def fits_the_limit(self, tokens: int) -> bool:
        in_flight = sum(one.ticket.tokens for one in self.admitted)
        if self.max_tokens is None:
            return True
        return in_flight + tokens <= self.max_tokens or in_flight == 0

    # Order

    def age(self, now: float, newcomer: int = 8) -> None:
        """Up a level each `aging_s`, to the most urgent priority that waits, or comes."""
        if self.aging_s is None:
            return
        most_urgent = min([one.priority for one in self.waiting] + [newcomer])
        for one in self.waiting:
            aged = one.priority - int((now - one.arrived) // self.aging_s)
            one.level = min(one.level, max(most_urgent, aged))

    def most_urgent(self, model: str) -> int | None:
        """The level from which the next of this model comes."""
        levels = [one.level for one in self.waiting if one.ticket.model == model]
        return min(levels, default=None)

    def may_be_next(self, model: str, replica: str | None, now: float) -> list[Ticket]:
        """Of each tenant in the model's most urgent level those that none has a claim to pass.

        Args:
            replica: Which has room; None: wherever each has least to compute.
        """
        level = self.most_urgent(model)
        there: dict[str, list[Entry]] = {}
        for one in self.waiting:
            if one.ticket.model == model and one.level == level:
                there.setdefault(one.ticket.tenant, []).append(one)
        allowed: list[Ticket] = []
        for entries in there.values():
            ratios = [self._ratio(one, replica, now) for one in entries]
            for one, ratio in zip(entries, ratios, strict=True):
                older = any(
                    self._came(other) < self._came(one)
                    and other.ticket.its_work == one.ticket.its_work
                    for other in entries
                )
                if 2 * ratio >= max(ratios) and not older:
                    allowed.append(one.ticket)
        return allowed

    def _ratio(self, entry: Entry, replica: str | None, now: float) -> float:
        work = entry.ticket.its_work
        tokens = work.least if replica is None else work.less.get(replica, work.tokens)
        waited_s = now - self._came(entry)[0]
        return waited_s / (tokens * max(0.01, 1.0 - waited_s / self.patience_s))

    def _came(self, entry: Entry) -> tuple[float, int, int]:
        """When it came to its level; who ages into it comes before who arrives that moment."""
        levels = entry.priority - entry.level
        aged_s = levels * self.aging_s if self.aging_s is not None else 0.0
        return entry.arrived + aged_s, -entry.priority, entry.number

    # The queue

    def shed_for(self, ticket: Ticket, queue_requests: int, queue_bytes: int) -> list[Entry] | None:
        """Who makes room for it; None: it is refused."""
        priority = max(-8, min(8, ticket.priority))

        def too_many(left: list[Entry]) -> bool:
            body_bytes = sum(one.ticket.body_bytes for one in left) + ticket.body_bytes
            return len(left) + 1 > queue_requests or body_bytes > queue_bytes

        def share(left: list[Entry], tenant: str) -> int:
            """Of one priority, in a queue of which requests and bytes count alike."""
            own = [
                one.ticket
                for one in left
                if one.ticket.tenant == tenant and one.priority == priority
            ]
            own += [ticket] if tenant == ticket.tenant else []
            body_bytes = sum(one.body_bytes for one in own)
            return len(own) * queue_bytes + body_bytes * queue_requests

        shed: list[Entry] = []
        left = [one for one in self.waiting if one.level <= priority]
        while too_many(left):  # even without all that is less urgent
            tenants = {one.ticket.tenant for one in left if one.priority == priority}
            tenants -= {ticket.tenant}
            if not tenants:
                return None
            largest = max(tenants, key=lambda one: (share(left, one), one))
            youngest = max(
                (one for one in left if (one.ticket.tenant, one.priority) == (largest, priority)),
                key=lambda one: one.number,
            )
            left.remove(youngest)
            if share(left, largest) < share(left, ticket.tenant):
                return None
            shed.append(youngest)
        left = [one for one in self.waiting if one not in shed]
        while too_many(left):
            last = max(left, key=lambda one: (one.level, one.number))
            left.remove(last)
            shed.append(last)
        return shed

    def wait(self, ticket: Ticket, now: float) -> None:
        level = max(-8, min(8, ticket.priority))
        self.waiting.append(Entry(ticket, now, self.arrivals, level))
        self.arrivals += 1

    def admit(self, ticket: Ticket) -> None:
        self.waiting = [one for one in self.waiting if one.ticket is not ticket]
        self.admitted.append(Entry(ticket, 0.0, 0, 0))

    def entry(self, ticket: Ticket) -> Entry:
        return next(one for one in self.admitted if one.ticket is ticket)

    def end(self, ticket: Ticket) -> None:
        self.waiting = [one for one in self.waiting if one.ticket is not ticket]
        self.admitted = [one for one in self.admitted if one.ticket is not ticket]
