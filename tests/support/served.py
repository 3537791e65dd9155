"""A served model whose replicas are ready though nothing is connected, and what is seen of it."""

import asyncio
from random import Random

from router.config import KvEventsConfig, ModelConfig, PolicyConfig, PredictionConfig, ReplicaConfig
from router.control.subscription import SubscriptionStatus
from router.core.answer_scan import AnswerUsage
from router.core.states import StateEvent
from router.dataplane.pool import ReplicaPool
from router.metrics import RouterMetrics
from router.served_model import ReplicaAssignment, ServedModel

PROMPT = b"Hello world, how are you today?"
BELIEF = PredictionConfig(ttl_s=60.0, grace_s=0.25, without_events_ttl_s=600.0)
USAGE = AnswerUsage(prompt_tokens=8, completion_tokens=3, cached_tokens=4)


def served(
    *,
    events: bool,
    cache_tokens: int | None = None,
    policy: str = "round_robin",
    replicas: int = 1,
    ranks: int = 1,
) -> ServedModel:
    """A model whose replicas are ready; nothing is ever connected."""
    kv_events = KvEventsConfig(endpoint="tcp://127.0.0.1:1", ranks=ranks) if events else None
    configs = [
        ReplicaConfig(
            id=f"r{number}",
            url=f"http://127.0.0.1:{number + 1}",
            kv_events=kv_events,
            cache_tokens=cache_tokens,
        )
        for number in range(replicas)
    ]
    pools = {
        one.id: ReplicaPool(
            *one.address, max_connections=1, connect_timeout_s=1.0, max_head_bytes=100
        )
        for one in configs
    }
    config = ModelConfig(name="m", replicas=configs, policy=PolicyConfig(kind=policy))
    model = ServedModel(config, None, pools, BELIEF, RouterMetrics(), Random(0))
    for one in configs:
        model.apply(one.id, StateEvent.PROBE_OK, 0.0)
    return model


def assign(model: ServedModel, prompt: bytes | None = PROMPT, *, streaming: bool = True,
           now: float | None = None) -> ReplicaAssignment:  # fmt: skip
    return model.assign(
        prompt,
        (),
        output_tokens_max=None,
        streaming=streaming,
        excluded=set(),
        now=clock() if now is None else now,
    )


def clock() -> float:
    return asyncio.get_running_loop().time()


def believed(model: ServedModel, prompt: bytes = PROMPT) -> bool:
    model.tree.check()
    return bool(model.tree.match((), prompt).predicted)


def books_are_even(model: ServedModel) -> bool:
    model.fleet.check()
    totals = [(one.running, one.pending_prefill_tokens) for one in model.fleet.replicas]
    return model.fleet.leases == 0 and set(totals) == {(0, 0)}


def followed(model: ServedModel, cache_id: str = "r0") -> SubscriptionStatus:
    """A cache of 100 blocks of 16 tokens whose events are followed from now on."""
    status = model.subscriptions[cache_id] = SubscriptionStatus()
    status.block_size, status.total_blocks = 16, 100
    status.followed()
    model.events_changed(cache_id, status)
    return status


def count(model: ServedModel, name: str, **labels: str) -> float:
    registry = model._metrics.registry
    return registry.get_sample_value(f"warmroute_{name}_total", {"model": "m", **labels}) or 0.0


def store(model: ServedModel, replica: str, blocks: int) -> None:
    """Its events say that it holds the first blocks of the prompt, of four tokens each."""
    texts = [PROMPT[8 * number : 8 * number + 8] for number in range(blocks)]
    model.tree.store(replica, (), list(range(blocks)), None, texts, 4)
