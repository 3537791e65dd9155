"""Peers' policies by name, made for a fleet and a seeded generator."""

from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType

from loadtests.sim.peers import plain
from loadtests.sim.peers.aibrix import AibrixPrefixCache
from loadtests.sim.peers.dynamo import DynamoCost
from loadtests.sim.peers.llmd import LlmdAffinity, LlmdPrecise, LlmdWeighted
from loadtests.sim.peers.preble import Preble
from loadtests.sim.peers.production_stack import KvAware, LoadAware, PrefixAware
from loadtests.sim.peers.ray_serve import RayPrefixAware
from loadtests.sim.peers.sglang import (
    VLLM_ROUTER_EVICTION_INTERVAL_S,
    CacheAware,
    SmgCacheAware,
    SmgEvents,
    SmgLeastLoad,
    SmgPrefixHash,
)
from loadtests.sim.router import MakeRouter, ReplicaFacts, SimRouter


def _vllm_router(replicas: Sequence[ReplicaFacts], rng: Random) -> SimRouter:
    return CacheAware(replicas, rng, VLLM_ROUTER_EVICTION_INTERVAL_S)


PEERS: Mapping[str, MakeRouter] = MappingProxyType(
    {
        "round_robin": plain.RoundRobin,
        "random": plain.AnyReplica,
        "least_requests": plain.LeastRequests,
        "least_tokens": plain.LeastTokens,
        "power_of_two": plain.PowerOfTwo,
        "session": plain.Session,
        "consistent_hash": plain.ConsistentHash,
        "sglang_cache_aware": CacheAware,
        "smg_cache_aware": SmgCacheAware,
        "smg_events": SmgEvents,
        "smg_least_load": SmgLeastLoad,
        "smg_prefix_hash": SmgPrefixHash,
        "vllm_router_cache_aware": _vllm_router,
        "production_stack_prefix_aware": PrefixAware,
        "production_stack_kv_aware": KvAware,
        "production_stack_load_aware": LoadAware,
        "dynamo_cost": DynamoCost,
        "llmd_weighted": LlmdWeighted,
        "llmd_affinity": LlmdAffinity,
        "llmd_precise": LlmdPrecise,
        "aibrix_prefix_cache": AibrixPrefixCache,
        "ray_prefix_aware": RayPrefixAware,
        "preble_e2": Preble,
    }
)
