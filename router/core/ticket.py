"""A request as admission control sees it: what it will occupy, whose it is, how urgent it is."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from router.core.ids import ReplicaId
from router.core.token_room import ReplicaRoom

# Priorities beyond these count as these: whoever waits is in one of seventeen levels.
MOST_URGENT = -8
LEAST_URGENT = 8
LEVELS = range(MOST_URGENT, LEAST_URGENT + 1)


class TicketState(StrEnum):
    """new → admitted or waiting or refused; waiting → admitted, shed, expired or withdrawn;
    admitted → finished."""

    NEW = "new"
    WAITING = "waiting"
    ADMITTED = "admitted"
    FINISHED = "finished"
    REFUSED = "refused"
    SHED = "shed"
    EXPIRED = "expired"
    WITHDRAWN = "withdrawn"


class Work(NamedTuple):
    """Prompt tokens that would have to be computed: at least 1 wherever it goes.

    Attributes:
        tokens: On a replica that holds as little of the prompt as any.
        less: By replica, where it is less than that.
        least: On the one that holds the most of it.
    """

    tokens: int
    less: Mapping[ReplicaId, int]
    least: int

    @classmethod
    def of(cls, tokens: int, less: Mapping[ReplicaId, int]) -> Work:
        return cls(tokens, less, min(less.values(), default=tokens))

    @classmethod
    def everywhere(cls, tokens: int) -> Work:
        return cls.of(tokens, {})


@dataclass(slots=True, eq=False)
class Ticket:
    """One request, from the moment it is offered to its end.

    Attributes:
        model: Which model's replicas it may run on.
        tokens: What it will occupy in a KV cache: its prompt and the answer expected; at least 1.
        tenant: Who shares fairly with the others of its level.
        priority: As in vLLM: smaller is more urgent. Clamped to -8..8.
        body_bytes: What it holds in memory while it waits.
        owner: The caller's own; never looked at.
        work: Tells what would have to be computed if it ran now; asked only while it waits. None:
            nobody knows; then all its tokens, everywhere.
        waited_s: How long it waited, known once it does no longer.
        replica: Where it runs; None before it is taken there.
        kept: Where there was room when it was admitted, but not for it.
        number: Counts those that ever waited: the order of arrival.
        offered_at: When it began to wait, in the caller's seconds.
        level: Its priority, made more urgent by waiting.
        entered_at: When it came to this level.
        its_work: What `work` said last; the same of all where nobody asks.
    """

    model: str
    tokens: int
    tenant: str = ""
    priority: int = 0
    body_bytes: int = 0
    owner: object = field(default=None, repr=False)
    work: Callable[[], Work] | None = field(default=None, repr=False)
    state: TicketState = field(default=TicketState.NEW, init=False)
    waited_s: float = field(default=0.0, init=False)
    replica: ReplicaRoom | None = field(default=None, init=False, repr=False)
    kept: Collection[ReplicaId] = field(default=(), init=False, repr=False)
    # Set when it begins to wait.
    number: int = field(init=False, repr=False)
    offered_at: float = field(init=False, repr=False)
    level: int = field(init=False, repr=False)
    entered_at: float = field(init=False, repr=False)
    its_work: Work = field(init=False, repr=False)


def clamped(priority: int) -> int:
    """The level that a request of this priority starts in."""
    return min(max(priority, MOST_URGENT), LEAST_URGENT)
