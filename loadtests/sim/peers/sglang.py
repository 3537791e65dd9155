"""The SGLang family: cache_aware as its gateway, SMG and vllm-router have it, and more of SMG's.

    imbalanced ⇔ max load - min load > balance_abs_threshold
                 and max load > balance_rel_threshold · min load

    imbalanced                          → the least load
    matched / prompt > cache_threshold  → the replica matched
    else                                → the least load

The load is the router's own count of requests in flight. The tree learns every choice, that of an
imbalanced moment too, and nothing else: an engine that evicts or restarts does not change it
(SMG's `remove_worker` is empty; notes §1B).
"""

from collections.abc import Sequence
from random import Random

from loadtests.sim.peers.approximate_tree import ApproximateTree
from loadtests.sim.peers.block_names import CHARACTERS_PER_TOKEN, token_bytes
from loadtests.sim.peers.event_tree import EventTree
from loadtests.sim.peers.hash_ring import HashRing
from loadtests.sim.peers.peer_router import PeerRouter, first_least
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from protocol.kv_events import KvEvent

# SMG bindings/python/src/smg/router_args.py @73da68c: what the command line starts with.
CACHE_THRESHOLD = 0.3
BALANCE_ABS_THRESHOLD = 64
BALANCE_REL_THRESHOLD = 1.5
EVICTION_INTERVAL_S = 60.0
MAX_TREE_SIZE = 2**26

# vllm-project/router's command line (README @03e9af5) has the same but for this.
VLLM_ROUTER_EVICTION_INTERVAL_S = 120.0


def is_imbalanced(loads: Sequence[int]) -> bool:
    least, most = min(loads), max(loads)
    return most - least > BALANCE_ABS_THRESHOLD and most > BALANCE_REL_THRESHOLD * least


class CacheAware(PeerRouter):
    """cache_aware over HTTP: an approximate tree over characters; of equal loads, the first.

    Follows sgl-project/sglang sgl-model-gateway/src/policies/cache_aware.rs @053b63f, with the
    defaults of SMG's command line (the notes have none of the gateway's own). `max_tree_size`
    counts characters: here divided by characters a token. Which of several replicas that have
    the deepest node is the tree's to say and not in the notes: here who used it last.

    Args:
        eviction_interval_s: Between evictions of the tree.
    """

    characters_per_token = CHARACTERS_PER_TOKEN

    def __init__(
        self,
        replicas: Sequence[ReplicaFacts],
        rng: Random,
        eviction_interval_s: float = EVICTION_INTERVAL_S,
    ) -> None:
        super().__init__(replicas, rng)
        size_max = MAX_TREE_SIZE // self.characters_per_token
        self.tree = ApproximateTree(len(replicas), size_max, eviction_interval_s)

    def choose(self, request: SimRequest, now: float) -> int:
        self.tree.evict(now)
        data = token_bytes(request.prompt)
        if is_imbalanced(self.in_flight.requests):
            replica = self.least_loaded()
        else:
            match = self.tree.match(data)
            if match.tokens > CACHE_THRESHOLD * len(request.prompt):
                replica = match.replicas[0]
            else:
                replica = self.least_loaded()
        self.tree.insert(data, replica)
        return replica

    def least_loaded(self) -> int:
        return first_least(self.in_flight.requests)

    def check(self) -> None:
        super().check()
        self.tree.check()


class SmgCacheAware(CacheAware):
    """cache_aware as SMG has it for gRPC workers without events: a tree over tokens.

    The least load is that of (load, requests ever, index). Token usage gates are at 1.0, off.
    Follows lightseekorg/smg model_gateway/src/policies/cache_aware.rs @73da68c, mode 2.
    """

    characters_per_token = 1

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._processed = [0] * len(replicas)

    def choose(self, request: SimRequest, now: float) -> int:
        replica = super().choose(request, now)
        self._processed[replica] += 1
        return replica

    def least_loaded(self) -> int:
        return _least_loaded(self.in_flight.requests, self._processed)


