"""Policies never pick who must not be picked, repeat themselves, and weigh what they say."""

import os
import subprocess
import sys
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.demand import FLEET_SHARE
from router.core.fleet import Fleet, Replica
from router.core.policies import POLICIES, UnknownPolicy, make_policy
from router.core.policy import Decision, NoReplica, RouteQuery
from router.core.prefix_aware import OWN_S, PrefixAware
from router.core.prefix_tree import Confirmed, Match, PrefixTree
from router.core.states import State
from tests.support.rates import round_rates

BLOCK = 16
BYTES_PER_TOKEN = 4


def replica(name: str, **fields: object) -> Replica:
    rates = round_rates()
    return Replica(**{"id": name, "rates": rates, "state": State.READY, **fields})  # type: ignore[arg-type]


def fleet_of(*replicas: Replica) -> Fleet:
    fleet = Fleet()
    for one in replicas:
        fleet.add(one)
    return fleet


def matching(**tokens: int) -> Match:
    return Match({name: Confirmed(n, n * BYTES_PER_TOKEN) for name, n in tokens.items()}, {})


def choose(query: RouteQuery, fleet: Fleet) -> Decision:
    return PrefixAware().choose(query, fleet, Random(0))


names = st.sampled_from(["r0", "r1", "r2", "r3", "r4"])


@st.composite
def situations(draw: st.DrawFn) -> tuple[RouteQuery, Fleet]:
    fleet = Fleet()
    match = Match({}, {})
    for name in draw(st.lists(names, unique=True)):
        one = replica(
            name,
            state=draw(st.sampled_from(State)),
            capacity_tokens=draw(st.none() | st.integers(0, 5000)),
            held_tokens=draw(st.integers(0, 5000)),
            trust=draw(st.floats(0, 1)),
            other_prefill_tokens=draw(st.integers(0, 5000)),
            other_running=draw(st.integers(0, 20)),
            other_occupied_tokens=draw(st.integers(0, 9000)),
        )
        fleet.add(one)
        if draw(st.booleans()):
            tokens = draw(st.integers(0, 60)) * BLOCK
            match.confirmed[name] = Confirmed(tokens, tokens * BYTES_PER_TOKEN)
        if draw(st.booleans()):
            match.predicted[name] = draw(st.integers(1, 4000))
    longest = max([1, *(one.end for one in match.confirmed.values()), *match.predicted.values()])
    prompt = b"p" * (longest + draw(st.integers(1, 1000)))
    excluded = draw(st.frozensets(names))
    return RouteQuery(prompt=prompt, match=match, excluded=excluded), fleet


@pytest.mark.parametrize("kind", POLICIES)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(situation=situations(), seed=st.integers(0, 9))
def test_nobody_excluded_or_unwell_is_chosen_and_the_same_is_chosen_twice(
    kind: str, situation: tuple[RouteQuery, Fleet], seed: int
) -> None:
    query, fleet = situation
    policy = make_policy(kind)
    allowed = [one.id for one in fleet.routable if one.id not in query.excluded]
    if not allowed:
        with pytest.raises(NoReplica):
            policy.choose(query, fleet, Random(seed))
        return
    decision = policy.choose(query, fleet, Random(seed))
    assert decision.replica in allowed
    assert decision == policy.choose(query, fleet, Random(seed))
    assert decision.uncached_tokens >= 1
    assert decision.replica in str(decision)


def test_with_all_else_equal_the_bigger_match_wins() -> None:
    fleet = fleet_of(replica("a"), replica("b"), replica("c"))
    query = RouteQuery(prompt=b"p" * 4000, match=matching(a=160, b=480, c=320))
    decision = choose(query, fleet)
    assert decision.replica == "b"
    assert (decision.matched_tokens, decision.uncached_tokens) == (480, 520)


def test_a_loaded_replica_loses_once_its_wait_is_longer_than_what_its_cache_saves() -> None:
    warm = replica("warm")
    fleet = fleet_of(warm, replica("cold"))
    query = RouteQuery(prompt=b"p" * 4000, match=matching(warm=800), expected_output_tokens=1)
    saved = 800 * PrefixAware().uncached_weight
    warm.other_prefill_tokens = round(saved) - 200  # more than a near-tie
    assert choose(query, fleet).replica == "warm"
    warm.other_prefill_tokens += 500
    assert choose(query, fleet).replica == "cold"


