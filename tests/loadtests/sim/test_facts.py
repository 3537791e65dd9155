"""Facts: counted by hand on a few requests, and by a set of tuples on many."""

from array import array
from collections.abc import Sequence
from random import Random

import pytest

from loadtests.sim.facts import measure
from loadtests.sim.request import SimRequest


def request(number: int, prompt: Sequence[int], tenant: str = "") -> SimRequest:
    return SimRequest(
        number=number,
        arrival_s=10 + 2.0 * number,
        prompt=array("I", prompt),
        output_tokens=number + 1,
        tenant=tenant,
    )


def test_no_requests_have_no_facts_but_zeros():
    facts = measure([], block_tokens=4)
    assert (facts.requests, facts.duration_s, facts.ideal_hit_share) == (0, 0.0, 0.0)
    assert (facts.prompt_tokens_mean, facts.top_prefix_share) == (0.0, 0.0)


def test_whole_blocks_are_found_and_equal_tails_only_where_tails_count():
    requests = [
        request(0, [1, 2, 3, 4, 5, 6]),  # all new
        request(1, [1, 2, 3, 4, 5, 6], "b"),  # a block, and the tail 5 6
        request(2, [1, 2, 3, 4, 5, 6, 7, 8]),  # a block: 5 6 7 8 was never there
        request(3, [5, 6, 7, 8]),  # the same tokens elsewhere are another prefix
        request(4, [1, 2]),  # a tail that nothing ended with
    ]
    facts = measure(iter(requests), block_tokens=4)
    assert facts.requests == 5
    assert facts.tenants == 2
    assert facts.duration_s == 8.0
    assert facts.prompt_tokens == 26
    assert facts.prompt_tokens_max == 8
    assert facts.output_tokens_mean == 3.0
    assert facts.ideal_hit_share == pytest.approx(8 / 26)
    assert facts.ideal_hit_share_with_tails == pytest.approx(10 / 26)
    assert facts.top_prefix_share == pytest.approx(3 / 5)
    assert "5 requests in 8.0 s" in str(facts)


def test_shares_are_those_of_a_set_of_all_prefixes():
    rng = Random(5)
    requests = [
        request(n, [rng.randrange(2) for _ in range(rng.randint(1, 14))]) for n in range(400)
    ]
    for block_tokens in (1, 3, 4, 16):
        seen: set[tuple[int, ...]] = set()
        tokens = hits = 0
        for entry in requests:
            ends = range(block_tokens, len(entry.prompt) + 1, block_tokens)
            prefixes = [tuple(entry.prompt[:end]) for end in ends]
            hits += block_tokens * sum(prefix in seen for prefix in prefixes)
            tokens += len(entry.prompt)
            seen.update(prefixes)
        facts = measure(requests, block_tokens)
        assert facts.ideal_hit_share == pytest.approx(hits / tokens)


def test_blocks_of_nothing_are_refused():
    with pytest.raises(ValueError, match="block_tokens"):
        measure([], block_tokens=0)
