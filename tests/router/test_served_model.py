"""What a model learns from its requests: beliefs and leases that end, numbers of 200s only."""

import asyncio

import pytest
from msgspec import structs

from router.core.answer_scan import AnswerUsage
from router.core.policies import POLICIES, UnknownPolicy
from router.core.states import State, StateEvent
from router.dataplane.route import Outcome
from tests.support.data_plane import Call, ScriptedReplica
from tests.support.front import answer, front
from tests.support.served import USAGE, assign, believed, books_are_even, clock, served


async def test_with_events_a_belief_ends_a_moment_after_the_first_byte() -> None:
    model = served(events=True)
    now = clock()
    assignment = assign(model)
    assignment.first_byte(now + 1.0, 200)
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
    assignment.first_byte(now + 1.0, 200)
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
    assignment.first_byte(clock() + 0.5, 200)
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
    now = clock()
    assignment = assign(model, streaming=False, now=now)
    replica = model.fleet["r0"]
    assert replica.pending_prefill_tokens > 0
    assignment.first_byte(now, 200)  # of the answer, long after its prompt was done: no news
    assert assignment.first_token_s is None
    model.expire(now + 0.01)
    assert replica.pending_prefill_tokens > 0
    model.expire(now + 0.03 + 8 * model.cost.rates("r0").prefill_s_per_token)
    assert replica.pending_prefill_tokens == 0
    assert replica.running == 1
    assignment.release(Outcome.ANSWERED, 200, USAGE, clock())
    assert books_are_even(model)


async def test_a_whole_answer_before_its_estimate_is_counted_once() -> None:
    model = served(events=True)
    model.cost.rates("r0").overhead_s = 0.02
    now = clock()
    assign(model, streaming=False, now=now).release(Outcome.ANSWERED, 200, USAGE, now)
    assert books_are_even(model)
    model.expire(now + 10.0)  # past the estimate
    assert books_are_even(model)


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


# Replicas without events


@pytest.mark.parametrize("first_byte", [False, True], ids=["before", "after"])
async def test_a_client_that_leaves_leaves_a_belief_only_after_the_first_byte(
    first_byte: bool,
) -> None:
    model = served(events=False)
    assignment = assign(model)
    if first_byte:
        assignment.first_byte(clock(), 200)
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


async def test_a_tree_too_large_forgets_what_replicas_that_are_down_hold_first() -> None:
    model = served(events=True, replicas=2)
    model.apply("r1", StateEvent.REQUEST_FAILED_CONNECT, clock())
    for _ in range(10):
        model.apply("r1", StateEvent.PROBE_FAILED, clock())
    assert model.fleet["r1"].state is State.EJECTED
    for replica in ("r0", "r1"):
        texts = [replica.encode() + b"%05d" % number + b"x" * 1000 for number in range(100)]
        for number, text in enumerate(texts):
            model.tree.store(replica, (), [number], None, [text], 16)
    bound = model.tree.bytes_resident * 2 // 3
    model.config = structs.replace(model.config, max_prefix_tree_bytes=bound)
    for _ in range(100):
        model.expire(clock())
    assert model.tree.bytes_resident <= bound
    assert model.tree.held_blocks("r0") == 100
    assert 0 < model.tree.held_blocks("r1") < 50
    assert model.tree.forgotten_blocks == 100 - model.tree.held_blocks("r1")