def longest_wait(arrivals: int, *, at: str, tokens: int, step: int) -> int:
    """Tokens before it at which a request leaves where 800 of its 1,000 are cached.

    Args:
        arrivals: Requests of so many `tokens` that came to the replica `at` in the last second.
        step: How exact the answer is.
    """
    warm = replica("warm")
    fleet = fleet_of(warm, replica("cold"))
    for number in range(arrivals):
        fleet.lease(at, tokens, 1, now=number / arrivals).release(now=number / arrivals)
    query = RouteQuery(
        prompt=b"p" * 4000, match=matching(warm=800), expected_output_tokens=1, now=1.0
    )
    while choose(query, fleet).replica == "warm":
        warm.other_prefill_tokens += step
        assert warm.other_prefill_tokens < 100_000, "no wait is too long"
    return warm.other_prefill_tokens


def test_the_more_requests_come_there_the_sooner_a_busy_replica_loses_one() -> None:
    waits = [longest_wait(arrivals, at="warm", tokens=20, step=10) for arrivals in (0, 5, 20)]
    assert waits[0] > waits[1] > waits[2]


def test_the_more_requests_come_elsewhere_the_longer_a_cached_prefix_is_waited_for() -> None:
    waits = [longest_wait(arrivals, at="cold", tokens=100, step=50) for arrivals in (0, 5, 20)]
    assert waits[0] < waits[1] < waits[2]


def test_what_delays_the_others_is_work_beside_theirs_and_behind_a_backlog() -> None:
    busy = replica("busy", other_prefill_tokens=2_000, other_prefills=3)
    fleet = fleet_of(busy)
    fleet.lease("busy", 100, 1, now=0.0).release(now=0.0)
    query = RouteQuery(prompt=b"p" * 4000, expected_output_tokens=1, now=1.0)
    (terms,) = choose(query, fleet).terms
    computed_s = 1_000 * 1e-3
    delayed = busy.demand.delayed_per_s2(1.0)
    share = (PrefixAware().uncached_weight - 1.0) * computed_s
    behind_s = delayed * (busy.backlog_s(1.0) + computed_s / 2)
    assert terms.room == pytest.approx(share + computed_s * (3 + behind_s))


@pytest.mark.parametrize("seconds", [1, 10])
def test_what_comes_to_the_fleet_counts_for_more_the_longer_a_prefill_takes(seconds: int) -> None:
    asked, idle = replica("asked"), replica("idle")
    fleet = fleet_of(asked, idle)
    for _ in range(20):
        fleet.lease("asked", 0, 1, now=0.0).release(now=0.0)
    query = RouteQuery(prompt=b"p" * 4000 * seconds, expected_output_tokens=1, now=1.0)
    policy = PrefixAware(uncached_weight=1.0)
    rooms = {one.replica: one.room for one in policy.choose(query, fleet, Random(0)).terms}
    delayed = asked.demand.delayed_per_s2(1.0)
    share = FLEET_SHARE + (1 - FLEET_SHARE) * seconds / (seconds + OWN_S)
    assert rooms["idle"] == pytest.approx(share / 2 * delayed * seconds**2 / 2)
    assert rooms["asked"] == pytest.approx((1 - share / 2) * delayed * seconds**2 / 2)


def test_attention_to_what_is_cached_counts() -> None:
    long, short = replica("long"), replica("short")
    long.rates.prefill_s_per_pair = short.rates.prefill_s_per_pair = 1e-6
    query = RouteQuery(prompt=b"p" * 4000 * BYTES_PER_TOKEN, match=matching(long=3200, short=0))
    terms = {one.replica: one for one in choose(query, fleet_of(long, short)).terms}
    assert terms["long"].prefill == pytest.approx(0.01 + 0.8 + 800 * (3200 + 400) * 1e-6)
    assert terms["short"].prefill == pytest.approx(0.01 + 4.0 + 4000 * 2000 * 1e-6)


def test_a_target_makes_own_seconds_count_and_the_chance_to_miss_it() -> None:
    # Waiting for what is cached is cheap, and late; the cold one has nothing to do.
    warm, cold = replica("warm", other_prefill_tokens=600), replica("cold")
    fleet = fleet_of(warm, cold)
    for _ in range(100):
        fleet.targets.came(60.0)
        fleet.targets.came(0.45)
        fleet.targets.first_token(1.0, 1.0)
    query = RouteQuery(prompt=b"p" * 400 * BYTES_PER_TOKEN, match=matching(warm=320))
    assert choose(query._replace(ttft_target_s=60.0), fleet).replica == "warm"
    urgent = choose(query._replace(ttft_target_s=0.45), fleet)
    assert urgent.replica == "cold"
    terms = {one.replica: one for one in urgent.terms}
    assert terms["warm"].target > terms["cold"].target
    for one in urgent.terms:
        assert one.cost == pytest.approx(sum(one[4:]))
    assert all(one.target == 0.0 for one in choose(query, fleet).terms)


