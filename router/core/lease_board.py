"""What every worker of a router has in flight at a model's replicas, in memory they all share.

                 r0              r1
    worker 0     in flight       in flight       written by worker 0 alone
    worker 1     in flight       in flight       written by worker 1 alone

A worker writes its own row whenever it takes or ends a lease, and reads the others' before it
chooses: so load is exact across workers without a message between them. Rows hold totals, not
changes, so that a row is right again with the next write, and a dead worker's leases are gone once
its row is cleared. Each cell is 8 bytes, aligned: it is never seen half written.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from router.core.ids import ReplicaId

_CELL_BYTES = 8


class InFlight(NamedTuple):
    """At one replica: a cell each.

    Attributes:
        prefills, prefill_tokens, prefill_pairs: Leases before their first byte, the uncached tokens
            of their prompts, and what attention has to look at for them.
        occupied_tokens: KV cache that leases take until they end.
    """

    running: int
    prefills: int
    prefill_tokens: int
    prefill_pairs: int
    occupied_tokens: int


_CELLS = len(InFlight._fields)


class LeaseBoard:
    """One worker's view of the board."""

    def __init__(
        self, memory: memoryview, replicas: Sequence[ReplicaId], *, workers: int, worker: int
    ) -> None:
        """
        Args:
            memory: `board_bytes` of them, writable and shared; zeros at first.
            worker: Whose row is written, from 0.
        """
        assert 0 <= worker < workers, "a worker has a row"
        shape = (workers, len(replicas), _CELLS)
        self._rows = np.frombuffer(memory, np.int64).reshape(shape)
        self._own = self._rows[worker].reshape(-1)
        self._cell = memoryview(self._own)
        self._replicas = replicas
        self._columns = {replica: _CELLS * at for at, replica in enumerate(replicas)}
        self._seen = np.zeros(shape[1:], np.int64)

    def show(self, replica: ReplicaId, in_flight: InFlight) -> None:
        """This worker now has so much in flight there."""
        column = self._columns[replica]
        for at, number in enumerate(in_flight, start=column):
            self._cell[at] = number

    def others(self) -> Iterator[tuple[ReplicaId, InFlight]]:
        """What the other workers together have in flight, of replicas where that has changed since
        the last call."""
        now = self._rows.sum(axis=0) - self._own.reshape(-1, _CELLS)
        changed = (now != self._seen).any(axis=1).nonzero()[0]
        self._seen = now
        for at in changed.tolist():
            yield self._replicas[at], InFlight(*now[at].tolist())

    def check(self) -> None:
        """Assert what must always hold."""
        assert (self._rows >= 0).all(), "nobody has less than nothing in flight"


def board_bytes(workers: int, replicas: int) -> int:
    """The size of a board's memory."""
    return workers * replicas * _CELLS * _CELL_BYTES


def clear_row(memory: memoryview, replicas: int, worker: int) -> None:
    """A worker has died, and its leases with it."""
    row_bytes = board_bytes(1, replicas)
    memory[worker * row_bytes : (worker + 1) * row_bytes] = bytes(row_bytes)
