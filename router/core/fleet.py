"""The replicas of one model: their states, and leases, our exact count of the work in flight.

A lease is taken in the same call that chooses a replica, with no await between, and held until the
last byte is relayed: a streamed answer is load for as long as it streams.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappop, heappush

from router.core.cost import Rates
from router.core.demand import Demand
from router.core.ids import ReplicaId
from router.core.lease_board import LeaseBoard
from router.core.states import State, StateEvent, after


class UnknownReplica(LookupError):
    """No replica of this name is in the fleet."""

    def __init__(self, replica: ReplicaId) -> None:
        super().__init__(f"no replica {replica!r}")
        self.replica = replica


@dataclass(slots=True, eq=False, kw_only=True)
class Replica:
    """All that policies look at. Kept up to date in place, so that a choice copies nothing.

    Attributes:
        state, since: Its state, and when it took it, in the caller's seconds.
        rates: How fast it is; shared with the cost model, which learns it.
        block_size: Tokens a KV block, as its events say.
        capacity_tokens: Size of its KV cache; None while unknown.
        held_tokens: Tokens its events say it holds.
        trust: How far its events are to be believed, 0 to 1: less while they are not followed.
        pending_prefill_tokens: Uncached prompt tokens of our leases before their first byte.
        head_tokens: Of these, those of the oldest such lease: what it computes now.
        head_since: When it began to, as far as we can tell: when that lease was taken, or the
            first byte before it came.
        running: Our leases.
        occupied_tokens: KV cache our leases take until they end: prompts and expected answers.
        other_prefill_tokens, other_running, other_occupied_tokens: The same of the router's other
            workers.
        demand: What has come to it of late: of all workers, as far as we can tell.
    """

    id: ReplicaId
    rates: Rates
    state: State = State.STARTING
    since: float = 0.0
    block_size: int = 16
    capacity_tokens: int | None = None
    held_tokens: int = 0
    trust: float = 1.0
    pending_prefill_tokens: int = 0
    head_tokens: int = 0
    head_since: float = 0.0
    running: int = 0
    occupied_tokens: int = 0
    other_prefill_tokens: int = 0
    other_running: int = 0
    other_occupied_tokens: int = 0
    demand: Demand = field(default_factory=Demand)
    _pending: dict[Lease, None] = field(default_factory=dict, repr=False)

    def tokens_to_prefill(self, now: float) -> float:
        """Prompt tokens to compute before a request that comes now: what is done of the oldest
        prompt counts no more."""
        tokens = self.pending_prefill_tokens + self.other_prefill_tokens
        if not self.head_tokens:
            return tokens
        done = (now - self.head_since) / self.rates.prefill_s_per_token
        return tokens - min(self.head_tokens, max(0.0, done))

    def _prefills(self, lease: Lease) -> None:
        """Its prompt is to be computed, after those that are already."""
        self.pending_prefill_tokens += lease.uncached_tokens
        self._pending[lease] = None
        if len(self._pending) == 1:
            self.head_tokens, self.head_since = lease.uncached_tokens, lease.taken_at

    def _prefilled(self, lease: Lease, now: float) -> None:
        """It is, or will never be."""
        self.pending_prefill_tokens -= lease.uncached_tokens
        was_head = next(iter(self._pending)) is lease
        del self._pending[lease]
        if was_head:
            head = next(iter(self._pending), None)
            self.head_tokens = 0 if head is None else head.uncached_tokens
            self.head_since = now


@dataclass(slots=True, eq=False)
class Lease:
    """One request on one replica, from the choice to the last byte.

    Attributes:
        uncached_tokens: Prompt tokens it makes the replica compute.
        tokens_ahead: Uncached tokens to be computed there before it, and `uncached_tokens`
            itself: what its time to first token has to be divided by.
        expected_output_tokens: Our guess when it was taken.
        occupied_tokens: KV cache it takes until it ends: its prompt and expected answer.
        taken_at, first_byte_at, released_at: The caller's seconds; None while it has not happened.
    """

    replica: Replica
    uncached_tokens: int
    expected_output_tokens: float
    tokens_ahead: float
    occupied_tokens: int
    taken_at: float
    first_byte_at: float | None = None
    released_at: float | None = None
    _fleet: Fleet | None = field(default=None, repr=False)

    def first_byte(self, now: float) -> float | None:
        """Its prompt is computed. Seconds since it was taken; None if that was known or it is over.

        Call it at the first byte of the answer's body: a head may be sent long before.
        """
        if self.first_byte_at is not None or self.released_at is not None:
            return None
        self.first_byte_at = now
        self.replica._prefilled(self, now)
        assert self._fleet is not None, "leases come from a fleet"
        self._fleet._show(self.replica)
        return now - self.taken_at

    def release(self, now: float) -> bool:
        """It is over, however it ended. False if it was before: releasing twice is fine."""
        if self.released_at is not None:
            return False
        self.released_at = now
        self.replica.running -= 1
        self.replica.occupied_tokens -= self.occupied_tokens
        if self.first_byte_at is None:
            self.replica._prefilled(self, now)
        assert self._fleet is not None, "leases come from a fleet"
        self._fleet._forget_lease(self)
        return True


@dataclass(frozen=True, slots=True)
class Transition:
    """A replica changed its state: for the log."""

    replica: ReplicaId
    before: State
    after: State
    event: StateEvent


class Fleet:
    """The replicas policies choose from, in the order they were added.

    `ready` and `suspect` are kept apart so that a choice need not look at states; `turn` counts
    the leases ever taken, for policies that take turns.
    """

    def __init__(self, board: LeaseBoard | None = None) -> None:
        """
        Args:
            board: Where this worker's leases are shown to the router's others; None: it is alone.
        """
        self._board = board
        self._replicas: dict[ReplicaId, Replica] = {}
        self._leases: set[Lease] = set()
        # By when a prompt is taken to be computed; the turn it was leased in tells equals apart.
        self._assumed: list[tuple[float, int, Lease]] = []
        self.ready: list[Replica] = []
        self.suspect: list[Replica] = []
        self.turn = 0

    @property
    def replicas(self) -> list[Replica]:
        return list(self._replicas.values())

    @property
    def routable(self) -> list[Replica]:
        """Those that may get a request: the ready ones, or the suspect ones if none is ready."""
        return self.ready or self.suspect

    @property
    def leases(self) -> int:
        return len(self._leases)

    def __contains__(self, replica: ReplicaId) -> bool:
        return replica in self._replicas

    def __getitem__(self, replica: ReplicaId) -> Replica:
        """Raises UnknownReplica."""
        found = self._replicas.get(replica)
        if found is None:
            raise UnknownReplica(replica)
        return found

    def add(self, replica: Replica) -> None:
        assert replica.id not in self._replicas, f"replica {replica.id!r} is there already"
        assert replica.running == replica.occupied_tokens == 0, "a new replica has no work"
        self._replicas[replica.id] = replica
        self._sort()

    def remove(self, replica: ReplicaId) -> Replica:
        """Take it out. Its leases stay valid until released. Raises UnknownReplica."""
        removed = self[replica]
        del self._replicas[replica]
        self._sort()
        return removed

    def apply(self, replica: ReplicaId, event: StateEvent, now: float) -> Transition | None:
        """What `event` changes, None if nothing. A replica removed meanwhile changes nothing."""
        found = self._replicas.get(replica)
        if found is None:
            return None
        before, found_after = found.state, after(found.state, event)
        if before is found_after:
            return None
        found.state, found.since = found_after, now
        self._sort()
        return Transition(replica, before, found_after, event)

    def lease(
        self,
        replica: ReplicaId,
        uncached_tokens: int,
        expected_output_tokens: float,
        now: float,
        *,
        matched_tokens: int = 0,
    ) -> Lease:
        """Count a request as the replica's work. Raises UnknownReplica.

        Args:
            matched_tokens: Of its prompt, those the replica holds: they are kept there for it.
        """
        assert uncached_tokens >= 0, "there is no negative work"
        found = self[replica]
        ahead = found.tokens_to_prefill(now) + uncached_tokens
        occupied = matched_tokens + uncached_tokens + round(expected_output_tokens)
        lease = Lease(
            found, uncached_tokens, expected_output_tokens, ahead, occupied, now, _fleet=self
        )
        found._prefills(lease)
        found.running += 1
        found.occupied_tokens += occupied
        self._leases.add(lease)
        self.turn += 1
        # Other workers send as many there as they have in flight beside ours.
        came = 1.0 + found.other_running / found.running
        found.demand.came(came, came * found.rates.prefill_s(uncached_tokens), now)
        self._show(found)
        return lease

    def assume_first_byte(self, lease: Lease, at: float) -> None:
        """The last lease taken will have its prompt computed by then, though nobody will say so.

        An answer that comes whole does not show when that was; it must not count until the end.
        """
        heappush(self._assumed, (at, self.turn, lease))

    def settle(self, now: float) -> None:
        """Take prompts as computed whose time has come. Call it before each choice."""
        while self._assumed and self._assumed[0][0] <= now:
            lease = heappop(self._assumed)[2]
            lease.first_byte(now)

    def look_at_others(self) -> None:
        """See what the router's other workers have in flight. Call it before each choice."""
        if self._board is None:
            return
        for replica, others in self._board.others():
            found = self._replicas[replica]
            found.other_running, found.other_prefill_tokens, found.other_occupied_tokens = others

    def _forget_lease(self, lease: Lease) -> None:
        self._leases.remove(lease)
        self._show(lease.replica)

    def _show(self, replica: Replica) -> None:
        if self._board is not None:
            load = (replica.running, replica.pending_prefill_tokens, replica.occupied_tokens)
            self._board.show(replica.id, *load)

    def _sort(self) -> None:
        self.ready = [one for one in self._replicas.values() if one.state is State.READY]
        self.suspect = [one for one in self._replicas.values() if one.state is State.SUSPECT]

    def check(self) -> None:
        """Assert what must always hold: totals are the sums over live leases."""
        running: dict[Replica, int] = dict.fromkeys(self._replicas.values(), 0)
        pending: dict[Replica, int] = dict.fromkeys(self._replicas.values(), 0)
        occupied: dict[Replica, int] = dict.fromkeys(self._replicas.values(), 0)
        for lease in self._leases:
            assert lease.released_at is None, "a released lease is forgotten"
            running[lease.replica] = running.get(lease.replica, 0) + 1
            waits = lease.uncached_tokens if lease.first_byte_at is None else 0
            pending[lease.replica] = pending.get(lease.replica, 0) + waits
            occupied[lease.replica] = occupied.get(lease.replica, 0) + lease.occupied_tokens
        for replica in running:
            assert replica.running == running[replica], "every lease is counted once"
            assert replica.pending_prefill_tokens == pending[replica], "until its first byte"
            assert replica.occupied_tokens == occupied[replica], "until it ends"
            head = next(iter(replica._pending), None)
            assert replica.head_tokens == (0 if head is None else head.uncached_tokens)
            assert 0.0 <= replica.trust <= 1.0, "trust is a share"
            replica.demand.check()
        for state, members in ((State.READY, self.ready), (State.SUSPECT, self.suspect)):
            assert members == [one for one in self.replicas if one.state is state]