class SmgEvents(PeerRouter):
    """cache_aware as SMG has it for gRPC workers with KV events.

        argmax (blocks matched, -load, -blocks held), inside the same imbalance gate

    The largest match wins however large the load gap below the gate. Of complete equals the last
    wins (Rust's `max_by`). Nothing matched: the least (load, requests ever, index). Nothing is
    learned from its own choices. Follows the same file, mode 1, and crates/kv_index.
    """

    hears_events = True

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self.tree = EventTree(replicas)
        self._processed = [0] * len(replicas)

    def choose(self, request: SimRequest, now: float) -> int:
        replica = self._choose(request)
        self._processed[replica] += 1
        return replica

    def _choose(self, request: SimRequest) -> int:
        loads = self.in_flight.requests
        if is_imbalanced(loads):
            return _least_loaded(loads, self._processed)
        blocks = self.tree.match(request.prompt)
        if not any(blocks):
            return _least_loaded(loads, self._processed)
        return max(
            range(len(loads)),
            key=lambda one: (blocks[one], -loads[one], -self.tree.size(one), one),
        )

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        self.tree.apply(replica, events)

    def lost(self, replica: int, now: float) -> None:
        super().lost(replica, now)
        self.tree.clear(replica)

    def check(self) -> None:
        super().check()
        self.tree.check()


# SMG model_gateway/src/policies/least_load.rs.
KV_PRESSURE_WEIGHT_S = 0.15
DEFAULT_THROUGHPUT = 2000.0
MEAN_PREFILL_TOKENS = 1024
LOAD_CHECK_INTERVAL_S = 10.0
STALE_LOAD_INTERVALS = 3
KV_USAGE_MAX = 0.999


class SmgLeastLoad(PeerRouter):
    """least_load: the time to drain what waits, and a barrier before a full cache.

        score = (queued tokens + tokens routed since the last report) / throughput
                + 0.15 s · k / (1 - k)                    k: share of the KV cache in use

    The least score, of equals the first. A replica without a fresh report, while others have one,
    scores its requests in flight · 1024 / throughput; if none has, the count alone decides.
    Engines report queued tokens without their cache hits and their own throughput: a `Load` has
    the queue with hits and no throughput, for which the default stands, as it does in SMG.
    Follows lightseekorg/smg model_gateway/src/policies/least_load.rs @73da68c.
    """

    poll_interval_s: float | None = LOAD_CHECK_INTERVAL_S

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._reports: list[tuple[float, Load] | None] = [None] * len(replicas)
        self._routed_tokens = [0] * len(replicas)

    def choose(self, request: SimRequest, now: float) -> int:
        fresh_s = LOAD_CHECK_INTERVAL_S * STALE_LOAD_INTERVALS
        loads = [
            report[1] if report is not None and now - report[0] <= fresh_s else None
            for report in self._reports
        ]
        anybody_reports = any(load is not None for load in loads)
        scores = [self._score(one, load, anybody_reports) for one, load in enumerate(loads)]
        replica = first_least(scores)
        self._routed_tokens[replica] += len(request.prompt)
        return replica

    def load(self, replica: int, load: Load, now: float) -> None:
        self._reports[replica] = (now, load)
        self._routed_tokens[replica] = 0

    def lost(self, replica: int, now: float) -> None:
        super().lost(replica, now)
        self._reports[replica] = None
        self._routed_tokens[replica] = 0

    def _score(self, replica: int, load: Load | None, anybody_reports: bool) -> float:
        requests = self.in_flight.requests[replica]
        if load is None:
            if anybody_reports:
                return requests * MEAN_PREFILL_TOKENS / DEFAULT_THROUGHPUT
            return float(requests)
        usage = min(load.held_tokens / self.replicas[replica].capacity_tokens, KV_USAGE_MAX)
        work = load.waiting_tokens + self._routed_tokens[replica]
        return work / DEFAULT_THROUGHPUT + KV_PRESSURE_WEIGHT_S * usage / (1 - usage)


# SMG model_gateway/src/policies/prefix_hash.rs.
PREFIX_TOKENS = 256
LOAD_FACTOR = 1.25


class SmgPrefixHash(PeerRouter):
    """prefix_hash: the owner of the first 256 tokens on a ring, if it is not too loaded.

    Going round from there, the first with load ≤ 1.25 · mean load. What counts as too loaded is
    not in the notes beyond the factor: this is bounded-load consistent hashing, plainly.
    Follows lightseekorg/smg model_gateway/src/policies/prefix_hash.rs @73da68c.
    """

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        super().__init__(replicas, rng)
        self._ring = HashRing([one.id for one in replicas])

    def choose(self, request: SimRequest, now: float) -> int:
        loads = self.in_flight.requests
        bound = LOAD_FACTOR * sum(loads) / len(loads)
        key = token_bytes(request.prompt[:PREFIX_TOKENS])
        # The least loaded is never above the mean, so that there always is one.
        return next(one for one in self._ring.owners(key) if loads[one] <= bound)


def _least_loaded(loads: Sequence[int], processed: Sequence[int]) -> int:
    return min(range(len(loads)), key=lambda one: (loads[one], processed[one], one))
