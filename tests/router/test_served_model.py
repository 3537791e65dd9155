"""What a model learns from its requests: beliefs and leases that end, numbers of 200s only."""

import asyncio
from random import Random

import pytest

from router.config import KvEventsConfig, ModelConfig, PolicyConfig, PredictionConfig, ReplicaConfig
from router.control.subscription import SubscriptionStatus
from router.core.policies import POLICIES, UnknownPolicy
from router.core.ranks import rank_cache_id
from router.core.states import State, StateEvent
from router.dataplane.answer_scan import AnswerUsage
from router.dataplane.exchange import Outcome
from router.dataplane.pool import ReplicaPool
from router.metrics import RouterMetrics
from router.served_model import ReplicaAssignment, ServedModel
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica
from tests.support.front import answer, front

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


async def test_with_events_a_belief_ends_a_moment_after_the_first_byte() -> None:
    model = served(events=True)
    now = clock()
    assignment = assign(model)
    assignment.first_byte(now + 1.0)
    model.expire(now + 1.2)
    assert believed(model)
    model.expire(now + 1.3)
    assert not believed(model)
    assignment.release(Outcome.ANSWERED, 200, USAGE, now + 2.0)
    assert books_are_even(model)


async def test_with_events_a_belief_ends_when_the_replica_says_nothing() -> None:
    model = served(events=True)
    now = clock()
    assignment = assign(model, now=now)
    model.expire(now + 59.9)
    assert believed(model)
    model.expire(now + 60.1)
    assert not believed(model)
    assignment.release(Outcome.CLIENT_GONE, 499, AnswerUsage(), now)
    assert books_are_even(model)


async def test_without_events_a_belief_stays_for_its_own_time() -> None:
    model = served(events=False)
    now = clock()
    assignment = assign(model, now=now)
    assignment.first_byte(now + 1.0)
    assignment.release(Outcome.ANSWERED, 200, USAGE, now + 2.0)
    model.expire(now + 599.0)
    assert believed(model)
    model.expire(now + 610.0)
    assert not believed(model)


@pytest.mark.parametrize("events", [True, False], ids=["events", "no-events"])
@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.REFUSED, 0), (Outcome.CONNECT_FAILED, 0), (Outcome.BROKEN, 0),
        (Outcome.BROKEN_STREAM, 200), (Outcome.ANSWERED, 400), (Outcome.ANSWERED, 500),
    ],
)  # fmt: skip
async def test_a_failure_drops_the_belief_and_teaches_nothing(
    events: bool, outcome: str, status: int
) -> None:
    model = served(events=events)
    before = model.cost.bytes_per_token
    assignment = assign(model)
    assert believed(model)
    assignment.release(outcome, status, USAGE if status != 200 else AnswerUsage(), clock())
    assert not believed(model)
    assert model.cost.bytes_per_token == before
    assert books_are_even(model)


async def test_only_good_answers_teach() -> None:
    model = served(events=True)
    assignment = assign(model)
    assignment.first_byte(clock() + 0.5)
    assignment.release(Outcome.ANSWERED, 200, USAGE, clock())
    assert model.cost.bytes_per_token < 4.0  # 31 bytes were 8 tokens
    assert model.cost.output_tokens < 128.0


async def test_beliefs_without_events_are_bounded_by_what_the_replica_can_cache() -> None:
    model = served(events=False, cache_tokens=100)
    # 20 tokens each at 4 bytes, of which a cache keeps a block of 16
    prompts = [bytes([65 + number]) * 80 for number in range(20)]
    for prompt in prompts:
        assign(model, prompt).release(Outcome.ANSWERED, 200, AnswerUsage(), clock())
    assert [believed(model, prompt) for prompt in prompts] == [False] * 14 + [True] * 6
    sizes = model.tree.bytes_stored
    for _ in range(200):
        assign(model, prompts[-1]).release(Outcome.ANSWERED, 200, AnswerUsage(), clock())
    assert believed(model, prompts[-1])
    assert model.tree.bytes_stored <= sizes


@pytest.mark.parametrize("policy", sorted(POLICIES))
async def test_the_prefill_of_a_whole_answer_counts_until_its_estimate(policy: str) -> None:
    model = served(events=True, policy=policy)
    model.cost.rates("r0").overhead_s = 0.02
    assignment = assign(model, streaming=False)
    replica = model.fleet["r0"]
    assert replica.pending_prefill_tokens > 0
    assignment.first_byte(clock())  # of the answer, long after its prompt was done: no news
    assert assignment.first_token_s is None
    async with asyncio.timeout(TIMEOUT_S):
        while replica.pending_prefill_tokens:  # noqa: ASYNC110 - a timer tells nobody
            await asyncio.sleep(0.001)
    assert replica.running == 1
    assignment.release(Outcome.ANSWERED, 200, USAGE, clock())
    assert books_are_even(model)


