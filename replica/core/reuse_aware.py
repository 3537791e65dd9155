"""Eviction by reuse: goes first what is least likely to be used soon, by what was learned of such.

A queue for each class of blocks (`reuse_rates`: by how often they were reused), each in the order
in which they were let go of. The heads are compared, each by its class's rates at its age:

    class 0   oldest ─▶ … newest        reused never
    class 1   oldest ─▶ … newest        once
    …           └── the one of these that is worth least goes, unless it is beaten

A head is beaten by one of a lower class that is older: what was reused less and let go of earlier
goes earlier, whatever was learned. From this follows that chains go tail first: a block was reused
at least as often as any below it, and let go of later.

Names of evicted blocks are remembered (ghosts), four for each block of the cache: one that comes
back was reused, though the cache missed it, and goes on counting where it stood. Without that a
cache that is too small learns nothing: what is used again is gone by then. The idea is ARC's
(Megiddo & Modha 2003, FAST); that a tight cache needs longer ghosts than itself was measured
(docs/decisions/018).
"""

from collections.abc import Iterator
from typing import NamedTuple

from replica.core.eviction import LeastRecentlyUsed
from replica.core.reuse_rates import CLASSES, ReuseRates, class_of

_GHOSTS_A_BLOCK = 4
_LEARNINGS_A_TURNOVER = 4
_LEARN_EVERY_MIN = 256
# Waits that have not ended are looked at each time; of more, every second, third, …
_WAITS_LOOKED_AT = 512


class _Ghost(NamedTuple):
    """A block that was evicted, as it was then."""

    name: int
    reuses: int
    since: int


class _Run(NamedTuple):
    """Blocks that one comparison of the heads serves for: let go of together, of one class.

    Attributes:
        before: Of higher rank than this they would be beaten.
    """

    queue: LeastRecentlyUsed
    since: int
    before: int


