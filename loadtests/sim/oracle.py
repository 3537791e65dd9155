"""A router that knows what nobody can: every cache and queue, all lengths, the next second.

It is a reference for others, not a product. For each request:

1. It reckons what every replica will do (`loadtests.sim.outlook`), and what of the prompt is in
   its blocks or will be, for others that went there have it.
2. The request and those of the next second, a dozen at most, are placed one after another where
   each adds least, and where most of each is cached; either way they are then moved one by one as
   long as that makes the sum smaller, and the better way counts:

       Σ time to first token  +  Σ delayed per s² · backlog² / 2  +  Σ evicted · hit share

   The second term is how long the backlogs that are left over delay those who come after the
   second, as our policy reckons it (`router.core.demand`), of each replica as of the fleet. The
   third is what is computed again.
3. The request goes where that plan has it; the others are planned again when they come.

So it is near the best that can be done, not a bound: what it does not know is the time after the
next second.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from loadtests.sim.outlook import Outlook, outlook
from loadtests.sim.replica import SimReplica
from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load, ReplicaFacts
from loadtests.sim.seeing import Coming
from protocol.kv_events import KvEvent
from replica.core.block_hash import BlockKey, block_keys
from router.core.demand import Demand, delays_per_s2

AHEAD_S = 1.0
_AHEAD_MAX = 12
_CANDIDATES = 3  # of each kind: most cached, soonest free
_ROUNDS_MAX = 3
_HITS_KEPT = 0.998  # of the share of tokens found, with each request


@dataclass(slots=True)
class _Asked:
    """A request that is planned; `cached` is by replica, in blocks."""

    request: SimRequest
    keys: list[BlockKey]
    cached: list[int]
    candidates: list[int]


class Oracle:
    """A `SimRouter` that sees everything."""

    poll_interval_s: float | None = None
    hears_events: bool = False

    def __init__(self, replicas: Sequence[ReplicaFacts], rng: Random) -> None:
        sizes = {one.block_size for one in replicas}
        assert len(sizes) == 1, "blocks of one size"
        self._block_size = sizes.pop()
        self._keys: dict[int, list[BlockKey]] = {}
        self._flights: dict[int, int] = {}
        self._uncached: dict[int, int] = {}
        self._planned: list[Counter[int]] = [Counter() for _ in replicas]
        self._demands = [Demand() for _ in replicas]
        self._tokens, self._found_tokens = 1.0, 0.0

    def see(self, replicas: Sequence[SimReplica], coming: Coming) -> None:
        self._replicas = replicas
        self._coming = coming

    def route(self, request: SimRequest, now: float) -> int:
        outlooks = [outlook(one, self._uncached, now) for one in self._replicas]
        ahead = islice(self._coming.until(now + AHEAD_S), _AHEAD_MAX - 1)
        asked = [self._asked(one, outlooks) for one in (request, *ahead)]
        hit_share = self._found_tokens / self._tokens
        delays, _ = delays_per_s2(self._demands, now)
        plan = _Plan(outlooks, asked, delays, hit_share, self._block_size, now)
        replica = plan.best()[0]
        cached = asked[0].cached[replica] * self._block_size
        uncached = len(request.prompt) - cached
        self._demands[replica].came(1.0, plan.work_s(0, replica), now)
        self._tokens = self._tokens * _HITS_KEPT + len(request.prompt)
        self._found_tokens = self._found_tokens * _HITS_KEPT + cached
        self._flights[request.number] = replica
        self._uncached[request.number] = uncached
        self._planned[replica].update(key.hash for key in asked[0].keys)
        return replica

    def _asked(self, request: SimRequest, outlooks: Sequence[Outlook]) -> _Asked:
        keys = self._keys_of(request)
        cached = [self._found(keys, number) for number in range(len(outlooks))]
        numbers = range(len(outlooks))
        most = sorted(numbers, key=lambda one: (-cached[one], outlooks[one].free_s))
        soonest = sorted(numbers, key=lambda one: outlooks[one].free_s)
        candidates = list(dict.fromkeys(most[:_CANDIDATES] + soonest[:_CANDIDATES]))
        return _Asked(request, keys, cached, candidates)

    def _keys_of(self, request: SimRequest) -> list[BlockKey]:
        """Of the blocks that can be found: the last token is always computed."""
        keys = self._keys.get(request.number)
        if keys is None:
            whole = (len(request.prompt) - 1) // self._block_size * self._block_size
            keys = block_keys(None, request.prompt[:whole], self._block_size, None)
            self._keys[request.number] = keys
        return keys

    def _found(self, keys: list[BlockKey], replica: int) -> int:
        """Leading blocks that are there, or will be. A block's parent is there if it is."""
        pool, planned = self._replicas[replica].scheduler.pool, self._planned[replica]

        def missing(index: int) -> bool:
            key = keys[index]
            return not planned[key.hash] and pool.find(key) is None

        return bisect_left(range(len(keys)), True, key=missing)

    def first_token(self, request: SimRequest, replica: int, now: float) -> None:
        """Nothing that it could not see."""

    def done(self, request: SimRequest, replica: int, cached_tokens: int, now: float) -> None:
        self._forget(request.number)

    def refused(self, request: SimRequest, replica: int, now: float) -> None:
        self._forget(request.number)

    def _forget(self, number: int) -> None:
        planned = self._planned[self._flights.pop(number)]
        del self._uncached[number]
        for key in self._keys.pop(number):
            planned[key.hash] -= 1
            if not planned[key.hash]:
                del planned[key.hash]

    def events(self, replica: int, events: Sequence[KvEvent], now: float) -> None:
        raise AssertionError("it looks into the caches")

    def load(self, replica: int, load: Load, now: float) -> None:
        raise AssertionError("it asks nobody")

    def lost(self, replica: int, now: float) -> None:
        for number in [n for n, where in self._flights.items() if where == replica]:
            self._forget(number)

    def check(self) -> None:
        """Asserts that what is planned is what is in flight."""
        for number, planned in enumerate(self._planned):
            mine = [one for one, where in self._flights.items() if where == number]
            assert planned == Counter(key.hash for one in mine for key in self._keys[one])
        assert self._uncached.keys() == self._flights.keys() <= self._keys.keys()


