"""Highest response ratio next: who waited longest for its work is first, so the short and the warm.

Of the sequences that wait, the next is the one with the highest ratio

    (waited + work) / work,    work: what is still to compute of its prompt after cache hits

A warm request has little work and goes ahead of cold ones of its age; a cold one's ratio grows
while it waits. A rate of tokens a second is not needed: ratios are in the order of waited / work,
in seconds a token. A prompt that runs competes with those that wait, by what is left of it: so what
is short passes the rest of what is long, and what is nearly done is done first. Source: Brinch
Hansen 1971, Short-term scheduling in multiprogramming systems.

Sequences wait in buckets by the logarithm of their work, in each by arrival:

    work  64 to 127     oldest ─▶ … newest
    work 128 to 255     oldest ─▶ … newest       the heads are compared, by their own work
    …

In a bucket none waited longer than the head, and none has less than half its work: so the best of
the heads has at least half the highest ratio of all. Ratios change at every moment, buckets do not.

Rules:
1. Preempted sequences come first, oldest first: their users have part of the answer.
2. A candidate that does not fit into memory holds up the others, and stays the next one until
   memory comes free or somebody new arrives: then the ratios are compared again. (So who is next
   does not change while nothing but time passes, which `replica.core.coast` relies on.)
3. Blocks come and go, and a sequence's work with them. At most _LOOKS sequences are looked at each
   step: the heads, then newcomers, then the others in turn. One not looked at yet counts as cold.

Nobody starves as long as the queue is bounded (`max_waiting_sequences`). Let at most N sequences
wait or run, and t be how long all that have started take to end: nobody new waits longer than t for
the next admission. Let one with work W left have waited for T. Whoever is computed before it has
half its ratio at least, and a token of work at least, so has waited T / 2W at least. Hence whoever
is computed before it within the next T / 2W is there already; but of those there are N - 1, and
they last for N · t. So it is the next one before T exceeds about 2 · W · N · t, and then goes on at
once if it runs, or is admitted within t, as nobody passes. In practice others have thousands of
tokens of work, not one, and the bound is lower by as much.
"""

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace
from math import inf

from replica.core.block_pool import BlockPool
from replica.core.queue_order import arrival_of, check_sorted, take, undisturbed
from replica.core.sequence import Sequence, State

_LOOKS = 32


