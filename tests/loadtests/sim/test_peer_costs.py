"""Peers that weigh costs or scores against each other, on small cases computed by hand."""

from collections import Counter
from math import exp
from random import Random

import pytest

from loadtests.sim.peers import llmd
from loadtests.sim.peers.dynamo import DynamoCost, drawn_by_softmax
from loadtests.sim.peers.production_stack import LoadAware
from loadtests.sim.peers.sglang import SmgLeastLoad
from tests.loadtests.sim.peer_setup import fleet, load, names, occupy, request, stored

TEN = list(range(10))
OTHER = list(range(500, 600))


def test_smg_least_load_adds_drain_time_and_a_barrier() -> None:
    router = SmgLeastLoad(fleet(3, capacity_tokens=1000), Random(0))
    # 600 / 2000 = 0.3 s; 0.15 · 0.5 / 0.5 = 0.15 s; 0.15 · 0.6 / 0.4 = 0.225 s
    router.load(0, load(waiting_tokens=600), 0.0)
    router.load(1, load(held_tokens=500), 0.0)
    router.load(2, load(held_tokens=600), 0.0)
    assert router.route(request(0, [1] * 160), 1.0) == 1
    # 0.15 + 160 / 2000 = 0.23 s there now; then 0.305 s at 2.
    assert router.route(request(1, [1] * 160), 1.0) == 2
    assert router.route(request(2, [1] * 160), 1.0) == 1
    # 0.31 s at 1: it would be 0's turn, but a report covers what was routed before.
    router.load(1, load(held_tokens=500), 2.0)
    assert router.route(request(3, [1] * 160), 2.0) == 1


@pytest.mark.parametrize(
    ("waiting_tokens", "replica"),
    [
        # 0.15 · 0.999 / 0.001 = 149.85 s
        pytest.param(299_600, 1, id="149.8 s of work"),
        pytest.param(299_800, 0, id="149.9 s"),
    ],
)
def test_smg_least_loads_barrier_at_a_full_cache(waiting_tokens: int, replica: int) -> None:
    router = SmgLeastLoad(fleet(2, capacity_tokens=1000), Random(0))
    router.load(0, load(held_tokens=1000), 0.0)
    router.load(1, load(waiting_tokens=waiting_tokens), 0.0)
    assert router.route(request(0, TEN), 0.0) == replica


def test_smg_least_load_without_fresh_reports() -> None:
    router = SmgLeastLoad(fleet(2), Random(0))
    occupy(router, [1, 0])
    assert router.route(request(0, [1]), 0.0) == 1, "nobody reports: the fewest requests"
    router.load(1, load(waiting_tokens=1000), 0.0)
    # 1 · 1024 / 2000 = 0.512 s against 1000 / 2000 = 0.5 s
    assert router.route(request(1, [1] * 30), 30.0) == 1
    # 0.515 s now
    assert router.route(request(2, [1]), 30.0) == 0
    assert router.in_flight.requests == [2, 2]
    # 1.024 s against 0.515 s, but the report is stale: equal counts, the first
    assert router.route(request(3, [1]), 30.1) == 0


def loadaware(blocks: list[int], requests: list[int]) -> int:
    router = LoadAware(fleet(len(blocks)), Random(0))
    prompt = list(range(16))
    for replica, count in enumerate(blocks):
        router.events(replica, [stored(prompt[: 4 * count], 0)], 0.0)
    occupy(router, requests)
    return router.route(request(0, prompt), 0.0)


@pytest.mark.parametrize(
    ("blocks", "requests", "replica"),
    [
        # mean 10: 1 - 0.4 against 0 + 0.4
        pytest.param([4, 0], [14, 6], 0, id="a whole match is worth 40 % above the mean"),
        # 1 - 0.6 against 0 + 0.6
        pytest.param([4, 0], [16, 4], 1, id="but not 60 %"),
        # mean 0.5, divided by 1: 0.75 - 0.5 against 0 + 0.5
        pytest.param([3, 0], [1, 0], 1, id="below a mean of one the gap counts as it is"),
        # 1 - 0.5 against 0 + 0.5
        pytest.param([4, 0], [1, 0], 0, id="of equals the first"),
    ],
)
def test_production_stack_loadaware(blocks: list[int], requests: list[int], replica: int) -> None:
    assert loadaware(blocks, requests) == replica


