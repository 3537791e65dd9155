"""Peers that decide by thresholds, on small cases computed by hand, on both sides of each."""

from collections import Counter
from random import Random

import pytest

from loadtests.sim.peers import plain
from loadtests.sim.peers.aibrix import AibrixPrefixCache
from loadtests.sim.peers.production_stack import KvAware, PrefixAware
from loadtests.sim.peers.ray_serve import RayPrefixAware
from loadtests.sim.peers.sglang import (
    CacheAware,
    SmgCacheAware,
    SmgEvents,
    SmgPrefixHash,
    is_imbalanced,
)
from tests.loadtests.sim.peer_setup import fleet, names, occupy, request, stored

TEN = list(range(10))
OTHER = list(range(500, 600))


@pytest.mark.parametrize(
    ("loads", "imbalanced"),
    [
        pytest.param([0, 64], False, id="a gap of the absolute threshold is none"),
        pytest.param([0, 65], True, id="one more is"),
        pytest.param([130, 195], False, id="the most is the relative threshold times the least"),
        pytest.param([130, 196], True, id="one more is above it"),
        pytest.param([200, 280], False, id="the absolute gap alone is not enough"),
        pytest.param([2, 4], False, id="the relative gap alone is not enough"),
    ],
)
def test_the_sglang_familys_imbalance_gate(loads: list[int], imbalanced: bool) -> None:
    assert is_imbalanced(loads) is imbalanced


@pytest.mark.parametrize(
    ("shared", "replica"),
    [
        pytest.param(3, 1, id="a match of exactly 0.3 is too little: the least loaded"),
        pytest.param(4, 0, id="above it: where it matched"),
    ],
)
@pytest.mark.parametrize("policy", [CacheAware, SmgCacheAware])
def test_cache_aware_follows_a_match_above_the_threshold(
    policy: type[CacheAware], shared: int, replica: int
) -> None:
    router = policy(fleet(3), Random(0))
    assert router.route(request(0, TEN), 0.0) == 0
    asked = request(1, TEN[:shared] + OTHER[: 10 - shared])
    assert router.route(asked, 0.0) == replica


def test_cache_aware_leaves_its_match_when_loads_are_imbalanced_and_learns_it() -> None:
    router = CacheAware(fleet(2), Random(0))
    router.route(request(0, TEN), 0.0)
    occupy(router, [64, 0])
    assert router.route(request(1, TEN), 0.0) == 1, "65 against 0"
    router.done(request(0, TEN), 0, 0, 0.0)
    assert router.route(request(2, TEN), 0.0) == 1, "in balance: who used it last has it"


def smg_events(blocks: list[int], requests: list[int], more: list[int] | None = None) -> int:
    """Where 12 tokens go of which replicas hold so many blocks, and others besides."""
    router = SmgEvents(fleet(len(blocks)), Random(0))
    prompt = list(range(12))
    for replica, count in enumerate(blocks):
        router.events(replica, [stored(prompt[: 4 * count], 0)], 0.0)
    for replica, count in enumerate(more or []):
        router.events(replica, [stored(OTHER[: 4 * count], 50)], 0.0)
    occupy(router, requests)
    return router.route(request(0, prompt), 0.0)


@pytest.mark.parametrize(
    ("blocks", "requests", "more", "replica"),
    [
        pytest.param([1, 3, 2], [0, 60, 0], None, 1, id="most blocks, however loaded"),
        pytest.param([0, 3, 0], [0, 65, 0], None, 0, id="but not above the gate"),
        pytest.param([2, 2, 0], [3, 2, 0], None, 1, id="then the fewest requests"),
        pytest.param([2, 2, 0], [1, 2, 0], [1, 0, 0], 0, id="before how much is held"),
        pytest.param([2, 2, 0], [1, 1, 0], [0, 1, 0], 0, id="then the fewest blocks held"),
        pytest.param([2, 2, 0], [1, 1, 0], None, 1, id="of complete equals the last"),
        pytest.param([0, 0, 0], [1, 0, 0], None, 1, id="no match: the first least loaded"),
    ],
)
def test_smg_with_events(
    blocks: list[int], requests: list[int], more: list[int] | None, replica: int
) -> None:
    assert smg_events(blocks, requests, more) == replica


