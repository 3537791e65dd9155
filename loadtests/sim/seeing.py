"""What no real router has: the replicas themselves, and the requests that are still to come."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Protocol, runtime_checkable

from loadtests.sim.replica import SimReplica
from loadtests.sim.request import SimRequest


class Coming:
    """Requests by arrival, which may be looked at before they have arrived."""

    def __init__(self, requests: Iterable[SimRequest]) -> None:
        self._rest = iter(requests)
        self._seen: deque[SimRequest] = deque()

    def peek(self) -> SimRequest | None:
        """The next one; None after the last."""
        if not self._seen and (request := next(self._rest, None)) is not None:
            self._seen.append(request)
        return self._seen[0] if self._seen else None

    def take(self) -> None:
        """The next one has arrived."""
        self._seen.popleft()

    def until(self, when: float) -> Iterator[SimRequest]:
        """Those that have not arrived, and will by then."""
        while not self._seen or self._seen[-1].arrival_s <= when:
            request = next(self._rest, None)
            if request is None:
                break
            self._seen.append(request)
        return takewhile(lambda one: one.arrival_s <= when, self._seen)


@runtime_checkable
class SeesEverything(Protocol):
    """A router that the world hands more than a real one could know."""

    def see(self, replicas: Sequence[SimReplica], coming: Coming) -> None:
        """Called once, before the first request; what it is given is to be looked at only."""
