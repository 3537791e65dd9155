"""The replicas of one model: their states, and leases, our exact count of the work in flight.

A lease is taken in the same call that chooses a replica, with no await between, and held until the
last byte is relayed: a streamed answer is load for as long as it streams.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush

from router.core.attention import attention_pairs
from router.core.cost import Rates
from router.core.demand import Demand
from router.core.ids import ReplicaId
from router.core.lease_board import InFlight, LeaseBoard
from router.core.states import State, StateEvent, after
from router.core.targets import Targets


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
        pending_prefill_pairs: What attention has to look at for them (`router.core.attention`).
        begun_tokens, begun_pairs: Those that waited when its step began: a step computes prompts
            together.
        busy_since: When that was, as far as we can tell: when the first of them came, or with the
            first byte before.
        running: Our leases.
        occupied_tokens: KV cache our leases take until they end: prompts and expected answers.
        other_running, other_prefills, other_prefill_tokens, other_prefill_pairs,
            other_occupied_tokens: The same of the router's other workers.
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
    pending_prefill_pairs: int = 0
    begun_tokens: int = 0
    begun_pairs: int = 0
    busy_since: float = 0.0
    running: int = 0
    occupied_tokens: int = 0
    other_running: int = 0
    other_prefills: int = 0
    other_prefill_tokens: int = 0
    other_prefill_pairs: int = 0
    other_occupied_tokens: int = 0
    demand: Demand = field(default_factory=Demand)
    _pending: dict[Lease, None] = field(default_factory=dict, repr=False)

    @property
    def prefills(self) -> int:
        """Leases whose prompt is not computed."""
        return len(self._pending) + self.other_prefills

    def backlog_s(self, now: float) -> float:
        """Seconds until all that waits for its prefill is computed, less what is done of the step
        that runs: no more of it than what waited when it began."""
        tokens = self.pending_prefill_tokens + self.other_prefill_tokens
        if not tokens:
            return 0.0
        # The same as two calls of Rates.prefill_s, in less time: every choice asks every replica.
        rates = self.rates
        per_token, per_pair = rates.prefill_s_per_token, rates.prefill_s_per_pair
        seconds = rates.overhead_s + tokens * per_token
        seconds += (self.pending_prefill_pairs + self.other_prefill_pairs) * per_pair
        if not self._pending:
            return seconds
        step_s = rates.overhead_s + min(self.begun_tokens, self.pending_prefill_tokens) * per_token
        step_s += min(self.begun_pairs, self.pending_prefill_pairs) * per_pair
        return seconds - min(step_s, max(0.0, now - self.busy_since))

    def _prefills(self, lease: Lease) -> None:
        """Its prompt is to be computed, after those that are already."""
        self.pending_prefill_tokens += lease.uncached_tokens
        self.pending_prefill_pairs += lease.prefill_pairs
        self._pending[lease] = None
        if len(self._pending) == 1:
            self._begins(lease.taken_at)

    def _prefilled(self, lease: Lease, now: float, *, known: bool) -> None:
        """It is, or will never be.

        Args:
            known: Its first token has come; not that it should have, or that it is given up.
        """
        self.pending_prefill_tokens -= lease.uncached_tokens
        self.pending_prefill_pairs -= lease.prefill_pairs
        head = next(iter(self._pending))
        del self._pending[lease]
        if known and not self.other_prefill_tokens:
            lease.busy_s = now - self.busy_since
        if head is not lease:
            head.alone = False
        if known or head is lease:
            self._begins(now)

    def _begins(self, now: float) -> None:
        """From now on it computes all that waits."""
        self.begun_tokens = self.pending_prefill_tokens
        self.begun_pairs = self.pending_prefill_pairs
        self.busy_since = now


@dataclass(slots=True, eq=False)
class Lease:
    """One request on one replica, from the choice to the last byte.

    Attributes:
        uncached_tokens, prefill_pairs: What it makes the replica compute.
        expected_first_token_s: Seconds from then on, if it is served in its turn.
        alone: Nothing waited for its prefill there when it was taken, and nobody passed it since.
        expected_output_tokens: Our guess when it was taken.
        occupied_tokens: KV cache it takes until it ends: its prompt and expected answer.
        taken_at, first_byte_at, released_at: The caller's seconds; None while it has not happened.
        busy_s: What the replica took to compute it: since the first byte before, or since it began.
            None if that is not known.
        taught: The cost model has learned from its first token.
    """

    replica: Replica
    uncached_tokens: int
    prefill_pairs: int
    expected_output_tokens: float
    occupied_tokens: int
    taken_at: float
    expected_first_token_s: float
    alone: bool
    taught: bool = False
    busy_s: float | None = None
    first_byte_at: float | None = None
    released_at: float | None = None
    _fleet: Fleet | None = field(default=None, repr=False)

    def first_byte(self, now: float, *, known: bool = True) -> float | None:
        """Its prompt is computed. Seconds since it was taken; None if that was known or it is over.

        Call it at the first byte of the answer's body: a head may be sent long before.

        Args:
            known: It has come; not that it should have.
        """
        if self.first_byte_at is not None or self.released_at is not None:
            return None
        self.first_byte_at = now
        self.replica._prefilled(self, now, known=known)
        assert self._fleet is not None, "leases come from a fleet"
        self._fleet._show(self.replica)
        after_s = now - self.taken_at
        if known:
            self._fleet.targets.first_token(self.expected_first_token_s, after_s)
        return after_s

    def release(self, now: float) -> bool:
        """It is over, however it ended. False if it was before: releasing twice is fine."""
        if self.released_at is not None:
            return False
        self.released_at = now
        self.replica.running -= 1
        self.replica.occupied_tokens -= self.occupied_tokens
        if self.first_byte_at is None:
            self.replica._prefilled(self, now, known=False)
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
    the leases ever taken, for policies that take turns; `targets` knows how late first tokens come.
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
        self.targets = Targets()

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
        pairs = attention_pairs(matched_tokens, uncached_tokens)
        waits_s = found.backlog_s(now)
        lease = Lease(
            found,
            uncached_tokens,
            pairs,
            expected_output_tokens,
            matched_tokens + uncached_tokens + round(expected_output_tokens),
            now,
            waits_s + found.rates.prefill_s(uncached_tokens, pairs),
            alone=not found._pending and not found.other_prefill_tokens,
            _fleet=self,
        )
        found._prefills(lease)
        found.running += 1
        found.occupied_tokens += lease.occupied_tokens
        self._leases.add(lease)
        self.turn += 1
        # Other workers send as many there as they have in flight beside ours.
        came = 1.0 + found.other_running / found.running
        found.demand.came(came, came * found.rates.computed_s(uncached_tokens, pairs), now)
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
            lease.first_byte(now, known=False)

    def look_at_others(self) -> None:
        """See what the router's other workers have in flight. Call it before each choice."""
        if self._board is None:
            return
        for replica, others in self._board.others():
            found = self._replicas[replica]
            found.other_running, found.other_prefills = others.running, others.prefills
            found.other_prefill_tokens = others.prefill_tokens
            found.other_prefill_pairs = others.prefill_pairs
            found.other_occupied_tokens = others.occupied_tokens

    def _forget_lease(self, lease: Lease) -> None:
        self._leases.remove(lease)
        self._show(lease.replica)

    def _show(self, replica: Replica) -> None:
        if self._board is not None:
            self._board.show(
                replica.id,
                InFlight(
                    replica.running,
                    len(replica._pending),
                    replica.pending_prefill_tokens,
                    replica.pending_prefill_pairs,
                    replica.occupied_tokens,
                ),
            )

    def _sort(self) -> None:
        self.ready = [one for one in self._replicas.values() if one.state is State.READY]
        self.suspect = [one for one in self._replicas.values() if one.state is State.SUSPECT]

    def check(self) -> None:
        """Assert what must always hold: totals are the sums over live leases."""
        running: Counter[Replica] = Counter()
        tokens: Counter[Replica] = Counter()
        pairs: Counter[Replica] = Counter()
        occupied: Counter[Replica] = Counter()
        for lease in self._leases:
            assert lease.released_at is None, "a released lease is forgotten"
            running[lease.replica] += 1
            occupied[lease.replica] += lease.occupied_tokens
            if lease.first_byte_at is None:
                tokens[lease.replica] += lease.uncached_tokens
                pairs[lease.replica] += lease.prefill_pairs
        for replica in {*self._replicas.values(), *running}:
            assert replica.running == running[replica], "every lease is counted once"
            assert replica.pending_prefill_tokens == tokens[replica], "until its first byte"
            assert replica.pending_prefill_pairs == pairs[replica], "until its first byte"
            assert replica.occupied_tokens == occupied[replica], "until it ends"
            begun = (replica.begun_tokens, replica.begun_pairs)
            assert min(begun) >= 0
            assert replica._pending or not any(begun), "where nothing waits nothing has begun"
            assert 0.0 <= replica.trust <= 1.0, "trust is a share"
            replica.demand.check()
        self.targets.check()
        for state, members in ((State.READY, self.ready), (State.SUSPECT, self.suspect)):
            assert members == [one for one in self.replicas if one.state is state]