def test_smg_prefix_hash_goes_on_from_an_owner_above_its_share() -> None:
    router = SmgPrefixHash(fleet(4), Random(0))
    head = list(range(256))
    owner = router.route(request(0, head), 0.0)
    router.done(request(0, head), owner, 0, 0.0)
    occupy(router, [5 if one == owner else 4 for one in range(4)])
    assert 5 <= 1.25 * 17 / 4
    assert router.route(request(1, [*head, 9]), 0.0) == owner, "what comes after 256 does not count"
    assert 6 > 1.25 * 18 / 4
    assert router.route(request(2, head), 0.0) != owner


@pytest.mark.parametrize(
    ("matched", "replica"),
    [
        pytest.param(1000, 1, id="a rest of exactly 2000 goes to the holder"),
        pytest.param(996, 0, id="more: to the lowest rate, which the first has"),
    ],
)
def test_production_stack_kvaware(matched: int, replica: int) -> None:
    router = KvAware(fleet(2), Random(0))
    prompt = list(range(3000))
    router.events(1, [stored(prompt[:matched], 0)], 0.0)
    assert router.route(request(0, prompt), 0.0) == replica


def test_production_stack_kvaware_asks_the_oldest_holder_alone() -> None:
    router = KvAware(fleet(3), Random(0))
    prompt = list(range(4000))
    router.events(2, [stored(prompt[:2000], 0)], 0.0)
    router.events(1, [stored(prompt, 0)], 0.0)
    assert router.route(request(0, prompt), 0.0) == 2, "2000 are enough, though 1 holds them all"
    # 2 holds too little of this one; the fallback is a session's owner, or the lowest rate.
    longer = [*prompt, *range(9000, 9100)]
    assert router.route(request(1, longer), 0.0) == 0
    owners = {router.route(request(2 + n, longer, conversation=5), 0.0) for n in range(5)}
    assert len(owners) == 1


def test_production_stack_prefixaware_draws_among_the_longest_matches() -> None:
    router = PrefixAware(fleet(3), Random(0))
    # 32 tokens a chunk: one head of two chunks, two ways to go on.
    head, tail = list(range(64)), list(range(100, 132))
    first = router.route(request(0, head), 0.0)
    seen = Counter(router.route(request(1 + n, head), 0.0) for n in range(20))
    assert set(seen) == {first}, "no load term: all go where the first one went"
    assert router.route(request(50, [*head, *tail]), 0.0) == first
    cold = {router.route(request(100 + n, [n, *tail]), 0.0) for n in range(30)}
    assert cold == {0, 1, 2}, "no match: any"


def aibrix(percents: dict[int, int], requests: list[int]) -> int | None:
    router = AibrixPrefixCache(fleet(len(requests)), Random(0))
    occupy(router, requests)
    return router.accepted(percents)


@pytest.mark.parametrize(
    ("percents", "requests", "replica"),
    [
        pytest.param({0: 50, 1: 80}, [0, 1, 1, 1], 1, id="the largest match"),
        pytest.param(
            {0: 80, 1: 80, 2: 80, 3: 80},
            [2, 2, 2, 1],
            3,
            id="of equal matches the fewest requests",
        ),
        # mean 4.75, σ of the population 4.76: 9.51; of a sample it would be 5.5: 10.25
        pytest.param({0: 90, 2: 10}, [10, 9, 0, 0], 2, id="not above the mean and one σ"),
        pytest.param({0: 90, 1: 10}, [4, 0, 4, 0], 0, id="exactly there it is"),
        pytest.param({0: 90}, [5, 1, 1, 1], None, id="nobody is left"),
    ],
)
def test_aibrix_accepts(percents: dict[int, int], requests: list[int], replica: int | None) -> None:
    assert aibrix(percents, requests) == replica


@pytest.mark.parametrize(
    ("requests", "home"),
    [
        pytest.param([8, 7, 0], True, id="a gap of eight: the holder within one σ"),
        pytest.param([9, 9, 0], False, id="of nine: only the least loaded may match"),
    ],
)
def test_aibrix_restricts_matches_when_loads_are_imbalanced(
    requests: list[int], home: bool
) -> None:
    router = AibrixPrefixCache(fleet(3), Random(0))
    prompt = list(range(64))
    router.table.insert(names(prompt, 16), 1, 0.0)
    occupy(router, requests)
    # mean 5 + σ 3.56 ≥ 7; mean 6 + σ 4.24 ≥ 9: the gate alone tells the cases apart.
    assert (router.route(request(0, prompt), 0.0) == 1) is home