def test_other_routers_work_counts_like_ours() -> None:
    fleet = fleet_of(replica("warm", other_prefill_tokens=5000), replica("cold"))
    query = RouteQuery(prompt=b"p" * 4000, match=matching(warm=800))
    assert choose(query, fleet).replica == "cold"


def test_a_full_cache_is_a_wait_for_answers_to_end() -> None:
    full = replica("full", capacity_tokens=10_000, other_running=4, other_occupied_tokens=8_000)
    fleet = fleet_of(full)
    query = RouteQuery(prompt=b"p" * 4000 * BYTES_PER_TOKEN, expected_output_tokens=100)
    (terms,) = choose(query, fleet).terms
    step_s = 0.02 + 0.0005 * 4
    over = 8_000 + 4_000 + 100 - 10_000
    assert terms.wait == pytest.approx(over / 8_000 * 100 * step_s)
    full.other_occupied_tokens = 5_900
    (terms,) = choose(query, fleet).terms
    assert terms.wait == 0.0, "there is room"
    full.capacity_tokens = None
    full.other_occupied_tokens = 90_000
    (terms,) = choose(query, fleet).terms
    assert terms.wait == 0.0, "nobody knows its size"


def test_our_own_requests_fill_a_cache_too_and_leave_it() -> None:
    fleet = fleet_of(replica("warm", capacity_tokens=4_000), replica("cold", capacity_tokens=4_000))
    query = RouteQuery(prompt=b"p" * 4000, match=matching(warm=960), expected_output_tokens=500)
    lease = fleet.lease("warm", 10, 500, now=0.0, matched_tokens=3_490)
    lease.first_byte(now=1.0)
    assert choose(query, fleet).replica == "cold"
    lease.release(now=2.0)
    assert choose(query, fleet).replica == "warm"


def test_a_match_that_is_not_trusted_is_worth_nothing() -> None:
    fleet = fleet_of(replica("stale", trust=0.0), replica("sure"))
    query = RouteQuery(prompt=b"p" * 4000, match=matching(stale=960, sure=480))
    assert choose(query, fleet).replica == "sure"


def test_what_we_just_sent_there_needs_no_trust_in_events() -> None:
    fleet = fleet_of(replica("stale", trust=0.0), replica("sure"))
    match = Match({"sure": Confirmed(480, 1920)}, {"stale": 3900})
    assert choose(RouteQuery(prompt=b"p" * 4000, match=match), fleet).replica == "stale"


def test_slower_tiers_are_worth_less_than_the_device_and_more_than_nothing() -> None:
    held = {
        "device": Confirmed(800, 3200),
        "host": Confirmed(800, 3200, host_tokens=800),
        "disk": Confirmed(800, 3200, disk_tokens=800),
    }
    names = [*held, "nothing"]
    fleet = fleet_of(*map(replica, names))
    terms = choose(RouteQuery(prompt=b"p" * 4000, match=Match(held, {})), fleet).terms
    assert [one.replica for one in sorted(terms)] == names
    costs = {one.replica: one.prefill for one in terms}
    assert costs["disk"] - costs["device"] > 4 * (costs["host"] - costs["device"]) > 0
    assert [one.matched_tokens for one in terms] == [800, 800, 800, 0]


def test_a_predicted_match_counts_in_whole_blocks() -> None:
    fleet = fleet_of(replica("a"), replica("b", block_size=512))
    query = RouteQuery(prompt=b"p" * 4000, match=Match({}, {"a": 1999, "b": 1999}))
    decision = choose(query, fleet)
    assert (decision.replica, decision.matched_tokens) == ("a", 496)


def test_a_full_cache_costs_what_it_must_evict() -> None:
    full = replica("full", capacity_tokens=10_000, held_tokens=9_900)
    empty = replica("empty", capacity_tokens=10_000)
    decision = choose(RouteQuery(prompt=b"p" * 4000), fleet_of(full, empty))
    assert decision.replica == "empty"
    rooms = {one.replica: one.room for one in decision.terms}
    assert rooms["full"] - rooms["empty"] == pytest.approx((9_900 + 1_000 + 128 - 10_000) * 1e-3)


