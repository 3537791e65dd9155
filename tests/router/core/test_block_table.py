"""The table of blocks says what a dict would say, at any size, whatever the hashes look like."""

import random

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.core.block_table import BlockTable

# Few values, so that they meet; some lie in buckets together, some are also places.
HASHES = st.one_of(
    st.integers(0, 40), st.integers(0, 2**64 - 1), st.integers(0, 20).map(lambda n: n << 56)
)


class TableAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = BlockTable()
        self.truth: dict[int, int] = {}

    @rule(hashes=st.lists(HASHES, unique=True, max_size=60), first=st.integers(0, 2**40))
    def add(self, hashes: list[int], first: int) -> None:
        known = [hash for hash in hashes if hash in self.truth]
        assert self.table.add(hashes, first) == (known[0] if known else None)
        if not known:
            self.truth.update({hash: first + at for at, hash in enumerate(hashes)})

    @rule(pick=st.integers(0, 1000), count=st.integers(1, 30))
    def remove(self, pick: int, count: int) -> None:
        some = list(self.truth)[pick % (len(self.truth) or 1) :][:count]
        self.table.remove(some)
        for hash in some:
            del self.truth[hash]

    @rule(hash=HASHES)
    def ask(self, hash: int) -> None:
        assert self.table.place(hash) == self.truth.get(hash)

    @invariant()
    def it_is_whole(self) -> None:
        self.table.check()
        assert len(self.table) == len(self.truth)
        assert dict(self.table) == self.truth
        for hash, place in self.truth.items():
            assert self.table.place(hash) == place


TestTableAgainstDict = TableAgainstDict.TestCase


def test_a_hash_given_twice_is_not_new_the_second_time() -> None:
    table = BlockTable()
    assert table.add([1, 2, 1], 0) == 1
    assert len(table) == 0
    table.check()


@pytest.mark.parametrize("step", [1, 2**32, 2**63 // 5000])
def test_a_table_of_thousands_is_as_right_as_a_small_one(step: int) -> None:
    table, rng = BlockTable(), random.Random(0)
    hashes = [number * step for number in range(5000)]
    table.add(hashes, 7)
    table.check()
    gone = set(rng.sample(hashes, 2000))
    table.remove(gone)
    for at, hash in enumerate(hashes):
        assert table.place(hash) == (None if hash in gone else 7 + at)


@pytest.mark.parametrize("reserved", [1, 15, 16, 1000, 5000])
def test_a_table_laid_out_beforehand_grows_on_when_it_is_full(reserved: int) -> None:
    table = BlockTable()
    table.reserve(reserved)
    table.check()
    table.add(range(2000), 5)
    table.check()
    assert [table.place(hash) for hash in range(2000)] == list(range(5, 2005))


def test_a_table_is_freed_some_buckets_at_a_time() -> None:
    table = BlockTable()
    table.add(range(1000), 0)
    rounds = 1
    while table.shrink(8):
        rounds += 1
    assert rounds == 8
