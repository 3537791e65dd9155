"""Which cached block to give up first: a small interface, and least-recently-used behind it.

Only blocks that no sequence holds are candidates. A chain must leave tail first: a prefix is only
useful whole, so a block must never be evicted before the blocks below it. Whoever implements
`Eviction` keeps that order, given that blocks are added tail first and that a block is taken out
(`remove`) only together with all blocks above it.
"""

from collections.abc import Iterator
from typing import Protocol


class Eviction(Protocol):
    """The order in which free but cached blocks are given up."""

    def stored(self, block: int, name: int, parent: int | None, again: bool) -> None:
        """`block`, which a sequence holds, has been filled.

        Args:
            name: Its content's: the same whenever that content is stored.
            parent: The block above it, which is cached; None: it begins a chain.
            again: The sequence had this content before and lost it: nobody new asked for it.
        """
        ...

    def reused(self, block: int) -> None:
        """A further sequence takes `block`, a candidate or not; the blocks above it first."""
        ...

    def add(self, block: int) -> None:
        """`block` became a candidate: its last sequence let go of it."""
        ...

    def remove(self, block: int) -> None:
        """`block` is a candidate no longer: a sequence took it, or its content was dropped."""
        ...

    def pop(self) -> int:
        """Takes out the block to evict now. There must be one."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]:
        """The candidates."""
        ...

    def check(self) -> None: ...


class LeastRecentlyUsed:
    """The block let go of longest ago goes first; every operation is O(1).

    A doubly linked list threaded through two arrays, closed by an end marker at index `blocks`:

        end ──next──▶ oldest ──▶ … ──▶ newest ──next──▶ end
        pop takes ────┘                   └──── add puts here

    `None` in `_next` says that the block is not in the list.
    """

    def __init__(self, blocks: int) -> None:
        self._end = blocks
        self._next: list[int | None] = [None] * blocks + [blocks]
        self._previous: list[int | None] = [None] * blocks + [blocks]
        self._length = 0

    def stored(self, block: int, name: int, parent: int | None, again: bool) -> None:
        """What a block holds, and for whom, does not matter."""

    def reused(self, block: int) -> None:
        """Only when it was let go of matters."""

    def add(self, block: int) -> None:
        assert self._next[block] is None, f"block {block} is in the list already"
        last = self._previous[self._end]
        assert last is not None
        self._next[last] = block
        self._previous[block] = last
        self._next[block] = self._end
        self._previous[self._end] = block
        self._length += 1

    def remove(self, block: int) -> None:
        before, after = self._previous[block], self._next[block]
        assert before is not None, f"block {block} is not in the list"
        assert after is not None, f"block {block} is not in the list"
        self._next[before] = after
        self._previous[after] = before
        self._next[block] = self._previous[block] = None
        self._length -= 1

    def pop(self) -> int:
        first = self.first()
        assert first is not None, "nothing to evict"
        self.remove(first)
        return first

    def first(self) -> int | None:
        """The block that `pop` would take; None: there is none."""
        first = self._next[self._end]
        return None if first == self._end else first

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        """The candidates, first to go first."""
        block = self._next[self._end]
        while block != self._end:
            assert block is not None
            yield block
            block = self._next[block]

    def check(self) -> None:
        """Both directions hold the same blocks, each once, and the length is right."""
        forward = list(self)
        backward = []
        block = self._previous[self._end]
        while block != self._end:
            assert block is not None
            backward.append(block)
            block = self._previous[block]
        assert forward == backward[::-1]
        assert len(set(forward)) == len(forward) == self._length
        assert sum(after is not None for after in self._next) == self._length + 1
