"""What a world is like, drawn from its seed: the fleet, the router's configuration, the clients."""

from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from replica.core.evictions import EVICTIONS
from router.config import RouterConfig
from router.core.policies import POLICIES
from tests.sim.engine import EngineSpec
from tests.sim.faults import Faults, draw_faults
from tests.sim.model import NAME
from tests.sim.replica import Kind, ReplicaSpec

_KINDS = (Kind.OURS, Kind.OURS, Kind.OURS, Kind.VLLM, Kind.SGLANG, Kind.PLAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """
    Attributes:
        trouble_s: How long there are faults and requests.
        requests: How many, in all.
        families: How many prompts there are that others begin with.
        settings: The router's, but for its models.
        model: The model's, but for its replicas.
        blocks_at_once: Of events that the router applies without a pause.
        max_tokens, cache_tokens: Of each replica, as configured; None: not.
    """

    faults: Faults
    replicas: dict[str, ReplicaSpec]
    workers: int
    trouble_s: float
    requests: int
    families: int
    blocks_at_once: int
    settings: dict[str, Any]
    model: dict[str, Any]
    max_tokens: dict[str, int | None]
    cache_tokens: dict[str, int | None]

    def router_config(self, own_name: str) -> RouterConfig:
        """That of the worker process of this name: see `network.Network`."""
        replicas = []
        for name, spec in self.replicas.items():
            events = {"endpoint": f"tcp://{own_name}.{name}:5557"}
            if spec.has_replay:
                events["replay"] = f"tcp://{own_name}.{name}:5558"
            if spec.kind is Kind.SGLANG:
                events["snapshot"] = f"tcp://{own_name}.{name}:5559"
            replicas.append(
                {
                    "id": name,
                    "url": f"http://{own_name}.{name}:8000",
                    "kv_events": None if spec.kind is Kind.PLAIN else events,
                    "max_tokens": self.max_tokens[name],
                    "cache_tokens": self.cache_tokens[name],
                }
            )
        model = {"name": NAME, "replicas": replicas, **self.model}
        return msgspec.convert({"models": [model], **self.settings}, RouterConfig)

    @property
    def smallest_cache_tokens(self) -> int:
        return min(
            one.engine.block_size * one.engine.total_blocks for one in self.replicas.values()
        )


def draw_scenario(rng: Random) -> Scenario:
    faults = draw_faults(rng)
    replicas = {f"r{number}": _draw_replica(rng) for number in range(rng.randint(1, 4))}
    limited = rng.random() < 0.5
    scenario = Scenario(
        faults=faults,
        replicas=replicas,
        workers=rng.choice((1, 1, 2)),
        trouble_s=rng.uniform(2.0, 8.0),
        requests=rng.randint(5, 40),
        families=rng.randint(1, 4),
        blocks_at_once=rng.choice((1, 4, 64)),
        settings=_draw_settings(rng, limited),
        model={
            "policy": {"kind": _draw_policy(rng)},
            "max_prefix_tree_bytes": rng.choice((4_000, 20_000, 1 << 30, 1 << 30, 1 << 30)),
        },
        max_tokens={
            name: rng.randint(200, 900) if limited and rng.random() < 0.5 else None
            for name in replicas
        },
        cache_tokens={
            name: one.engine.block_size * one.engine.total_blocks if rng.random() < 0.5 else None
            for name, one in replicas.items()
        },
    )
    # Drawn last, so that seeds keep the rest of their worlds.
    scenario.settings["admission"]["queue_order"] = rng.choice(("response_ratio", "fcfs"))
    return scenario


def _draw_policy(rng: Random) -> str:
    return "prefix_aware" if rng.random() < 0.7 else rng.choice(sorted(POLICIES))


def _draw_replica(rng: Random) -> ReplicaSpec:
    block_size = rng.choice((4, 8, 16, 16, 32))
    max_running = rng.randint(1, 6)
    return ReplicaSpec(
        kind=rng.choice(_KINDS),
        engine=EngineSpec(
            block_size=block_size,
            total_blocks=rng.randint(280, 1500) // block_size,
            max_batched_tokens=rng.choice((16, 32, 128, 512)),
            max_running=max_running,
            max_waiting=rng.randint(1, 12),
            slowness=rng.choice((1.0, 1.0, 2.0, 4.0)),
            steps_in_flight=rng.randint(1, 2),
            buffer_batches=rng.choice((2, 10, 1000)),
            eviction=rng.choice(sorted(EVICTIONS)),
        ),
        has_replay=rng.random() < 0.8,
        loads_s=rng.uniform(0.0, 0.5),
        clock_s=rng.choice((0.0, 0.0, -50.0, 1e9, rng.uniform(-1, 1))),
    )


def _draw_settings(rng: Random, limited: bool) -> dict[str, Any]:
    first_byte_s = rng.choice((3.0, 10.0))
    return {
        "limits": {
            "max_requests": rng.choice((4, 1000, 1000, 1000)),
            "max_connections_per_replica": rng.choice((2, 1000, 1000)),
        },
        "admission": {
            "max_tokens": rng.choice((None, rng.randint(300, 2000))) if limited else None,
            "queue_requests": rng.choice((0, 3, 100)),
            "queue_bytes": rng.choice((2_000, 1_000_000)),
            "queue_timeout_s": rng.choice((1.0, 5.0)),
            "aging_s": rng.choice((None, 0.5, 10.0)),
            "quantum_tokens": rng.choice((50, 8192)),
        },
        "timeouts": {
            "keep_alive_s": 8.0,
            "connect_s": rng.choice((0.5, 2.0)),
            "first_byte_s": first_byte_s,
            "between_bytes_s": rng.choice((1.0, 5.0)),
            "drain_s": rng.choice((0.5, 5.0)),
            "total_s": rng.choice((None, None, 6.0)),
        },
        "retry": {
            "max_attempts": rng.randint(1, 4),
            "budget_ratio": rng.choice((0.0, 0.2, 1.0)),
            "budget_min_per_s": rng.choice((0.1, 5.0)),
        },
        "resume": {
            "max_resumes": rng.choice((0, 1, 3, 3)),
            "max_bytes": rng.choice((60, 1 << 20, 1 << 20)),
        },
        "hedge": {"after_s": rng.choice((None, None, 0.05, 0.5))},
        "probe": {"interval_s": rng.choice((0.25, 1.0)), "timeout_s": rng.choice((0.5, 2.0))},
        "prediction": {
            "ttl_s": rng.choice((1.0, 4.0)),
            "grace_s": 0.25,
            "without_events_ttl_s": rng.choice((1.0, 6.0)),
        },
        "log_requests": False,
    }
