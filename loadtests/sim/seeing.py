"""What no real router has: the replicas themselves, and the requests that are still to come."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Protocol, runtime_checkable

from loadtests.sim.replica import SimReplica
from loadtests.sim.request import SimRequest


class Coming:
    """Requests by arrival, some of which may be looked at before they are taken."""

    def __init__(self, requests: Iterable[SimRequest]) -> None:
        self._rest = iter(requests)
        self._seen: deque[SimRequest] = deque()

    def take(self) -> SimRequest | None:
        """The next one; None after the last."""
        return self._seen.popleft() if self._seen else next(self._rest, None)

    def until(self, when: float) -> Iterator[SimRequest]:
        """Those not taken that arrive no later."""
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
