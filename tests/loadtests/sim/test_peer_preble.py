"""Preble: its model of time, when it exploits and explores, and how it rebalances."""

from random import Random

import pytest

from loadtests.sim.peers.preble import Preble
from loadtests.sim.peers.preble_cost import OverloadDetector, Window, prefill_s
from loadtests.sim.peers.token_radix import Node
from tests.loadtests.sim.peer_setup import fleet, request


@pytest.mark.parametrize(
    ("tokens", "context", "milliseconds"),
    [
        pytest.param(100, 1000, (22 + 0.32) / 0.9, id="few tokens"),
        pytest.param(191, 1024, (22 + 0.32) / 0.9, id="the last of few"),
        pytest.param(192, 1024, (-118 + 240 - 94.37184 + 0.32) / 0.9, id="the middle"),
        pytest.param(
            384, 1024, (41.63547264 + 4.209777054806409 + 0.32) / 0.9, id="linear from 384"
        ),
        pytest.param(
            1000,
            1025,
            (108.42571 + 4.209777054806409 + (0.19065 + 0.159) / 2) / 0.9,
            id="attention by context, halved to 1024 tokens",
        ),
        pytest.param(
            2000,
            2000,
            (216.85142 + 4.209777054806409 + (0.372 + 0.159) + (2.26 + 3.5 + 8.76)) / 0.9,
            id="quadratic above a million pairs",
        ),
    ],
)
def test_the_time_of_a_prefill(tokens: int, context: int, milliseconds: float) -> None:
    assert prefill_s(tokens, context) == pytest.approx(milliseconds / 1e3)


def test_a_long_cached_part_is_exploited_and_a_short_one_is_not() -> None:
    router = Preble(fleet(3), Random(0))
    head = list(range(400))
    assert router.route(request(0, head), 0.0) == 0, "all cost nothing: the first"
    # 400 cached and 399 new: where the head is, though it costs and the others do not.
    assert router.route(request(1, head + list(range(1000, 1399))), 0.0) == 0
    # 400 and 400: explore.
    assert router.route(request(2, head + list(range(2000, 2400))), 0.0) == 1


def test_the_costs_of_a_replica_by_hand() -> None:
    router = Preble(fleet(2), Random(0))
    head = list(range(400))
    router.route(request(0, head), 0.0)
    # All of it missed, one replica has it; one in flight, an answer of 45 tokens of 0.15 s.
    assert router.costs() == pytest.approx([prefill_s(400, 400) + 45 * 0.15, 0.0])
    router.route(request(1, [*head, *range(1000, 1100)]), 0.0)
    # The head is important for both: 2 requests, 400 of 900 tokens hit, 2 in flight.
    miss_rate = 1 - 400 / 900
    expected = miss_rate * 2 * prefill_s(400, 400) + 2 * 45 * 0.15
    assert router.costs() == pytest.approx([expected, 0.0])
    for number in (0, 1):
        ended = request(number, head if number == 0 else [*head, *range(1000, 1100)], None, 11)
        router.first_token(ended, 0, 1.0)
        router.done(ended, 0, 0, 2.0)
    # Nothing in flight: the prefill is left.
    assert router.costs() == pytest.approx([miss_rate * 2 * prefill_s(400, 400), 0.0])
    # The next one explores nothing: 400 of its 401 tokens lie above. Answers of 11 tokens are known
    # now, and times of 0.15, 0.1 and 0.1 s a token.
    router.route(request(2, [*head, 7]), 2.0)
    miss_rate = 1 - 800 / 1301
    expected = miss_rate * 3 * prefill_s(400, 400) + 11 * 0.1
    assert router.costs() == pytest.approx([expected, 0.0])


def test_a_node_of_two_replicas_costs_each_half_its_prefill() -> None:
    router = Preble(fleet(2), Random(0))
    router.route(request(0, range(400)), 0.0)
    ((node, _),) = router.window.weights.items()
    router._parts[node].allocated = {0, 1}
    half = prefill_s(400, 400) / 2
    assert router.costs() == pytest.approx([half + 45 * 0.15, half])


def test_a_prompt_sent_again_whole_counts_as_uncached() -> None:
    router = Preble(fleet(2), Random(0))
    assert router.route(request(0, range(400)), 0.0) == 0
    assert router.route(request(1, range(400)), 0.0) == 1