def test_aibrix_sweeps_out_what_was_unused_for_twenty_minutes() -> None:
    router = AibrixPrefixCache(fleet(2), Random(0))
    router.route(request(0, range(64)), 0.0)
    router.route(request(1, range(1000, 1032)), 1200.0)
    assert len(router.table) == 4 + 2
    router.route(request(2, range(2000, 2016)), 1202.0)
    assert len(router.table) == 2 + 1


def test_rays_match_rate_and_smallest_tree() -> None:
    router = RayPrefixAware(fleet(2), Random(0))
    prompt = list(range(100))
    home = router.route(request(0, prompt), 0.0)
    occupy(router, [500 if one == home else 0 for one in range(2)])
    assert router.route(request(1, prompt[:10] + OTHER[:90]), 0.0) == home, "0.1 is enough"
    # 9 of 100 are not: the smaller tree is the other's.
    assert router.route(request(2, prompt[:9] + OTHER[10:]), 0.0) == 1 - home


def test_ray_takes_the_shortest_queue_of_those_matched() -> None:
    for seed in range(10):
        router = RayPrefixAware(fleet(3), Random(seed))
        for replica in (0, 1):
            router.tree.insert(request(0, TEN).prompt.tobytes(), replica)
        occupy(router, [3, 1, 0])
        assert router.route(request(1, TEN), 0.0) == 1


def test_rays_imbalance_threshold_draws_two_and_takes_the_shorter_queue() -> None:
    prompt = list(range(100))
    for gap, follows in [(10, True), (11, False)]:
        router = RayPrefixAware(fleet(2), Random(0), imbalanced_threshold=10)
        router.tree.insert(request(0, prompt).prompt.tobytes(), 0)
        occupy(router, [gap, 0])
        assert (router.route(request(1, prompt), 0.0) == 0) is follows


def test_plain_policies_by_hand() -> None:
    turns = plain.RoundRobin(fleet(3), Random(0))
    assert [turns.route(request(n, TEN), 0.0) for n in range(4)] == [0, 1, 2, 0]
    requests = plain.LeastRequests(fleet(3), Random(0))
    occupy(requests, [2, 1, 2], tokens=50)
    assert requests.route(request(0, TEN), 0.0) == 1
    tokens = plain.LeastTokens(fleet(2), Random(0))
    tokens.in_flight.add(0, 0, 100)
    occupy(tokens, [0, 2], tokens=5)
    assert tokens.route(request(1, TEN), 0.0) == 1
    tokens.first_token(request(0, TEN), 0, 0.0)
    assert tokens.route(request(2, TEN), 0.0) == 0, "past its first token nothing waits there"
    two = plain.PowerOfTwo(fleet(2), Random(0))
    occupy(two, [3, 1])
    assert two.route(request(0, TEN), 0.0) == 1
    session = plain.Session(fleet(4), Random(0))
    home = session.route(request(0, TEN, conversation=8), 0.0)
    assert all(session.route(request(n, OTHER, conversation=8), 0.0) == home for n in range(1, 9))
    assert session.route(request(10, TEN, conversation=9), 0.0) != home
    ring = plain.ConsistentHash(fleet(4), Random(0))
    spread = Counter(ring.route(request(n, TEN, conversation=n), 0.0) for n in range(400))
    assert min(spread.values()) > 50


def test_smgs_least_load_counts_requests_ever_where_loads_are_equal() -> None:
    router = SmgCacheAware(fleet(2), Random(0))
    first = request(0, TEN)
    assert router.route(first, 0.0) == 0
    router.done(first, 0, 0, 0.0)
    assert router.route(request(1, OTHER), 0.0) == 1
    gateway = CacheAware(fleet(2), Random(0))
    gateway.route(first, 0.0)
    gateway.done(first, 0, 0, 0.0)
    assert gateway.route(request(1, OTHER), 0.0) == 0, "the gateway takes the first"
