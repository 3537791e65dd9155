"""What peers learn, and forget: trees of what was routed, tables of blocks, KV events, counts."""

from array import array
from random import Random

import pytest

from loadtests.sim.peers import sglang
from loadtests.sim.peers.approximate_tree import ApproximateTree
from loadtests.sim.peers.block_names import chunks, token_bytes
from loadtests.sim.peers.block_table import BlocksByReplica, SharedBlocks
from loadtests.sim.peers.event_tree import EventTree
from loadtests.sim.peers.hash_ring import HashRing
from loadtests.sim.peers.in_flight import InFlight
from loadtests.sim.peers.llmd import LlmdWeighted
from loadtests.sim.peers.ray_serve import RayPrefixAware
from loadtests.sim.peers.request_rate import RequestRates
from loadtests.sim.peers.sglang import CacheAware, SmgCacheAware
from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from tests.loadtests.sim.peer_setup import fleet, names, request, stored


def data(*tokens: int) -> bytes:
    return token_bytes(tokens)


def shared(one: list[int], other: list[int]) -> int:
    """The length of their common prefix, token by token."""
    length = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        length += 1
    return length


def test_a_block_is_named_by_itself_and_all_before_it() -> None:
    assert names([1, 2, 3, 4, 5, 6, 7, 8, 9]) == names([1, 2, 3, 4, 5, 6, 7, 8])
    assert names([1, 2, 3, 4, 5, 6, 7, 8])[0] == names([1, 2, 3, 4])[0]
    assert names([0, 2, 3, 4, 5, 6, 7, 8])[1] != names([1, 2, 3, 4, 5, 6, 7, 8])[1]
    assert list(chunks([1, 2, 3, 4, 5], 4))[:1] == names([1, 2, 3, 4])
    assert len(list(chunks([1, 2, 3, 4, 5], 4))) == 2
    assert names(array("I", [1, 2, 3, 4])) == names(array("Q", [1, 2, 3, 4])), "any array will do"


def test_the_approximate_tree_matches_to_the_token() -> None:
    """Against a list of all that was routed, with few distinct tokens so that much is shared."""
    rng = Random(5)
    tree = ApproximateTree(3)
    routed: list[tuple[list[int], int]] = []
    for _ in range(400):
        prompt = [rng.randrange(3) for _ in range(rng.randrange(1, 12))]
        longest = max((shared(prompt, other) for other, _ in routed), default=0)
        match = tree.match(token_bytes(prompt))
        assert match.tokens == longest
        if longest:
            assert set(match.replicas) == {
                replica for other, replica in routed if shared(prompt, other) == longest
            }
            last = [replica for other, replica in routed if shared(prompt, other) == longest]
            assert match.replicas[0] == last[-1], "who used it last comes first"
        replica = rng.randrange(3)
        tree.insert(token_bytes(prompt), replica)
        routed.append((prompt, replica))
        tree.check()


def test_the_approximate_tree_loses_the_least_recently_used_leaves_of_who_has_too_much() -> None:
    tree = ApproximateTree(2, size_max=6, interval_s=60.0)
    tree.insert(data(1, 2, 3, 4), 0)
    tree.insert(data(1, 2, 5), 0)
    tree.insert(data(8, 9), 0)
    tree.insert(data(1, 2, 3, 4), 1)
    tree.insert(data(1, 2, 7), 0)
    assert tree.sizes == [8, 4]
    tree.evict(59.9)
    assert tree.sizes == [8, 4], "it is not time yet"
    tree.evict(60.0)
    # Oldest leaf first: 3 4 (two tokens), then it is enough; 1's stays.
    assert tree.sizes == [6, 4]
    assert tree.match(data(1, 2, 3, 4)).replicas == [1]
    assert tree.match(data(1, 2, 5)).tokens == 3
    assert 0 in tree.match(data(8, 9)).replicas
    tree.insert(data(6), 0)
    tree.evict(119.0)
    assert tree.sizes[0] == 7
    tree.evict(121.0)
    assert tree.sizes[0] == 6
    assert tree.match(data(1, 2, 5)).tokens == 2, "a node that is nobody's is gone"
    tree.check()


def test_the_approximate_trees_parents_go_after_their_children() -> None:
    tree = ApproximateTree(1, size_max=1, interval_s=1.0)
    tree.insert(data(1, 2, 3), 0)
    tree.insert(data(1, 2, 4), 0)
    tree.insert(data(5), 0)
    tree.evict(1.0)
    assert tree.sizes == [1]
    assert tree.match(data(1, 2)).tokens == 0
    assert tree.match(data(5)).replicas == [0]
    tree.check()


def test_forgetting_a_replica_leaves_the_others() -> None:
    tree = ApproximateTree(2)
    tree.insert(data(1, 2, 3), 0)
    tree.insert(data(1, 2, 4), 1)
    tree.forget(0)
    assert tree.sizes == [0, 3]
    assert tree.match(data(1, 2, 3)).replicas == [1]
    tree.check()


