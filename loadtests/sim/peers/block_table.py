"""Tables from a block's name to the replicas it was routed to: bounded for each, or all together.

Who is asked goes through a prompt's names from the first on. Least recently used here means by the
order in which peers touch their entries: head of the prompt first, so that a full table loses
heads before tails.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def replicas_in(mask: int) -> list[int]:
    """The replicas whose bits are set, in order."""
    found = []
    while mask:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return found


class BlocksByReplica:
    """A list of blocks for each replica, each of its own capacity, and one table over them all."""

    def __init__(self, capacities: Sequence[int]) -> None:
        """Args: capacities: blocks each replica's list may have; at least one."""
        assert all(capacity > 0 for capacity in capacities)
        self._capacities = list(capacities)
        self._lists: list[OrderedDict[int, None]] = [OrderedDict() for _ in capacities]
        self._holders: dict[int, int] = {}

    def counts(self, names: Iterable[int]) -> list[int]:
        """By replica, how many of `names` it has before the first that nobody has.

        A replica need not have them from the first on: llm-d counts those in the middle too.
        """
        counts = [0] * len(self._lists)
        run_mask, run = 0, 0
        for name in names:
            mask = self._holders.get(name, 0)
            if mask != run_mask:
                for replica in replicas_in(run_mask):
                    counts[replica] += run
                run_mask, run = mask, 0
            if not mask:
                break
            run += 1
        for replica in replicas_in(run_mask):
            counts[replica] += run
        return counts

    def insert(self, names: Iterable[int], replica: int) -> None:
        blocks, bit = self._lists[replica], 1 << replica
        for name in names:
            if name in blocks:
                blocks.move_to_end(name)
            else:
                blocks[name] = None
                self._holders[name] = self._holders.get(name, 0) | bit
        while len(blocks) > self._capacities[replica]:
            name, _ = blocks.popitem(last=False)
            left = self._holders[name] & ~bit
            if left:
                self._holders[name] = left
            else:
                del self._holders[name]

    def check(self) -> None:
        """Asserts that table and lists say the same."""
        told = {name: replicas_in(mask) for name, mask in self._holders.items()}
        for name, replicas in told.items():
            assert replicas == [r for r, blocks in enumerate(self._lists) if name in blocks]
        assert sum(map(len, told.values())) == sum(map(len, self._lists))


@dataclass(slots=True)
class _Entry:
    mask: int
    used_at: float


class SharedBlocks:
    """One table for all replicas with one capacity; entries not used for a while are swept out.

    Args:
        capacity: Blocks in it, however many replicas have each; None: no bound.
        unused_max_s: How long an entry may go unused; None: for ever.
        sweep_s: Time between sweeps.
    """

    def __init__(
        self,
        capacity: int | None = None,
        unused_max_s: float | None = None,
        sweep_s: float = 1.0,
    ) -> None:
        self._capacity = capacity
        self._unused_max_s = unused_max_s
        self._sweep_s = sweep_s
        self._sweep_at = sweep_s
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def match(self, names: Iterable[int], among: int) -> tuple[list[int], int]:
        """By replica, how many of `names` it has from the first on.

        No use of the entries: who asks inserts the same names right after, and that is one.

        Args:
            among: Which replicas are asked about, as a mask: the others' counts are nought.

        Returns:
            The counts, for no more replicas than `among` needs; and the mask of those with the
            largest, `among` itself where none has any.
        """
        counts = [0] * among.bit_length()
        active, matched = among, 0
        for name in names:
            entry = self._entries.get(name)
            if entry is None:
                break
            left = active & entry.mask
            if left != active:
                for replica in replicas_in(active & ~left):
                    counts[replica] = matched
                if not left:
                    return counts, active
                active = left
            matched += 1
        for replica in replicas_in(active):
            counts[replica] = matched
        return counts, active

    def insert(self, names: Iterable[int], replica: int, now: float) -> None:
        bit = 1 << replica
        for name in names:
            entry = self._entries.get(name)
            if entry is None:
                self._entries[name] = _Entry(bit, now)
            else:
                entry.mask |= bit
                entry.used_at = now
                self._entries.move_to_end(name)
        if self._capacity is not None:
            while len(self._entries) > self._capacity:
                self._entries.popitem(last=False)

    def sweep(self, now: float) -> None:
        """Drops what has gone unused too long, if it is time to."""
        if self._unused_max_s is None or now < self._sweep_at:
            return
        self._sweep_at = now + self._sweep_s
        while self._entries:
            name, entry = next(iter(self._entries.items()))
            if now - entry.used_at <= self._unused_max_s:
                break
            del self._entries[name]
