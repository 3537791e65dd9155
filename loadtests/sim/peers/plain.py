"""Plain policies, which no peer owns: in turn, at random, by load, by session, by hash."""

from collections.abc import Sequence
from random import Random

from loadtests.sim.peers.block_names import token_bytes
from loadtests.sim.peers.hash_ring import HashRing
from loadtests.sim.peers.peer_router import PeerRouter, any_least
from loadtests.sim.request import SimRequest
from loadtests.sim.router import ReplicaFacts


class RoundRobin(PeerRouter):
    """Each in turn."""

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._turn = 0

    def choose(self, request: SimRequest, now: float) -> int:
        replica = self._turn % len(self.replicas)
        self._turn += 1
        return replica


class AnyReplica(PeerRouter):
    """One at random, all as likely."""

    def choose(self, request: SimRequest, now: float) -> int:
        return self.rng.randrange(len(self.replicas))


class LeastRequests(PeerRouter):
    """The one with the fewest requests in flight; at random among equals."""

    def choose(self, request: SimRequest, now: float) -> int:
        return any_least(self.in_flight.requests, self.rng)


class LeastTokens(PeerRouter):
    """The one with the fewest prompt tokens that wait for their first token; any among equals."""

    def choose(self, request: SimRequest, now: float) -> int:
        return any_least(self.in_flight.prefill_tokens, self.rng)


class PowerOfTwo(PeerRouter):
    """Of two drawn at random, the one with fewer requests in flight; the first drawn if equal.

    Source: Mitzenmacher 2001, "The power of two choices in randomized load balancing".
    """

    def choose(self, request: SimRequest, now: float) -> int:
        drawn = self.rng.sample(range(len(self.replicas)), min(2, len(self.replicas)))
        return min(drawn, key=self.in_flight.requests.__getitem__)


class Session(PeerRouter):
    """A conversation stays where it began: with the fewest requests in flight then.

    Requests without a conversation go to the fewest requests. A replica that restarted keeps its
    conversations, for it comes back at the same address.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._homes: dict[int, int] = {}

    def choose(self, request: SimRequest, now: float) -> int:
        if request.conversation is None:
            return any_least(self.in_flight.requests, self.rng)
        home = self._homes.get(request.conversation)
        if home is None:
            home = any_least(self.in_flight.requests, self.rng)
            self._homes[request.conversation] = home
        return home


class ConsistentHash(PeerRouter):
    """The owner of the conversation on a ring of 160 points a replica.

    Follows vllm-project/router, consistent_hash (README @03e9af5): the key is a header. What it
    does without one is not in the notes; here the whole prompt is the key then.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._ring = HashRing([one.id for one in replicas])

    def choose(self, request: SimRequest, now: float) -> int:
        return self._ring.owner(ring_key(request))


def ring_key(request: SimRequest) -> bytes:
    """The conversation, or the whole prompt where there is none."""
    if request.conversation is not None:
        return b"conversation %d" % request.conversation
    return token_bytes(request.prompt)