async def test_a_whole_answer_before_its_estimate_leaves_no_timer() -> None:
    model = served(events=True)
    model.cost.rates("r0").overhead_s = 0.02
    assign(model, streaming=False).release(Outcome.ANSWERED, 200, USAGE, clock())
    assert books_are_even(model)
    await asyncio.sleep(0.05)  # past the estimate
    assert books_are_even(model)


def followed(model: ServedModel, cache_id: str = "r0") -> SubscriptionStatus:
    """A cache of 100 blocks of 16 tokens whose events are followed from now on."""
    status = model.subscriptions[cache_id] = SubscriptionStatus()
    status.block_size, status.total_blocks = 16, 100
    status.followed()
    model.events_changed(cache_id, status)
    return status


async def test_trust_begins_with_the_events_and_fades_when_they_are_lost() -> None:
    model = served(events=True)
    replica = model.fleet["r0"]
    assert replica.trust == 0.0
    status = followed(model)
    assert (replica.trust, replica.capacity_tokens, replica.block_size) == (1.0, 1600, 16)
    now = clock()
    status.lost(now)
    model.events_changed("r0", status)
    first = replica.trust
    assert 0.0 < first < 1.0
    model.expire(now + 60.0)
    assert 0.0 < replica.trust < first / 2
    model.expire(now + 6000.0)
    assert replica.trust < 0.01


async def test_the_ranks_of_a_replica_are_one_to_policies() -> None:
    model = served(events=True, ranks=3, replicas=2, policy="prefix_aware")
    ranks = [rank_cache_id("r1", rank) for rank in range(3)]
    model.tree.store(ranks[0], (), [1], None, [PROMPT[:8]], 4)
    model.tree.store(ranks[2], (), [1, 2], None, [PROMPT[:8], PROMPT[8:16]], 4)
    replica = model.fleet["r1"]
    statuses = [followed(model, one) for one in ranks[:2]]
    assert (replica.trust, replica.capacity_tokens) == (0.0, None), "the third is not known yet"
    statuses.append(followed(model, ranks[2]))
    assert (replica.trust, replica.capacity_tokens, replica.held_tokens) == (1.0, 4800, 12)
    assignment = assign(model)
    assert (assignment.replica_id, assignment.matched_tokens) == ("r1", 8)
    now = clock()
    statuses[1].lost(now)
    model.events_changed(ranks[1], statuses[1])
    assert replica.trust == pytest.approx(statuses[1].trust(now), rel=0.01)
    assert replica.trust < 1.0


async def test_a_cleared_cache_is_swept_in_time() -> None:
    model = served(events=True)
    count = 3000
    model.tree.store("r0", (), list(range(count)), None, [b"%04d" % n for n in range(count)], 4)
    model.tree.clear("r0")
    for _ in range(4):
        model.expire(clock())
    assert model.tree.bytes_stored == 0


async def test_attempts_change_what_is_thought_of_a_replica() -> None:
    model = served(events=True, replicas=2)
    assign(model).release(Outcome.CONNECT_FAILED, 0, AnswerUsage(), clock())
    assert model.fleet["r0"].state is State.EJECTED
    assert model.can_retry(set())
    assert not model.can_retry({"r1"})


async def test_an_unknown_policy_is_named() -> None:
    with pytest.raises(UnknownPolicy, match="no policy 'best'; there are"):
        served(events=True, policy="best")


async def test_no_lease_is_left_whatever_ends_the_requests() -> None:
    async def moody(call: Call) -> None:
        number = len(call.body) % 4
        if number == 0:
            call.reset()
        elif number == 1:
            await call.json(b"{}", b"503 Busy")
        elif number == 2:
            await call.start_stream()
            await call.event(b"1")
            call.reset()
        else:
            await answer(call)

    replicas = [ScriptedReplica(name, moody) for name in ("a", "b", "c")]
    async with front(*replicas) as router:
        await asyncio.gather(
            *(router.chat(user="x" * number, stream=number % 3 == 0) for number in range(40)),
            return_exceptions=True,
        )
        await router.until_idle()
        assert books_are_even(router.models["m"])


def count(model: ServedModel, name: str, **labels: str) -> float:
    registry = model._metrics.registry
    return registry.get_sample_value(f"warmroute_{name}_total", {"model": "m", **labels}) or 0.0


def store(model: ServedModel, replica: str, blocks: int) -> None:
    """Its events say that it holds the first blocks of the prompt, of four tokens each."""
    texts = [PROMPT[8 * number : 8 * number + 8] for number in range(blocks)]
    model.tree.store(replica, (), list(range(blocks)), None, texts, 4)


