"""Reuse-aware eviction: chains stay whole, what is reused outlives a scan, memory is bounded."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica.core.block_pool import BlockPool
from replica.core.eviction import Eviction, LeastRecentlyUsed
from replica.core.evictions import EVICTIONS
from replica.core.reuse_aware import ReuseAware
from replica.core.reuse_rates import CLASSES, ReuseRates, class_of
from tests.replica.core.driving import make_scheduler, request, run_all
from tests.replica.core.test_block_pool import chain, fill
from tests.support.fake_runner import FakeRunner


class Cache:
    """Chains of names through an eviction, as the pool and its sequences would."""

    def __init__(self, blocks: int, eviction: Eviction) -> None:
        self.eviction = eviction
        self.empty = list(range(blocks))
        self.names: dict[int, int] = {}  # name → block
        self.parents: dict[int, int | None] = {}
        self.evicted: list[int] = []
        self.held: list[list[int]] = []

    def take(self, names: list[int], again: bool = False) -> int:
        """Holds a chain; how many of its blocks were found."""
        found = 0
        while found < len(names) and names[found] in self.names:
            found += 1
        for name in names[:found]:
            block = self.names[name]
            if not again:
                self.eviction.reused(block)
            if not any(name in held for held in self.held):
                self.eviction.remove(block)
        self.held.append(names)
        for index in range(found, len(names)):
            block = self.empty.pop() if self.empty else self.evict()
            parent = names[index - 1] if index else None
            self.names[names[index]] = block
            self.parents[names[index]] = parent
            above = None if parent is None else self.names[parent]
            self.eviction.stored(block, names[index], above, again)
        return found

    def let_go(self, index: int = 0) -> None:
        names = self.held.pop(index)
        for name in reversed(names):
            if not any(name in held for held in self.held):
                self.eviction.add(self.names[name])

    def serve(self, names: list[int]) -> int:
        found = self.take(names)
        self.let_go()
        return found

    def evict(self) -> int:
        block = self.eviction.pop()
        (name,) = (name for name, one in self.names.items() if one == block)
        assert not any(name in held for held in self.held), "a block was evicted that is held"
        del self.names[name], self.parents[name]
        self.evicted.append(name)
        assert name not in self.parents.values(), "a block was evicted before one below it"
        return block

    def check(self) -> None:
        self.eviction.check()
        candidates = list(self.eviction)
        free = {one for n, one in self.names.items() if not any(n in held for held in self.held)}
        assert len(candidates) == len(self.eviction) == len(set(candidates))
        assert set(candidates) == free


# Chains in a tree of names: the name of a path is the path. Up to 5 blocks, 3 children each.
PATHS = st.lists(st.integers(0, 2), min_size=1, max_size=5)


def named(path: list[int]) -> list[int]:
    names, name = [], 0
    for step in path:
        name = name * 4 + step + 1
        names.append(name)
    return names


@pytest.mark.parametrize("name", list(EVICTIONS))
@settings(max_examples=60, deadline=None)
@given(
    blocks=st.integers(11, 30),
    lives=st.lists(st.tuples(PATHS, st.booleans(), st.integers(0, 3)), max_size=150),
)
def test_any_life_keeps_chains_whole_and_every_free_block_a_candidate(
    name: str, blocks: int, lives: list[tuple[list[int], bool, int]]
) -> None:
    cache = Cache(blocks, EVICTIONS[name](blocks))
    for path, again, kept in lives:
        while len(cache.held) > min(kept, 1):
            cache.let_go()
        cache.take(named(path), again)
        cache.check()


@pytest.mark.parametrize("name", list(EVICTIONS))
def test_evictions_stay_right_over_many_learnings(name: str) -> None:
    cache = Cache(24, EVICTIONS[name](24))
    state = 1
    for _ in range(2000):
        state = state * 1103515245 % 2**31
        cache.serve(named([state // 7 % 3, state // 31 % 3, state // 101 % 3, state // 997 % 3]))
    cache.check()
    assert len(cache.evicted) > 500, "it was never full"


def scanned(eviction: Eviction) -> int:
    """Blocks of a chain of 4 found after it was used now and then, among prompts seen once.

    The cache holds 64 blocks; between two uses of the chain come 80 others.
    """
    cache = Cache(64, eviction)
    other = 1000
    found = 0
    for _ in range(60):
        found = cache.serve([1, 2, 3, 4])
        for _ in range(20):
            cache.serve([other, other + 1, other + 2, other + 3])
            other += 4
    cache.check()
    return found


def test_a_reused_chain_outlives_a_scan_of_one_shot_prompts() -> None:
    assert scanned(ReuseAware(64)) == 4
    assert scanned(LeastRecentlyUsed(64)) == 0


def reuses(cache: Cache, eviction: ReuseAware, names: list[int]) -> list[int]:
    return [eviction._reuses[cache.names[name]] for name in names]


def test_coming_back_after_a_preemption_is_no_reuse_cached_still_or_not() -> None:
    eviction = ReuseAware(4)
    cache = Cache(4, eviction)
    cache.serve([1, 2])
    cache.take([1, 2], again=True)
    cache.let_go()
    assert reuses(cache, eviction, [1, 2]) == [0, 0]
    cache.serve([3, 4, 5])  # evicts 2
    assert cache.evicted == [2]
    cache.take([1, 2], again=True)
    assert reuses(cache, eviction, [1, 2]) == [0, 0]
    cache.let_go()
    assert cache.serve([1, 2]) == 2
    assert reuses(cache, eviction, [1, 2]) == [1, 1]


def test_a_block_that_comes_back_after_its_eviction_was_reused() -> None:
    eviction = ReuseAware(3)
    cache = Cache(3, eviction)
    cache.serve([1, 2])
    cache.serve([1, 2])
    cache.serve([3, 4, 5])
    assert cache.serve([1, 2]) == 0
    assert reuses(cache, eviction, [1, 2]) == [2, 2]


def test_no_block_counts_more_reuses_than_the_one_above_it() -> None:
    eviction = ReuseAware(4)
    eviction.stored(0, 10, None, False)
    eviction.stored(1, 11, 0, False)
    eviction.reused(1)  # by one who had block 0 before
    assert eviction._reuses[:2] == [0, 0]
    eviction.reused(0)
    eviction.reused(1)
    assert eviction._reuses[:2] == [1, 1]


def test_ghosts_are_bounded_by_the_cache() -> None:
    eviction = ReuseAware(4)
    cache = Cache(4, eviction)
    for name in range(1, 1000):
        cache.serve([name])
    eviction.check()
    assert len(eviction._ghost_places) == 16
    assert len(eviction._ghosts) == 16


def test_a_preempted_sequence_gives_the_pool_no_reuse() -> None:
    counts: list[int] = []

    class Spy(ReuseAware):
        def reused(self, block: int) -> None:
            counts.append(block)
            super().reused(block)

    scheduler = make_scheduler(blocks=10, running=4)
    scheduler.pool = BlockPool(10, scheduler.pool.block_size, Spy(10))
    prompts = [[number] * 12 for number in range(1, 4)]
    runner = FakeRunner(scheduler.pool.block_size)
    crowd = [request(number, prompt, max_tokens=12) for number, prompt in enumerate(prompts)]
    run_all(scheduler, crowd, runner)
    assert scheduler.counters.preemptions > 0
    assert not counts
    for number in (8, 9):
        run_all(scheduler, [request(number, prompts[0], max_tokens=1)], runner)
    assert counts, "another request with the same prompt reuses it"


@pytest.mark.parametrize("name", list(EVICTIONS))
def test_a_pool_under_each_eviction_gives_up_whole_chains(name: str) -> None:
    pool = BlockPool(6, 2, EVICTIONS[name](6))
    first, second = chain([1, 1], [2, 2], [3, 3]), chain([4, 4], [5, 5], [6, 6])
    for keys in (first, second, first):
        found = [block for key in keys if (block := pool.find(key)) is not None]
        pool.acquire(found)
        pool.release(found or fill(pool, keys))
        pool.check()
    pool.release(pool.allocate(3))
    pool.check()
    assert [pool.find(key) is not None for key in first + second] == [True] * 3 + [False] * 3


class TestRates:
    def test_classes_are_never_reused_once_and_then_doublings(self) -> None:
        found = [class_of(reuses) for reuses in (0, 1, 2, 3, 4, 7, 8, 1000)]
        assert found == [0, 1, 2, 2, 3, 3, CLASSES - 1, CLASSES - 1]

    def test_before_anything_is_known_the_older_is_worth_less(self) -> None:
        rates = ReuseRates(1000)
        worths = [rates.worth(0, age) for age in (0, 20, 100, 500, 2000, 7000)]
        assert worths == sorted(worths, reverse=True)
        assert len(set(worths)) == len(worths)

    def test_what_comes_back_is_worth_more_than_what_does_not(self) -> None:
        rates = ReuseRates(1000)
        for _ in range(100):
            rates.used(1, 300)
            rates.given_up(0, 4000)
        rates.learn([], 250)
        rates.check()
        assert rates.worth(1, 100) > 10 * rates.worth(0, 100)

    def test_waiting_for_a_use_that_is_sure_to_come_is_worth_more_the_nearer_it_is(self) -> None:
        rates = ReuseRates(1000)
        for _ in range(1000):
            rates.used(0, 1000)
        rates.learn([], 250)
        assert rates.worth(0, 10) < rates.worth(0, 500) < rates.worth(0, 900)
        # Each takes 1,000 blocks · time from the beginning, in a bin that ends at 1,000 or before.
        assert rates.worth(0, 0) == pytest.approx(1 / 1000, rel=0.3)

    def test_waits_that_have_not_ended_count_against_their_class(self) -> None:
        def worth(waiting: list[tuple[int, int, int]]) -> float:
            rates = ReuseRates(1000)
            rates.used(0, 100)
            rates.learn(waiting, 250)
            return rates.worth(0, 50)

        assert worth([(0, 200, 1000)]) < worth([]) / 10

    def test_the_past_fades(self) -> None:
        rates = ReuseRates(1000)
        for _ in range(1000):
            rates.used(1, 300)
        rates.learn([], 250)
        before = rates.worth(1, 100)
        for _ in range(60):
            for _ in range(20):
                rates.given_up(1, 4000)
            rates.learn([], 250)
        assert rates.worth(1, 100) < before / 10
