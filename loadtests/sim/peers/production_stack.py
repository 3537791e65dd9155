"""vLLM production-stack: prefixaware, kvaware and loadaware.

Follows vllm-project/production-stack src/vllm_router/routers/routing_logic.py @a6c01db, loadaware
its merge #1035. LMCache's controller, which kvaware and loadaware ask what engines hold, is stood
for by the engines' KV events: it hears from them of each chunk stored and evicted.
"""

from collections.abc import Sequence
from random import Random

from loadtests.sim.peers.block_names import CHARACTERS_PER_TOKEN, chunks
from loadtests.sim.peers.block_table import SharedBlocks, replicas_in
from loadtests.sim.peers.event_tree import EventTree
from loadtests.sim.peers.hash_ring import HashRing
from loadtests.sim.peers.peer_router import PeerRouter
from loadtests.sim.peers.plain import ring_key
from loadtests.sim.peers.request_rate import RequestRates
from loadtests.sim.request import SimRequest
from loadtests.sim.router import ReplicaFacts
from protocol.kv_events import KvEvent

# prefix/hashtrie.py: chunk_size, in characters.
CHUNK_CHARACTERS = 128


class PrefixAware(PeerRouter):
    """prefixaware: any of the replicas with the longest match, whatever their load.

    A trie of hashed chunks of 128 characters, here of tokens by characters a token; it never
    evicts. `prefix_min_match_length` is 0, so that no match at all means any replica. At the end of
    a prompt a shorter chunk counts too.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._trie = SharedBlocks()
        self._all = (1 << len(replicas)) - 1

    def choose(self, request: SimRequest, now: float) -> int:
        names = list(chunks(request.prompt, CHUNK_CHARACTERS // CHARACTERS_PER_TOKEN))
        _, longest = self._trie.match(names, self._all)
        replica = self.rng.choice(replicas_in(longest))
        self._trie.insert(names, replica, now)
        return replica


# routing_logic.py, KvawareRouter: kv_aware_threshold.
KV_AWARE_THRESHOLD = 2000


class KvAware(PeerRouter):
    """kvaware: the first replica that the controller names, if it holds nearly the whole prompt.

        matched < max(prompt - 2000, 0)  → by session on a hash ring; without one, the lowest
                                           rate of requests in the last minute

    The first in the controller's answer is who has held the prompt's first chunk the longest,
    whatever others hold. (LMCache's chunks are of 256 tokens; here of a block.)
    """

    hears_events = True

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self.tree = EventTree(replicas)
        self._ring = HashRing([one.id for one in replicas])
        self._rates = RequestRates(len(replicas))

    def choose(self, request: SimRequest, now: float) -> int:
        replica = self._choose(request, now)
        self._rates.add(replica, now)
        return replica

    def _choose(self, request: SimRequest, now: float) -> int:
        first = self.tree.first_holder(request.prompt)
        if first is not None:
            matched = self.tree.match(request.prompt)[first] * self.tree.block_tokens
            if matched >= max(len(request.prompt) - KV_AWARE_THRESHOLD, 0):
                return first
        return self.fallback(request, now)

    def fallback(self, request: SimRequest, now: float) -> int:
        if request.conversation is None:
            return self._rates.lowest(now)
        return self._ring.owner(ring_key(request))

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        self.tree.apply(replica, events)

    def lost(self, replica: int, now: float) -> None:
        super().lost(replica, now)
        self.tree.clear(replica)

    def check(self) -> None:
        super().check()
        self.tree.check()


# LOADAWARE_BETA.
BETA = 1.0


class LoadAware(KvAware):
    """loadaware: matched / prompt - β · (load - mean) / max(1, mean), β = 1; the most wins.

    The load is requests in flight. Of equals the first by name. Nothing matched anywhere: the
    same fallback as kvaware, and its threshold is not applied.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._by_name = sorted(range(len(replicas)), key=lambda one: replicas[one].id)

    def _choose(self, request: SimRequest, now: float) -> int:
        blocks = self.tree.match(request.prompt)
        if not any(blocks):
            return self.fallback(request, now)
        loads = self.in_flight.requests
        mean = sum(loads) / len(loads)
        tokens = self.tree.block_tokens / len(request.prompt)

        def score(one: int) -> float:
            return blocks[one] * tokens - BETA * (loads[one] - mean) / max(1.0, mean)

        return max(self._by_name, key=score)
