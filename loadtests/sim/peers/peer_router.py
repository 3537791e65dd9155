"""What peers' policies share: a count of what is in flight, and silence about all else."""

from collections.abc import Sequence
from random import Random

from loadtests.sim.peers.in_flight import InFlight
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from protocol.kv_events import KvEvent


class PeerRouter:
    """A `SimRouter` that counts requests in flight; a policy is `choose`, and what it learns.

    In flight, a request weighs its prompt's tokens unless `weight` says otherwise.
    """

    poll_interval_s: float | None = None
    hears_events: bool = False

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        assert replicas, "a router has replicas"
        self.replicas = tuple(replicas)
        self.rng = rng
        self.in_flight = InFlight(len(replicas))

    def choose(self, request: SimRequest, now: float) -> int:
        """Which replica gets it; what the policy learns from its own choice it learns here."""
        raise NotImplementedError

    def weight(self, request: SimRequest, replica: int) -> int:
        """Tokens that `request` counts for while it is in flight; asked right after `choose`."""
        return len(request.prompt)

    def route(self, request: SimRequest, now: float) -> int:
        replica = self.choose(request, now)
        self.in_flight.add(request.number, replica, self.weight(request, replica))
        return replica

    def first_token(self, request: SimRequest, replica: int, now: float) -> None:
        self.in_flight.first_token(request.number)

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        self.in_flight.done(request.number)

    def refused(self, request: SimRequest, replica: int, now: float) -> None:
        """An answer like any other, to those who do not look at its status."""
        self.done(request, replica, 0, now)

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        assert self.hears_events, "it follows no events"

    def load(self, replica: int, load: Load, now: float) -> None:
        assert self.poll_interval_s is not None, "it asks for no loads"

    def lost(self, replica: int, now: float) -> None:
        self.in_flight.lost(replica)

    def check(self) -> None:
        """Asserts what must always hold."""
        self.in_flight.check()


def first_least(values: Sequence[float]) -> int:
    """Index of the least value; of equals, the first."""
    return min(range(len(values)), key=values.__getitem__)


def any_least(values: Sequence[float], rng: Random) -> int:
    """Index of the least value; of equals, any, all as likely."""
    least = min(values)
    return rng.choice([index for index, value in enumerate(values) if value == least])