class World:
    """A fleet of real trees: a request is routed, then its replica stores prompt and answer."""

    def __init__(self, *names: str) -> None:
        self.fleet = fleet_of(*(replica(name) for name in names))
        self.tree = PrefixTree()

    def say(self, prompt: str, answer: str) -> str:
        text = prompt.encode()
        query = RouteQuery(prompt=text, match=self.tree.match((), text))
        name = choose(query, self.fleet).replica
        prediction = self.tree.predict((), text, name)
        self.store(name, text + answer.encode())
        self.tree.drop(prediction)
        self.tree.check()
        return name

    def store(self, name: str, text: bytes) -> None:
        size = BLOCK * BYTES_PER_TOKEN
        texts = [text[at : at + size] for at in range(0, len(text) - size + 1, size)]
        names = (b"".join(texts[: count + 1]) for count in range(len(texts)))
        hashes = [int.from_bytes(blake2b(one, digest_size=8).digest(), "big") for one in names]
        self.tree.store(name, (), hashes, None, texts, BLOCK)


SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant, trained by the people.<|im_end|>\n"


def test_short_chats_that_share_only_the_system_prompt_spread() -> None:
    world = World("a", "b")
    chosen = Counter(
        world.say(
            f"{SYSTEM}<|im_start|>user\nWhat is {number} times {number + 7}?<|im_end|>\n"
            "<|im_start|>assistant\n",
            f"It is {number * (number + 7)}.",
        )
        for number in range(20)
    )
    assert min(chosen["a"], chosen["b"]) >= 4


@pytest.mark.parametrize("first", range(8))
def test_a_conversation_stays_where_it_began(first: int) -> None:
    world = World("a", "b")
    prompt, homes = SYSTEM, []
    for turn in range(4):
        prompt += (
            f"<|im_start|>user\nQuestion {first}.{turn}: what came of it?<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        answer = f"What came of it, as told in part {first}.{turn}, is a long story. " * 4
        homes.append(world.say(prompt, answer))
        prompt += answer + "<|im_end|>\n"
    assert len(set(homes)) == 1


def test_equal_long_prompts_meet_while_the_first_one_is_still_computed() -> None:
    world = World("a", "b", "c", "d")
    text = b"A long document. " * 300
    first = choose(RouteQuery(prompt=text), world.fleet).replica
    world.tree.predict((), text, first)
    world.fleet.lease(first, len(text) // BYTES_PER_TOKEN, 128, now=0.0)
    for number in range(4):
        sibling = text + b"And question %d." % number
        match = world.tree.match((), sibling)
        decision = choose(RouteQuery(prompt=sibling, match=match), world.fleet)
        assert decision.replica == first
        world.fleet.lease(first, decision.uncached_tokens, 128, now=0.0)


def test_near_ties_are_broken_alike_in_every_process() -> None:
    code = (
        "from tests.router.core.test_policies import *\n"
        "fleet = fleet_of(*(replica(f'r{n}') for n in range(16)))\n"
        "print([choose(RouteQuery(prompt=b'%d' % n * 20), fleet).replica for n in range(40)])\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    assert len(set(said[0].split())) > 8


def test_removing_a_replica_moves_only_its_own_prompts() -> None:
    prompts = [b"prompt %d" % number for number in range(200)]
    members = [replica(f"r{number}") for number in range(5)]
    fleet = fleet_of(*members)
    before = {one: choose(RouteQuery(prompt=one), fleet).replica for one in prompts}
    fleet.remove("r3")
    after = {one: choose(RouteQuery(prompt=one), fleet).replica for one in prompts}
    assert all(after[one] == before[one] for one in prompts if before[one] != "r3")


def test_round_robin_takes_turns() -> None:
    fleet, policy = fleet_of(replica("a"), replica("b")), make_policy("round_robin")
    chosen = []
    for _ in range(4):
        chosen.append(policy.choose(RouteQuery(prompt=b"p"), fleet, Random(0)).replica)
        fleet.lease(chosen[-1], 1, 1, now=0.0)
    assert chosen == ["a", "b", "a", "b"]


def test_least_requests_counts_requests() -> None:
    fleet = fleet_of(replica("a"), replica("b", other_running=1), replica("c"))
    fleet.lease("a", 1, 1, now=0.0)
    chosen = make_policy("least_requests").choose(RouteQuery(prompt=b"p"), fleet, Random(0))
    assert chosen.replica == "c"


def test_an_unknown_policy_is_told_which_there_are() -> None:
    with pytest.raises(UnknownPolicy, match=r"no policy 'best'; there are .*prefix_aware"):
        make_policy("best")
