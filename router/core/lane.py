"""What waits of one tenant in one level, and who of it is next: highest response ratio first.

Next for a replica is who has waited longest for its work there, and has least time left to wait:
the highest

    waited / (work · left)    work: tokens of its prompt that this replica would have to compute
                              left: share of the time after which it is turned away, 1 to 0

Who is warm there goes ahead of cold ones of its age, and waits longer for room elsewhere; a cold
one's ratio grows while it waits, most before it would be turned away. Source: Brinch Hansen 1971,
Short-term scheduling in multiprogramming systems, there without `left`.

    work  64 to 127     oldest ─▶ … newest       by the work where least is cached
    work 128 to 255     oldest ─▶ … newest
    …
    on r0, 16 to 31     oldest ─▶ … newest       those whose work is less there: they lie in both

In a bucket none waited longer than its oldest, and none has less than half its work. So the oldest
of all buckets that count for a replica are compared, by their own work there, and the best has at
least half the highest ratio of all. Ratios change at every moment, buckets do not. Where all have
the same work there is one bucket, and that is first come, first served.

Nobody starves: who has work W and has waited for T is passed by one with work w only if that has
waited for w / 2W of T at least, so by none that comes within the next T / 2W.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from router.core.ids import ReplicaId
from router.core.ticket import Ticket, Work

# By the bits of their work, only what is not empty; in each by arrival in this level.
_Buckets = dict[int, list[Ticket]]
# Whose time is over, and is not told yet, has so much of it left.
_LEFT_LEAST = 0.01


class Lane:
    """Each call is O(log n) for each bucket it concerns, beside moving the tail of a list.

    Attributes:
        deficit_tokens: Granted to the tenant and not used; below 0 what it owes: see `TenantRing`.
    """

    __slots__ = ("_common", "_patience_s", "_warm", "deficit_tokens")

    def __init__(self, patience_s: float) -> None:
        """
        Args:
            patience_s: After which who waits is turned away.
        """
        self.deficit_tokens = 0
        self._patience_s = patience_s
        self._common: _Buckets = {}
        self._warm: dict[ReplicaId, _Buckets] = {}

    def __bool__(self) -> bool:
        return bool(self._common)

    def __iter__(self) -> Iterator[Ticket]:
        for bucket in self._common.values():
            yield from bucket

    def add(self, ticket: Ticket) -> None:
        _add(self._common, ticket.its_work.tokens.bit_length(), ticket)
        for replica, bits in _warm_places(ticket.its_work):
            _add(self._warm.setdefault(replica, {}), bits, ticket)

    def remove(self, ticket: Ticket) -> None:
        _remove(self._common, ticket.its_work.tokens.bit_length(), ticket)
        for replica, bits in _warm_places(ticket.its_work):
            buckets = self._warm[replica]
            _remove(buckets, bits, ticket)
            if not buckets:
                del self._warm[replica]

    def weigh(self, ticket: Ticket, work: Work) -> None:
        """Its work is another now."""
        if work != ticket.its_work:
            self.remove(ticket)
            ticket.its_work = work
            self.add(ticket)

    def head(self, now: float, replica: ReplicaId | None) -> tuple[float, Ticket]:
        """Who is next, and its ratio, in seconds a token. The lane is not empty.

        Args:
            replica: For which; None: for whichever it has the least work.
        """
        best: Ticket | None = None
        highest, patience_s = 0.0, self._patience_s
        for buckets in self._counting(replica):
            for bucket in buckets.values():
                ticket = bucket[0]
                most, less, least = ticket.its_work
                work = least if replica is None else less.get(replica, most)
                waited_s = now - ticket.entered_at
                left = 1.0 - waited_s / patience_s
                ratio = waited_s / (work * (left if left > _LEFT_LEAST else _LEFT_LEAST))
                if best is None or ratio > highest:
                    best, highest = ticket, ratio
                elif ratio == highest and ticket.number < best.number:
                    best = ticket
        assert best is not None, "something waits here"
        return highest, best

    def _counting(self, replica: ReplicaId | None) -> Iterable[_Buckets]:
        if replica is None:
            return (self._common, *self._warm.values())
        warm = self._warm.get(replica)
        return (self._common,) if warm is None else (self._common, warm)

    def check(self) -> None:
        """Assert what must always hold: each is where it belongs, in order, and nowhere else."""
        places = 0
        for replica, buckets in (("", self._common), *self._warm.items()):
            assert buckets or not replica, "empty ones are not kept"
            for bits, bucket in buckets.items():
                assert bucket, "nor are empty buckets"
                keys = [_came(one) for one in bucket]
                assert keys == sorted(keys)
                for one in bucket:
                    work = one.its_work
                    tokens = work.less[replica] if replica else work.tokens
                    assert tokens.bit_length() == bits > 0
                places += len(bucket)
        assert places == sum(1 + len(_warm_places(one.its_work)) for one in self)


def _warm_places(work: Work) -> list[tuple[ReplicaId, int]]:
    """The replicas for which it lies in a bucket of their own, and which: the bits of its work."""
    bits = work.tokens.bit_length()
    return [
        (replica, less_bits)
        for replica, tokens in work.less.items()
        if (less_bits := tokens.bit_length()) < bits
    ]


def _add(buckets: _Buckets, bits: int, ticket: Ticket) -> None:
    bucket = buckets.get(bits)
    if bucket is None:
        buckets[bits] = [ticket]
    else:
        insort(bucket, ticket, key=_came)


def _remove(buckets: _Buckets, bits: int, ticket: Ticket) -> None:
    bucket = buckets[bits]
    index = bisect_left(bucket, _came(ticket), key=_came)
    assert bucket[index] is ticket, "it waits here"
    if len(bucket) == 1:
        del buckets[bits]
    else:
        del bucket[index]


def _came(ticket: Ticket) -> tuple[float, int]:
    return ticket.entered_at, ticket.number