@pytest.mark.parametrize(
    ("policy", "size_max"),
    [
        pytest.param(CacheAware, 400, id="characters, four a token"),
        pytest.param(SmgCacheAware, 100, id="tokens"),
    ],
)
def test_cache_awares_tree_keeps_its_size_once_a_minute(
    policy: type[CacheAware], size_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sglang, "MAX_TREE_SIZE", size_max)
    router = policy(fleet(1), Random(0))
    for number in range(3):
        router.route(request(number, range(number * 1000, number * 1000 + 50)), 59.0)
    assert router.tree.sizes == [150]
    router.route(request(3, [7]), 60.0)
    assert router.tree.sizes == [101]


def test_only_ray_forgets_what_a_restarted_replica_was_sent() -> None:
    prompt = list(range(100))
    ray, gateway = RayPrefixAware(fleet(2), Random(0)), CacheAware(fleet(2), Random(0))
    home = ray.route(request(0, prompt), 0.0)
    ray.lost(home, 1.0)
    assert ray.tree.sizes == [0, 0]
    home = gateway.route(request(0, prompt), 0.0)
    gateway.lost(home, 1.0)
    assert gateway.tree.sizes[home] == 100


def test_llmds_lists_lose_heads_first_and_count_what_is_left() -> None:
    blocks = BlocksByReplica([3, 10])
    first, second = names(list(range(12))), names(list(range(100, 108)))
    blocks.insert(first, 0)
    assert blocks.counts(first) == [3, 0]
    blocks.insert(second, 0)
    # Two of three are gone, the head among them: without it nothing is looked up any more.
    assert blocks.counts(first) == [0, 0]
    assert blocks.counts(second) == [2, 0]
    # With another's head the walk goes on, and counts a tail that its owner could not use.
    blocks.insert(first, 1)
    assert blocks.counts(first) == [1, 3]
    blocks.check()


def test_llmds_lists_keep_what_was_used_again() -> None:
    blocks = BlocksByReplica([3])
    first, second, third = names(range(8)), names(range(100, 104)), names(range(200, 204))
    for block_names in (first, second, first, third):
        blocks.insert(block_names, 0)
    assert [blocks.counts(one) for one in (first, second, third)] == [[2], [0], [1]]


def test_llmds_lists_are_as_long_as_caches_have_blocks() -> None:
    router = LlmdWeighted(fleet(1, block_size=16, capacity_tokens=32), Random(0))
    prompts = [list(range(first, first + 64)) for first in (0, 1000, 2000)]
    for number, prompt in enumerate(prompts):
        router.route(request(number, prompt), 0.0)
    # Two blocks of 16 tokens: two entries, of 64 tokens each.
    counts = [router.blocks.counts(names(prompt, 64)) for prompt in prompts]
    assert counts == [[0], [1], [1]]


def test_a_shared_table_has_one_capacity_and_sweeps_out_the_unused() -> None:
    table = SharedBlocks(capacity=4, unused_max_s=10.0, sweep_s=1.0)
    first, second = names(list(range(12))), names(list(range(100, 108)))
    table.insert(first, 0, 0.0)
    assert table.match(first, 0b11) == ([3, 0], 0b01)
    table.insert(first[:1], 1, 5.0)
    assert table.match(first, 0b11) == ([3, 1], 0b01)
    assert table.match(first, 0b10) == ([0, 1], 0b10), "of those asked about"
    assert table.match(second, 0b11) == ([0, 0], 0b11), "none has any"
    table.sweep(10.5)
    assert table.match(first, 0b11) == ([1, 1], 0b11), "the head was used since, its tail not"
    table.insert(second, 0, 11.0)
    table.insert(first[1:], 0, 11.0)
    assert len(table) == 4
    assert table.match(first, 0b01)[0] == [0], "the head was used least recently"


def test_a_sweep_waits_for_its_time_and_spares_what_was_used() -> None:
    table = SharedBlocks(unused_max_s=10.0, sweep_s=1.0)
    table.insert([1], 0, 0.0)
    table.sweep(1.0)
    table.insert([2], 0, 9.0)
    table.sweep(10.0)
    assert len(table) == 2, "unused for exactly as long as it may be"
    table.sweep(10.9)
    assert len(table) == 2, "within a second of the last sweep"
    table.sweep(11.0)
    assert len(table) == 1


@pytest.fixture
def tree() -> EventTree:
    return EventTree(fleet(3))


def test_events_say_who_holds_how_much(tree: EventTree) -> None:
    prompt = list(range(16))
    tree.apply(0, [stored(prompt, 10)])
    tree.apply(1, [stored(prompt[:4], 10), stored(prompt[4:8], 70, parent=10)])
    tree.apply(2, [stored([9, 9, 9, 9], 1)])
    assert tree.match(prompt) == [4, 2, 0]
    assert tree.match(prompt[:7]) == [1, 1, 0], "full blocks only"
    assert tree.match([*prompt[:8], 0, 0, 0, 0]) == [2, 2, 0]
    assert [tree.size(one) for one in range(3)] == [4, 2, 1]
    tree.check()