def test_a_split_gives_the_window_to_the_part_that_is_important() -> None:
    router = Preble(fleet(2), Random(0))
    router.route(request(0, range(400)), 0.0)
    router.route(request(1, [*range(300), *range(1000, 1100)]), 0.0)
    # 300 | 100 and 300 | 100: the upper 300 are what both weigh.
    ((node, weight),) = router.window.weights.items()
    assert (node.tokens, weight.requests, weight.prompt_tokens) == (300, 2, 800)
    assert weight.hit_tokens == 300
    router.check()


def test_what_left_the_window_is_allocated_to_nobody() -> None:
    router = Preble(fleet(2), Random(0))
    first = request(0, range(400))
    router.route(first, 0.0)
    router.first_token(first, 0, 1.0)
    router.done(first, 0, 0, 2.0)
    other = request(1, range(1000, 1400))
    assert router.route(other, 180.0) == 1, "within three minutes it still costs"
    router.route(request(2, range(5000, 5400)), 180.1)
    # Exploits what nobody has: then the least cost of all, which is not where it was by force.
    costs = router.costs()
    assert len(router.window.weights) == 2
    grown = request(3, [*range(400), 7])
    assert router.route(grown, 180.2) == costs.index(min(costs))


def test_window_weights_are_sums_of_the_last_three_minutes() -> None:
    left: list[Node] = []
    window = Window(left.append)
    one, other = Node(b"", None), Node(b"", None)
    window.add(one, 100, 40, 0.0)
    window.add(one, 100, 60, 10.0)
    window.add(other, 50, 0, 180.0)
    assert window.weights[one].requests == 2
    assert window.weights[one].miss_rate() == 0.5
    window.add(other, 50, 0, 185.0)
    assert (window.weights[one].prompt_tokens, window.weights[one].hit_tokens) == (100, 60)
    window.add(other, 50, 0, 191.0)
    assert left == [one]
    assert list(window.weights) == [other]


@pytest.mark.parametrize(
    ("times", "overloaded"),
    [
        pytest.param([(0.0, 1.0), (100.0, 2.0)], True, id="doubled"),
        pytest.param([(0.0, 1.0), (100.0, 1.9)], False, id="not quite"),
        pytest.param([(95.0, 1.0), (100.0, 5.0)], False, id="no first half to compare with"),
        pytest.param([(0.0, 1.0), (5.0, 9.0)], False, id="no second half"),
    ],
)
def test_overload_is_times_to_first_token_that_double(
    times: list[tuple[float, float]], overloaded: bool
) -> None:
    detector, node = OverloadDetector(), Node(b"", None)
    for at, ttft_s in times:
        detector.add(node, 0, ttft_s, at)
    assert detector.overloaded(node, 0, 120.0) is overloaded
    assert not detector.overloaded(node, 1, 120.0)


def on_one_replica(router: Preble, heads: list[list[int]], requests: int) -> list[int]:
    """Where requests that go on from `heads` in turn go, after the heads went to replica 0."""
    for number, head in enumerate(heads):
        first = request(number, head)
        assert router.route(first, 0.0) == 0
        router.first_token(first, 0, 0.0)
        router.done(first, 0, 0, 0.0)
        # The window empty again, nothing costs: the next head goes to the first replica too.
        router.window = Window(lambda node: None)
    return [
        router.route(request(number, [*heads[number % len(heads)], number]), 0.0)
        for number in range(len(heads), requests)
    ]


def test_rebalancing_moves_the_cheapest_nodes_after_fifty_requests_a_replica() -> None:
    router = Preble(fleet(2), Random(0))
    heads = [list(range(first, first + 400)) for first in (0, 1000, 2000, 3000)]
    choices = on_one_replica(router, heads, 112)
    # The 100th request, the last of these 96, is routed before anything moves.
    assert choices[:96] == [0] * 96
    # Four nodes that cost about the same: two move, and each head has one home.
    assert sorted(choices[100:104]) == [0, 0, 1, 1]
    assert choices[100:104] == choices[104:108]
    router.check()


def test_rebalancing_replicates_a_single_node_only_if_it_is_overloaded() -> None:
    for overloaded in (False, True):
        router = Preble(fleet(2), Random(0))
        head = list(range(400))
        for number in range(100):
            # Times to the first token double after the window's half.
            at = 0.0 if number < 50 else 100.0
            ttft_s = 2.0 if overloaded and number >= 50 else 1.0
            one = request(number, [*head, number])
            assert router.route(one, at - ttft_s) == 0
            router.first_token(one, 0, at)
            if number < 99:
                router.done(one, 0, 0, at)
        assert router.route(request(200, [*head, 200]), 101.0) == (1 if overloaded else 0)