def dynamo(
    overlaps: list[int], prefill: list[int], held: list[list[int]], prompt: list[int]
) -> list[float]:
    """Costs of `prompt`: `held` prompts are in flight, past their first token."""
    router = DynamoCost(fleet(len(overlaps)), Random(0))
    for replica, count in enumerate(overlaps):
        router.events(replica, [stored(prompt[: 4 * count], 0)], 0.0)
    number = 100
    for replica, tokens in enumerate(held):
        if tokens:
            router.active[replica].add(names(tokens))
        router.in_flight.add(number, replica, prefill[replica])
        number += 1
    return router.costs(len(prompt), names(prompt), router.tree.match(prompt))


def test_dynamos_cost_by_hand() -> None:
    prompt = list(range(16))
    costs = dynamo(
        overlaps=[0, 3, 4, 2],
        prefill=[0, 8, 0, 40],
        held=[[], [], prompt[:8] + OTHER[:8], OTHER[:20]],
        prompt=prompt,
    )
    # max((active + 16) / 4 - overlap, 0) + blocks in flight with this prompt's
    assert costs == [4 + 4, 6 - 3 + 4, 0 + 4 + 2, 14 - 2 + 5 + 4]


def test_dynamo_counts_partial_blocks_of_prefill_and_takes_any_of_equals() -> None:
    router = DynamoCost(fleet(2), Random(0))
    assert router.costs(6, names(list(range(6))), [0, 0]) == [1.5 + 1, 1.5 + 1]
    drawn = {DynamoCost(fleet(2), Random(seed)).route(request(0, TEN), 0.0) for seed in range(20)}
    assert drawn == {0, 1}


def test_dynamo_counts_prefill_until_the_first_token_and_blocks_until_the_end() -> None:
    router = DynamoCost(fleet(1), Random(0))
    prompt = list(range(16))
    router.events(0, [stored(prompt[:8], 0)], 0.0)
    one, same, other = request(0, prompt), names(prompt), names(OTHER[:4])
    router.route(one, 0.0)
    assert router.in_flight.prefill_tokens == [8], "the overlap taken off"
    assert router.costs(4, other, [0]) == [(8 + 4) / 4 + 4 + 1]
    assert router.costs(16, same, [2]) == [(8 + 16) / 4 - 2 + 4], "the same prompt adds no block"
    router.first_token(one, 0, 0.0)
    assert router.costs(4, other, [0]) == [1 + 4 + 1]
    router.done(one, 0, 0, 0.0)
    assert router.costs(4, other, [0]) == [1 + 1]


def test_dynamos_softmax_is_over_costs_scaled_to_their_range() -> None:
    rng = Random(0)
    drawn = Counter(drawn_by_softmax([10.0, 20.0, 15.0], 0.5, rng) for _ in range(20_000))
    weights = [1.0, exp(-2), exp(-1)]
    for index, weight in enumerate(weights):
        assert drawn[index] / 20_000 == pytest.approx(weight / sum(weights), abs=0.015)
    assert {drawn_by_softmax([3.0, 3.0], 0.1, rng) for _ in range(50)} == {0, 1}


@pytest.mark.parametrize(
    ("waiting", "scores"),
    [
        pytest.param([0, 5, 10], [1.0, 0.5, 0.0], id="from the shortest to the longest"),
        pytest.param([2, 6, 10], [1.0, 0.5, 0.0], id="wherever they begin"),
        pytest.param([7, 7], [1.0, 1.0], id="all equal"),
    ],
)
def test_llmds_queue_score(waiting: list[int], scores: list[float]) -> None:
    assert llmd.scores_of_queues(waiting) == scores