def test_removals_and_clearing(tree: EventTree) -> None:
    prompt = list(range(16))
    for replica in (0, 1):
        tree.apply(replica, [stored(prompt, 10)])
    tree.apply(0, [BlockRemoved(block_hashes=[12])])
    assert tree.match(prompt) == [2, 4, 0], "a match stops at the hole"
    tree.apply(0, [stored(prompt[8:12], 50, parent=11)])
    assert tree.match(prompt) == [4, 4, 0], "and goes on when it is filled"
    tree.apply(1, [AllBlocksCleared()])
    assert tree.match(prompt) == [4, 0, 0]
    tree.clear(0)
    assert tree.match(prompt) == [0, 0, 0]
    tree.apply(0, [BlockRemoved(block_hashes=[12, 999])])
    assert [tree.size(one) for one in range(3)] == [0, 0, 0]
    tree.check()


def test_what_lies_elsewhere_or_below_nothing_known_does_not_count(tree: EventTree) -> None:
    prompt = list(range(16))
    tree.apply(0, [stored(prompt[4:8], 11, parent=10)])
    assert tree.orphans == 1
    slow = BlockStored(
        block_hashes=[10],
        parent_block_hash=None,
        token_ids=prompt[:4],
        block_size=4,
        medium="CPU",
    )
    by_hash_alone = BlockStored(
        block_hashes=[10], parent_block_hash=None, token_ids=[], block_size=0
    )
    tree.apply(1, [slow, by_hash_alone])
    assert tree.match(prompt) == [0, 0, 0]
    tree.apply(2, [stored(prompt, 10), BlockRemoved(block_hashes=[10], medium="CPU")])
    assert tree.match(prompt) == [0, 0, 4], "it has left the slower medium only"
    tree.check()


def test_the_oldest_holder_of_a_prompts_first_block(tree: EventTree) -> None:
    prompt = list(range(8))
    assert tree.first_holder(prompt) is None
    tree.apply(2, [stored(prompt, 10)])
    tree.apply(0, [stored(prompt, 10)])
    assert tree.first_holder(prompt) == 2
    tree.apply(2, [BlockRemoved(block_hashes=[10])])
    assert tree.first_holder(prompt) == 0
    tree.clear(0)
    assert tree.first_holder(prompt) is None
    tree.check()


def test_an_event_tree_takes_one_block_size() -> None:
    with pytest.raises(ValueError, match=r"one block size for all replicas, not \[4, 16\]"):
        EventTree([*fleet(1), *fleet(1, block_size=16)])


def test_counts_in_flight_return_to_nought() -> None:
    counts = InFlight(2)
    counts.add(1, 0, 100)
    counts.add(2, 0, 50)
    counts.add(3, 1, 7)
    assert (counts.requests, counts.tokens) == ([2, 1], [150, 7])
    counts.first_token(1)
    assert counts.prefill_tokens == [50, 7]
    assert counts.tokens == [150, 7]
    counts.done(1)
    assert (counts.requests, counts.tokens, counts.prefill_tokens) == ([1, 1], [50, 7], [50, 7])
    counts.check()
    assert counts.lost(0) == [2]
    counts.done(3)
    assert (counts.requests, counts.tokens, counts.prefill_tokens) == ([0, 0], [0, 0], [0, 0])
    counts.check()


def test_request_rates_forget_after_a_minute() -> None:
    rates = RequestRates(2)
    rates.add(0, 0.0)
    assert rates.lowest(0.0) == 1
    rates.add(1, 1.0)
    rates.add(1, 2.0)
    assert rates.lowest(2.0) == 0
    rates.add(0, 30.0)
    rates.add(0, 31.0)
    assert rates.lowest(31.0) == 1
    assert rates.lowest(61.5) == 1, "two against one: the others are a minute old"
    rates.add(1, 62.0)
    rates.add(1, 62.0)
    assert rates.lowest(62.0) == 0


def test_a_replica_that_never_had_a_request_comes_before_one_that_had_none_lately() -> None:
    rates = RequestRates(2)
    rates.add(0, 0.0)
    assert rates.lowest(100.0) == 1


def test_a_ring_moves_only_the_keys_of_who_is_gone() -> None:
    keys = [b"%d" % number for number in range(500)]
    whole, without = HashRing(["a", "b", "c", "d"]), HashRing(["a", "b", "c"])
    assert all(without.owner(key) == whole.owner(key) for key in keys if whole.owner(key) != 3)
    moved = [key for key in keys if whole.owner(key) == 3]
    assert 60 < len(moved) < 190
    assert all(list(whole.owners(key))[1] == without.owner(key) for key in moved)