class ReuseAware:
    """O(1) for each operation, amortised; memory is proportional to the cache's blocks."""

    def __init__(self, blocks: int) -> None:
        self._rates = ReuseRates(blocks)
        self._queues = [LeastRecentlyUsed(blocks) for _ in range(CLASSES)]
        # Of each block: what it holds; how often that was reused; the block above it; while it is a
        # candidate, since when, its rank among those let go of, and its queue.
        self._names = [0] * blocks
        self._reuses = [0] * blocks
        self._parents: list[int | None] = [None] * blocks
        self._since = [0] * blocks
        self._ranks = [0] * blocks
        self._classes: list[int | None] = [None] * blocks
        # A ring, the oldest ghost is overwritten; None: it came back.
        self._ghosts: list[_Ghost | None] = [None] * (_GHOSTS_A_BLOCK * blocks)
        self._ghost_places: dict[int, int] = {}
        self._next_ghost = 0
        self._stored = 0  # the clock
        self._added = 0
        self._run: _Run | None = None
        self._learn_every = max(_LEARN_EVERY_MIN, blocks // _LEARNINGS_A_TURNOVER)

    def stored(self, block: int, name: int, parent: int | None, again: bool) -> None:
        self._names[block] = name
        self._parents[block] = parent
        self._set_reuses(block, self._return_ghost(name, again))
        self._stored += 1
        if self._stored % self._learn_every == 0:
            self._rates.learn(self._waiting(), self._learn_every)
            self._run = None

    def reused(self, block: int) -> None:
        of_class = self._classes[block]
        if of_class is not None:
            self._rates.used(of_class, self._stored - self._since[block])
        self._set_reuses(block, self._reuses[block] + 1)

    def add(self, block: int) -> None:
        assert self._classes[block] is None, f"block {block} is a candidate already"
        of_class = class_of(self._reuses[block])
        self._classes[block] = of_class
        self._since[block] = self._stored
        self._ranks[block] = self._added
        self._added += 1
        self._queues[of_class].add(block)

    def remove(self, block: int) -> None:
        of_class = self._classes[block]
        assert of_class is not None, f"block {block} is no candidate"
        self._classes[block] = None
        self._queues[of_class].remove(block)

    def pop(self) -> int:
        chosen = self._go_on(self._run) if self._run is not None else None
        if chosen is None:
            chosen = self._choose()
        self.remove(chosen)
        self._leave_ghost(chosen)
        return chosen

    def _choose(self) -> int:
        """The head that is worth least of those that are not beaten."""
        chosen, least, oldest = None, 0.0, self._added
        for of_class, queue in enumerate(self._queues):
            head = queue.first()
            if head is None or self._ranks[head] > oldest:
                continue
            worth = self._rates.worth(of_class, self._stored - self._since[head])
            if chosen is None or worth < least:
                chosen, least = head, worth
                self._run = _Run(queue, self._since[head], oldest)
            oldest = self._ranks[head]
        assert chosen is not None, "nothing to evict"
        return chosen

    def _go_on(self, run: "_Run") -> int | None:
        """The next of what was let go of together, as long as nothing beats it.

        Meanwhile heads of lower classes can only have become younger.
        """
        head = run.queue.first()
        if head is None or self._since[head] != run.since or self._ranks[head] > run.before:
            return None
        return head

    def _set_reuses(self, block: int, reuses: int) -> None:
        """Never more than the block above it has, whatever was forgotten of that one."""
        parent = self._parents[block]
        self._reuses[block] = reuses if parent is None else min(reuses, self._reuses[parent])

    def _leave_ghost(self, block: int) -> None:
        place = self._next_ghost
        self._next_ghost = (place + 1) % len(self._ghosts)
        oldest = self._ghosts[place]
        if oldest is not None:
            del self._ghost_places[oldest.name]
            self._rates.given_up(class_of(oldest.reuses), self._stored - oldest.since)
        name = self._names[block]
        self._ghosts[place] = _Ghost(name, self._reuses[block], self._since[block])
        self._ghost_places[name] = place

    def _return_ghost(self, name: int, again: bool) -> int:
        """How often what is stored now was reused."""
        place = self._ghost_places.pop(name, None)
        if place is None:
            return 0
        ghost = self._ghosts[place]
        assert ghost is not None
        self._ghosts[place] = None
        if again:
            return ghost.reuses
        self._rates.used(class_of(ghost.reuses), self._stored - ghost.since)
        return ghost.reuses + 1

    def _waiting(self) -> Iterator[tuple[int, int, int]]:
        """Candidates and ghosts, or some of them: (class, age, for how many it stands)."""
        stride = -(-len(self._classes) // _WAITS_LOOKED_AT)
        for block in range(0, len(self._classes), stride):
            of_class = self._classes[block]
            if of_class is not None:
                yield of_class, self._stored - self._since[block], stride
        stride *= _GHOSTS_A_BLOCK
        for place in range(0, len(self._ghosts), stride):
            ghost = self._ghosts[place]
            if ghost is not None:
                yield class_of(ghost.reuses), self._stored - ghost.since, stride

    def __len__(self) -> int:
        return sum(map(len, self._queues))

    def __iter__(self) -> Iterator[int]:
        for queue in self._queues:
            yield from queue

    def check(self) -> None:
        """Each candidate is in its class's queue, by rank; ghosts are found by their names."""
        self._rates.check()
        for of_class, queue in enumerate(self._queues):
            queue.check()
            ranks = [self._ranks[block] for block in queue]
            assert ranks == sorted(set(ranks))
            assert all(self._classes[block] == of_class for block in queue)
            assert all(class_of(self._reuses[block]) == of_class for block in queue)
        assert sum(one is not None for one in self._classes) == len(self)
        for block in self:
            parent = self._parents[block]
            assert parent is None or self._reuses[parent] >= self._reuses[block]
        places = {ghost.name: place for place, ghost in enumerate(self._ghosts) if ghost}
        assert places == self._ghost_places
        assert not places.keys() & {self._names[block] for block in self}
