"""Ray Serve LLM's prefix-aware router: the replicas that were sent the longest prefix.

    longest queue - shortest queue > imbalanced_threshold (∞)  → the better of two drawn at random
    matched / prompt ≥ match_rate_threshold (0.1)              → those matched
    else                                                       → those with the smallest tree

Of the candidates, the shortest queue; any of equals. A queue is the requests in flight. (Ray passes
over replicas at their `max_ongoing_requests`; the notes give it no default, here there is none.)
The tree is over characters, learns from what was routed and does not evict (`do_eviction` False).

Follows ray-project/ray python/ray/llm/_internal/serve/request_router/prefix_aware/ @06c16f2.
"""

from collections.abc import Sequence
from math import inf
from random import Random

from loadtests.sim.peers.approximate_tree import ApproximateTree
from loadtests.sim.peers.block_names import token_bytes
from loadtests.sim.peers.peer_router import PeerRouter
from loadtests.sim.request import SimRequest
from loadtests.sim.router import ReplicaFacts

IMBALANCED_THRESHOLD = inf
MATCH_RATE_THRESHOLD = 0.1


class RayPrefixAware(PeerRouter):
    """PrefixCacheAffinityRouter.

    Args:
        imbalanced_threshold: Of queue lengths; it was 10 once.
    """

    def __init__(
        self,
        replicas: Sequence[ReplicaFacts],
        rng: Random,
        imbalanced_threshold: float = IMBALANCED_THRESHOLD,
    ) -> None:
        super().__init__(replicas, rng)
        self.tree = ApproximateTree(len(replicas))
        self._imbalanced_threshold = imbalanced_threshold

    def choose(self, request: SimRequest, now: float) -> int:
        data = token_bytes(request.prompt)
        candidates = self._candidates(data, len(request.prompt))
        queues = self.in_flight.requests
        shortest = min(queues[one] for one in candidates)
        replica = self.rng.choice([one for one in candidates if queues[one] == shortest])
        self.tree.insert(data, replica)
        return replica

    def lost(self, replica: int, now: float) -> None:
        super().lost(replica, now)
        # `on_replica_actor_died`; the one that takes its place begins with an empty tree.
        self.tree.forget(replica)

    def check(self) -> None:
        super().check()
        self.tree.check()

    def _candidates(self, data: bytes, prompt: int) -> list[int]:
        queues = self.in_flight.requests
        if max(queues) - min(queues) > self._imbalanced_threshold:
            return self.rng.sample(range(len(queues)), min(2, len(queues)))
        match = self.tree.match(data)
        if match.replicas and match.tokens / prompt >= MATCH_RATE_THRESHOLD:
            return sorted(match.replicas)
        smallest = min(self.tree.sizes)
        return [one for one, size in enumerate(self.tree.sizes) if size == smallest]