def test_llmds_weights() -> None:
    router = llmd.LlmdWeighted(fleet(3, capacity_tokens=1000), Random(0))
    router.load(0, load(waiting=10, held_tokens=500), 0.0)
    router.load(1, load(waiting=5, held_tokens=250), 0.0)
    router.load(2, load(), 0.0)
    scores = router.weighted(llmd.DEFAULT_WEIGHTS, [1.0, 0.5, 0.0])
    assert scores == [2 * 0 + 2 * 0.5 + 3, 2 * 0.5 + 2 * 0.75 + 1.5, 2 + 2 + 0]
    assert router.weighted(llmd.PRECISE_WEIGHTS, [1.0, 0.5, 0.0]) == [0.5 + 2, 0.5 + 0.75 + 1, 2]


def test_llmd_goes_where_most_blocks_were_routed_until_load_outweighs_them() -> None:
    router = llmd.LlmdWeighted(fleet(2), Random(0))
    prompt = list(range(128))
    home = router.route(request(0, prompt), 0.0)
    # 3 · 2/2 against 0; then 2 (queue) + 2 · 0.4 (cache) lost: still home. At 0.6 not.
    assert router.route(request(1, prompt), 0.0) == home
    router.load(home, load(waiting=9, held_tokens=1600), 0.0)
    assert router.route(request(2, prompt), 0.0) == home
    router.load(home, load(waiting=9, held_tokens=2400), 0.0)
    assert router.route(request(3, prompt), 0.0) == 1 - home


@pytest.mark.parametrize(
    ("scores", "tokens", "left"),
    [
        pytest.param([0.8, 0.79, 0.0], [0, 0, 0], [0], id="at the threshold it is sticky"),
        pytest.param([0.79, 0.0, 0.0], [0, 0, 0], [0, 1, 2], id="nobody is: all stay"),
        pytest.param([1.0, 0.9, 0.0], [900, 500, 0], [0, 1], id="all the sticky ones"),
        pytest.param([1.0, 0.0, 0.0], [286_704, 0, 9], [0], id="18 s apart: 18 · 15,928 tokens"),
        pytest.param([1.0, 0.0, 0.0], [286_705, 0, 9], [0, 1, 2], id="more: all are open"),
        pytest.param([1.0, 1.0, 0.0], [900_000, 9, 0], [0, 1], id="the least of the sticky counts"),
    ],
)
def test_llmds_affinity_filter(scores: list[float], tokens: list[int], left: list[int]) -> None:
    router = llmd.LlmdAffinity(fleet(3), Random(0))
    for replica, count in enumerate(tokens):
        router.in_flight.add(replica, replica, count)
    assert router.sticky(scores) == left


def test_llmds_token_load_counts_what_is_not_cached_in_flight_and_of_the_request() -> None:
    router = llmd.LlmdAffinity(fleet(2), Random(0))
    prompt = list(range(128))
    home = router.route(request(0, prompt), 0.0)
    assert router.in_flight.tokens[home] == 128
    assert router.route(request(1, [*prompt, 1, 2, 3]), 0.0) == home
    assert router.in_flight.tokens[home] == 128 + 3
    router.done(request(0, prompt), home, 0, 0.0)
    # Half of this one matches, too little to be sticky: 3 + 64 against 0 + 128.
    assert router.route(request(2, [*prompt[:64], *OTHER[:64]]), 0.0) == home
    # 67 + 64 against 128.
    assert router.route(request(3, [*prompt[:64], *OTHER[20:84]]), 0.0) == 1 - home


def test_llmd_looks_at_no_more_than_131072_tokens() -> None:
    router = llmd.LlmdWeighted(fleet(1), Random(0))
    assert len(router.names(request(0, range(131_072 + 64)))) == 2048
    assert len(router.names(request(1, range(131_071)))) == 2047