class _Plan:
    """Who goes where, and what that costs in seconds."""

    def __init__(
        self,
        outlooks: Sequence[Outlook],
        asked: Sequence[_Asked],
        delays: Sequence[float],
        hit_share: float,
        block_size: int,
        now: float,
    ) -> None:
        self._outlooks, self._asked, self._size, self._now = outlooks, asked, block_size, now
        self._shared = [
            [_shared(one.keys, other.keys) for other in asked[:number]]
            for number, one in enumerate(asked)
        ]
        self._delays, self._hit_share = delays, hit_share
        self._horizon_s = max(now, asked[-1].request.arrival_s)

    def best(self) -> list[int]:
        """A replica for each request, in their order."""
        one_by_one: list[int] = []
        for one in self._asked:
            one_by_one = min(([*one_by_one, where] for where in one.candidates), key=self._cost)
        # Single moves from there do not find every exchange of places.
        warmest = [one.candidates[0] for one in self._asked]
        found = [self._improved(places) for places in (one_by_one, warmest)]
        return min(found, key=self._cost)

    def _improved(self, places: list[int]) -> list[int]:
        cost = self._cost(places)
        for _ in range(_ROUNDS_MAX):
            before = cost
            for number, one in enumerate(self._asked):
                for where in one.candidates:
                    moved = [*places[:number], where, *places[number + 1 :]]
                    if where != places[number] and (less := self._cost(moved)) < cost - 1e-9:
                        places, cost = moved, less
            if cost == before:
                break
        return places

    def work_s(self, number: int, where: int) -> float:
        asked = self._asked[number]
        cached = asked.cached[where] * self._size
        tokens = len(asked.request.prompt) - cached
        return self._outlooks[where].prefill_s(cached, tokens, joins=False)

    def _cost(self, places: Sequence[int]) -> float:
        """Of the first requests, placed so."""
        cost = 0.0
        free: dict[int, float] = {}
        taken: Counter[int] = Counter()
        followed: set[int] = set()
        for number, where in enumerate(places):
            one, there = self._asked[number], self._outlooks[where]
            blocks, follows = one.cached[where], False
            for earlier, shared in enumerate(self._shared[number]):
                if shared > blocks and places[earlier] == where:
                    blocks, follows = shared, True
            cached = blocks * self._size
            tokens = len(one.request.prompt) - cached
            arrival_s = max(self._now, one.request.arrival_s)
            needed = taken[where] + -(-tokens // self._size)
            free_s = free.get(where, there.free_s)
            begin_s = max(free_s, arrival_s, there.memory_s(needed))
            joins = free_s > arrival_s and (where in free or there.queues)
            end_s = begin_s + there.prefill_s(cached, tokens, joins=joins)
            if follows and where not in followed:
                # What it shares is found one step later; others find it in that step, too.
                followed.add(where)
                end_s += there.step_s
            cost += end_s - arrival_s
            free[where] = end_s
            taken[where] = needed
        for where, end_s in free.items():
            there = self._outlooks[where]
            left_s = max(0.0, end_s - self._horizon_s)
            before_s = max(0.0, there.free_s - self._horizon_s)
            cost += (left_s * left_s - before_s * before_s) * self._delays[where] / 2
            evicted = max(0, taken[where] - max(0, there.evictable_from))
            token_s = there.replica.preset.timing.token_s
            cost += evicted * self._size * token_s * self._hit_share
        return cost


def _shared(one: list[BlockKey], other: list[BlockKey]) -> int:
    """Leading blocks that are the same: equal names mean equal beginnings."""
    both = range(min(len(one), len(other)))
    return bisect_left(both, True, key=lambda index: one[index].hash != other[index].hash)