class ResponseRatio:
    """Each call is O(log n), beside moving the tail of a list; a look at a sequence is O(log of its
    blocks)."""

    def __init__(self, pool: BlockPool) -> None:
        """
        Args:
            pool: Where cached prefixes are looked up.
        """
        self._pool = pool
        self._preempted: list[Sequence] = []  # by arrival
        # Bucket b, by arrival: work from 2^b to 2^(b+1) - 1.
        self._buckets: list[list[Sequence]] = []
        # Of each in a bucket, how many blocks were found when it was last looked at; who is to be
        # looked at next is first.
        self._hits: OrderedDict[Sequence, int] = OrderedDict()
        # Whom the memory is kept for, and how many blocks were free then.
        self._reserved: Sequence | None = None
        self._free_blocks = 0

    def add(self, sequence: Sequence) -> None:
        if sequence.started_s is not None:
            insort(self._preempted, sequence, key=arrival_of)
            return
        self._reserved = None
        self._hits[sequence] = 0
        self._hits.move_to_end(sequence, last=False)
        insort(self._bucket(sequence), sequence, key=arrival_of)

    def remove(self, sequence: Sequence) -> None:
        if sequence.started_s is not None:
            take(self._preempted, sequence)
            return
        take(self._bucket(sequence), sequence)
        del self._hits[sequence]
        if sequence is self._reserved:
            self._reserved = None

    def candidates(self, now: float) -> Iterator[Sequence]:
        yield from undisturbed(self._preempted)
        if self._pool.free_blocks > self._free_blocks:
            self._reserved = None
        first = self._reserved
        if first is not None:
            yield first
            self._reserved = None
        self._look()
        heads = [(self.urgency(b[0], now), b[0].arrival, b, 0) for b in self._buckets if b]
        heapify(heads)
        while heads:
            _, _, bucket, index = heads[0]
            sequence = bucket[index]
            if sequence is not first:
                yield sequence
            if index < len(bucket) and bucket[index] is sequence:
                index += 1
            if index < len(bucket):
                following = bucket[index]
                urgency = self.urgency(following, now)
                heapreplace(heads, (urgency, following.arrival, bucket, index))
            else:
                heappop(heads)

    def urgency(self, sequence: Sequence, now: float) -> float:
        if sequence.state is State.RUNNING:
            work = sequence.num_unplanned
        elif sequence.started_s is None:
            work = self._work(sequence)
        else:
            return -inf
        return (sequence.arrived_s - now) / work

    def reserve(self, sequence: Sequence) -> None:
        self._reserved = sequence if sequence.started_s is None else None
        self._free_blocks = self._pool.free_blocks

    def __len__(self) -> int:
        return len(self._preempted) + len(self._hits)

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        yield from self._hits

    def _work(self, sequence: Sequence) -> int:
        """Tokens that it has yet to compute, at least 1."""
        return sequence.num_tokens - self._hits[sequence] * self._pool.block_size

    def _bucket(self, sequence: Sequence) -> list[Sequence]:
        index = self._work(sequence).bit_length() - 1
        while len(self._buckets) <= index:
            self._buckets.append([])
        return self._buckets[index]

    def _look(self) -> None:
        """Looks anew at what is cached of some of them."""
        looks = _LOOKS
        for bucket in self._buckets:
            while bucket and looks > 0:
                looks -= 1
                if not self._moves(bucket[0]):
                    break
        for _ in range(min(looks, len(self._hits))):
            self._moves(next(iter(self._hits)))

    def _moves(self, sequence: Sequence) -> bool:
        """Looks at it; whether that took it to another bucket."""
        self._hits.move_to_end(sequence)
        had = self._hits[sequence]
        hits = cached_blocks(self._pool, sequence, had)
        if hits == had:
            return False
        before = self._bucket(sequence)
        self._hits[sequence] = hits
        after = self._bucket(sequence)
        if after is before:
            return False
        take(before, sequence)
        insort(after, sequence, key=arrival_of)
        return True

    def check(self) -> None:
        check_sorted(self._preempted)
        assert all(one.started_s is not None for one in self._preempted)
        assert sum(map(len, self._buckets)) == len(self._hits)
        for bucket in self._buckets:
            check_sorted(bucket)
            for sequence in bucket:
                assert sequence.started_s is None
                assert self._work(sequence) > 0
                assert self._bucket(sequence) is bucket
        assert self._reserved is None or self._reserved in self._hits


def cached_blocks(pool: BlockPool, sequence: Sequence, guess: int) -> int:
    """How many blocks of its longest cached prefix are cached; the last token's never counts.

    A cached block's parent is cached too, so that this takes O(log of the blocks) lookups, two
    where `guess` is right. Blocks far beyond the prefix are not even hashed.
    """
    if not sequence.findable:
        return 0
    most = (sequence.num_tokens - 1) // pool.block_size

    def is_cached(index: int) -> bool:
        return pool.find(sequence.key(index, pool.block_size)) is not None

    found, missing, step = guess, most, 1
    while found > 0 and not is_cached(found - 1):
        found, missing = max(0, found - step), found - 1
        step *= 2
    if found == guess:
        while found < missing:
            probe = min(found + step, missing)
            if not is_cached(probe - 1):
                missing = probe - 1
                break
            found = probe
            step *= 2
    while found < missing:
        middle = (found + missing + 1) // 2
        if is_cached(middle - 1):
            found = middle
        else:
            missing = middle - 1
    return found
