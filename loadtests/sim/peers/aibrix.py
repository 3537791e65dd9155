"""AIBrix's prefix-cache: the best match that is not much busier than the mean.

    max - min running > 8   → only the least loaded may match
    candidates by matched percent, most first, then by requests, fewest first, then in any order
    the first with requests ≤ mean + 1 · σ; none → the fewest requests of all, any of equals

Requests are those in flight; σ is that of the whole population. Follows vllm-project/aibrix
pkg/plugins/gateway/algorithms/prefix_cache.go @e3e10f9 and pkg/utils/prefixcacheindexer/hash.go.
(Another state of that file gates at max > 2 · (mean + 1) and max - min ≥ 8.)
"""

from collections.abc import Sequence
from random import Random
from statistics import fmean, pstdev

from loadtests.sim.peers.block_names import CHARACTERS_PER_TOKEN, full_blocks
from loadtests.sim.peers.block_table import SharedBlocks
from loadtests.sim.peers.peer_router import PeerRouter, any_least
from loadtests.sim.request import SimRequest
from loadtests.sim.router import ReplicaFacts

# AIBRIX_PREFIX_CACHE_POD_RUNNING_REQUEST_IMBALANCE_ABS_COUNT and …_STANDARD_DEVIATION_FACTOR.
IMBALANCE_ABS_COUNT = 8
STANDARD_DEVIATION_FACTOR = 1

# hash.go: defaultPrefixCacheBlockNumber, …BlockSize (characters), …EvictionDurationInMins and
# …EvictionInternalInSec.
BLOCK_NUMBER = 200_000
BLOCK_CHARACTERS = 4
EVICTION_DURATION_S = 20 * 60.0
EVICTION_INTERVAL_S = 1.0

# Its blocks of four characters are about a token each. Here sixteen of them are one: the table is
# as large in tokens, and matches are rounded down to sixteen.
_BLOCK_TOKENS = 16
_CAPACITY = BLOCK_NUMBER * BLOCK_CHARACTERS // CHARACTERS_PER_TOKEN // _BLOCK_TOKENS


class AibrixPrefixCache(PeerRouter):
    """The default, with its own table of what was routed: one for all replicas, and small.

    200,000 blocks of four characters, least recently used out first, or after 20 minutes unused.
    (Its README says blocks of 128 or 16; this is the code.)
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self.table = SharedBlocks(_CAPACITY, EVICTION_DURATION_S, EVICTION_INTERVAL_S)

    def choose(self, request: SimRequest, now: float) -> int:
        self.table.sweep(now)
        names = list(full_blocks(request.prompt, _BLOCK_TOKENS))
        requests = self.in_flight.requests
        least = min(requests)
        may_match = sum(
            1 << one
            for one, count in enumerate(requests)
            if max(requests) - least <= IMBALANCE_ABS_COUNT or count == least
        )
        counts, _ = self.table.match(names, may_match)
        percents = {one: count * 100 // len(names) for one, count in enumerate(counts) if count}
        replica = self.accepted(percents)
        if replica is None:
            replica = any_least(requests, self.rng)
        self.table.insert(names, replica, now)
        return replica

    def accepted(self, percents: dict[int, int]) -> int | None:
        """The best of those that match, by replica in percent, that is not too busy."""
        requests = self.in_flight.requests
        bound = fmean(requests) + STANDARD_DEVIATION_FACTOR * pstdev(requests)
        order = list(percents)
        self.rng.shuffle(order)
        order.sort(key=lambda one: (-percents[one], requests[one]))
        return next((one for one in order if requests[one] <= bound), None)