@pytest.mark.parametrize(
    ("cached", "regret"),
    [
        pytest.param(0, 8, id="all"),
        pytest.param(4, 4, id="what-it-had-itself-is-none"),
        pytest.param(8, 0, id="it-had-as-much"),
        pytest.param(None, 8, id="unreported"),
    ],
)
async def test_what_another_replica_held_and_the_chosen_computed_is_regretted(
    cached: int | None, regret: int
) -> None:
    model = served(events=True, replicas=2)  # round robin cares for no cache
    store(model, "r1", 2)
    assignment = assign(model)
    assert assignment.replica_id == "r0"
    assignment.release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, cached), clock())
    assert count(model, "regret_tokens") == regret


async def test_a_wrong_prediction_of_the_chosen_replica_alone_is_no_regret() -> None:
    model = served(events=True)
    store(model, "r0", 2)
    assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 0), clock())
    assert count(model, "regret_tokens") == 0
    assert count(model, "match_overestimate_tokens", replica="r0") == 8


async def test_a_request_is_regretted_once_however_often_it_is_tried() -> None:
    model = served(events=True, replicas=3)
    store(model, "r1", 2)
    for outcome in (Outcome.REFUSED, Outcome.BROKEN):
        failed = model.assign(PROMPT, (), output_tokens_max=None, streaming=True,
                              excluded={"r1"}, now=clock())  # fmt: skip
        failed.release(outcome, 0, AnswerUsage(), clock())
    last = model.assign(PROMPT, (), output_tokens_max=None, streaming=True,
                        excluded={"r1"}, now=clock())  # fmt: skip
    assert count(model, "regret_tokens") == 0
    last.release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 0), clock())
    assert count(model, "regret_tokens") == 8


async def test_what_a_dead_replica_held_is_not_regretted() -> None:
    model = served(events=True, replicas=2)
    store(model, "r1", 2)
    model.apply("r1", StateEvent.REQUEST_FAILED_CONNECT, clock())
    assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 0), clock())
    assert count(model, "regret_tokens") == 0


async def test_without_events_what_was_answered_elsewhere_is_regretted() -> None:
    model = served(events=False, replicas=2)
    tokens = len(PROMPT)  # a byte a token
    for _ in range(3):  # r0, r1, r0
        assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(tokens, 1, 0), clock())
    assert 0 < count(model, "regret_tokens") <= 2 * tokens


async def test_over_and_underestimates_are_told_apart() -> None:
    model = served(events=True)
    store(model, "r0", 1)
    for cached in (0, 1, 4, 8):
        assign(model).release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, cached), clock())
        model.expire(clock() + 1.0)  # what was predicted of it is over: its events are all
    assert count(model, "match_overestimate_tokens", replica="r0") == 4 + 3
    assert count(model, "match_underestimate_tokens", replica="r0") == 4
    assert count(model, "match_error_tokens", replica="r0") == 11
    assert count(model, "matched_tokens", replica="r0") == 16
    assert count(model, "cached_tokens", replica="r0") == 13


async def test_more_cached_tokens_than_the_prompt_has_do_no_harm() -> None:
    model = served(events=True)
    assignment = assign(model)
    assignment.first_byte(clock() + 0.5)
    assignment.release(Outcome.ANSWERED, 200, AnswerUsage(8, 3, 10**9), clock())
    model.cost.check()


# Replicas without events


@pytest.mark.parametrize("first_byte", [False, True], ids=["before", "after"])
async def test_a_client_that_leaves_leaves_a_belief_only_after_the_first_byte(
    first_byte: bool,
) -> None:
    model = served(events=False)
    assignment = assign(model)
    if first_byte:
        assignment.first_byte(clock())
    assignment.release(Outcome.CLIENT_GONE, 499, AnswerUsage(), clock())
    assert believed(model) == first_byte


async def test_policies_see_what_a_replica_without_events_can_hold() -> None:
    model = served(events=False, cache_tokens=100)
    replica = model.fleet["r0"]
    assert replica.capacity_tokens == 100
    assign(model, b"x" * 200).release(Outcome.ANSWERED, 200, AnswerUsage(), clock())
    assert replica.held_tokens == 48  # at four bytes a token, in whole pieces of 64 bytes
    estimated = served(events=False)
    assert estimated.fleet["r0"].capacity_tokens == 500_000


async def test_reported_hits_correct_what_is_believed() -> None:
    model = served(events=False)
    prompts = [bytes([65 + number]) * 2048 for number in range(6)]

    def answer_all(texts: list[bytes], cached: int) -> None:
        for text in texts:
            usage = AnswerUsage(len(text) // 4, 1, cached)
            assign(model, text).release(Outcome.ANSWERED, 200, usage, clock())

    answer_all(prompts, 0)
    answer_all(prompts[:1], 16)
    answer_all(prompts[:1], 496)
    assert [believed(model, one) for one in prompts] == [True] * 6
    answer_all(prompts[3:5], 0)
    assert [believed(model, one) for one in prompts] == [True, False, False, True, True, True]
    assert model.fleet["r0"].capacity_tokens is not None
    assert model.fleet["r0"].capacity_tokens < 500_000
