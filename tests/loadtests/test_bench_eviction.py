"""The replay of evictions: never above the optimum, equal to a plain model, and a table of it."""

from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtests import bench_eviction
from loadtests.eviction_bench.replay import (
    Chain,
    blocks_for,
    chains,
    ideal_hits,
    optimal_hits,
    replay,
)
from loadtests.sim.workloads.registry import build
from loadtests.sim.workloads.workload import generate
from replica.core.eviction import LeastRecentlyUsed
from replica.core.evictions import EVICTIONS


def named(path: list[int]) -> Chain:
    names, name = [], 0
    for step in path:
        name = name * 4 + step + 1
        names.append(name)
    return Chain(names, len(names))


LOADS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(named), max_size=60)


@settings(max_examples=100, deadline=None)
@given(load=LOADS, blocks=st.integers(4, 12))
def test_no_eviction_beats_the_optimum_nor_that_an_infinite_cache(
    load: list[Chain], blocks: int
) -> None:
    best = optimal_hits(load, blocks)
    assert best <= ideal_hits(load)
    for make in EVICTIONS.values():
        assert replay(load, blocks, make(blocks)) <= best
        assert replay(load, 200, make(200)) == optimal_hits(load, 200) == ideal_hits(load)


@settings(max_examples=100, deadline=None)
@given(load=LOADS, blocks=st.integers(4, 12))
def test_least_recently_used_is_what_a_sorted_dictionary_does(
    load: list[Chain], blocks: int
) -> None:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for chain in load:
        found = 0
        while found < len(chain.names) and chain.names[found] in kept:
            found += 1
        hits += found
        for name in chain.names[:found]:
            del kept[name]
        while len(kept) + len(chain.names) > blocks:
            kept.popitem(last=False)
        kept.update(dict.fromkeys(reversed(chain.names)))
    assert replay(load, blocks, LeastRecentlyUsed(blocks)) == hits


@pytest.mark.parametrize("name", ["system-prompts", "trap-first-block", "retrieval"])
def test_by_reuse_a_tight_cache_finds_a_tenth_more_than_the_least_recently_used(name: str) -> None:
    load = chains(generate(build(name), seed=2, requests_per_s=10, count=1200), 64)
    blocks = blocks_for(load, 0.5 * ideal_hits(load), LeastRecentlyUsed)
    lru, reuse = (replay(load, blocks, EVICTIONS[kind](blocks)) for kind in ("lru", "reuse"))
    assert 0.5 * ideal_hits(load) <= lru < 0.6 * ideal_hits(load)
    assert reuse > 1.1 * lru


def test_the_table_has_a_row_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_eviction.main(["few-shot", "--requests", "200", "--cache-blocks", "300"]) == 0
    assert bench_eviction.main(["few-shot", "--requests", "200"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| few-shot | 300 |")
    assert len(lines) >= 3 + 2 + 2
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
