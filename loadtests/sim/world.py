"""One run in virtual time: requests, a router, replicas, and a heap of what happens when.

Nothing but the arguments decides what happens: the same ones give the same run, to the last bit.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from loadtests.sim.replica import Ended, Outcome, SimReplica
from loadtests.sim.request import SimRequest
from loadtests.sim.router import HoldsBack, MakeRouter, ReplicaFacts
from loadtests.sim.seeing import Coming, SeesEverything
from protocol.kv_events import KvEvent
from replica.core.evictions import EvictionName
from replica.core.queue_orders import QueueOrderName
from replica.core.timing import Preset


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """One replica of the fleet.

    Attributes:
        slowness: How many times as long as the preset says everything takes.
        cache_blocks: None: as many as the preset's memory holds.
        eviction: How its cache chooses what to give up.
        queue_order: In which order it admits what waits.
        event_delay_s: From a KV event's making to its being heard.
        restarts_at_s: When it comes back empty.
    """

    preset: Preset
    block_size: int = 64
    slowness: float = 1.0
    cache_blocks: int | None = None
    eviction: EvictionName = "lru"
    queue_order: QueueOrderName = "response_ratio"
    event_delay_s: float = 0.01
    restarts_at_s: tuple[float, ...] = ()

    @property
    def blocks(self) -> int:
        return self.cache_blocks or self.preset.cache_tokens // self.block_size


@dataclass(slots=True)
class Served:
    """What became of one request.

    Attributes:
        replica: Which one it was sent to; None: none, it was turned away.
        first_token_s, ended_s: Seconds after its arrival; None: it never came.
    """

    request: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    replica: int | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    cached_tokens: int = 0
    failed: bool = False
    ttft_target_s: float | None = None

    @property
    def tpot_s(self) -> float | None:
        """Seconds per output token after the first; None of one token, or of no whole answer."""
        if self.failed or self.first_token_s is None or self.ended_s is None:
            return None
        if self.output_tokens < 2:
            return None
        return (self.ended_s - self.first_token_s) / (self.output_tokens - 1)


@dataclass(slots=True)
class Run:
    """One finished run.

    Attributes:
        computed_tokens: Prompt tokens each replica computed.
        busy_s: How long each was at work.
        ended_s: Virtual time at the end.
    """

    served: list[Served] = field(default_factory=list)
    computed_tokens: list[int] = field(default_factory=list)
    busy_s: list[float] = field(default_factory=list)
    ended_s: float = 0.0


class World:
    """The heap, and who is called from it."""

    def __init__(self, specs: Sequence[ReplicaSpec], make_router: MakeRouter, seed: int) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = 0
        self._specs = specs
        self._replicas = [self._replica(number, spec) for number, spec in enumerate(specs)]
        facts = [
            ReplicaFacts(
                id=f"r{number}",
                block_size=spec.block_size,
                capacity_tokens=spec.blocks * spec.block_size,
                max_running=spec.preset.max_running,
            )
            for number, spec in enumerate(specs)
        ]
        self.router = make_router(facts, Random(seed))
        self._under_way: dict[int, Served] = {}
        self.run_so_far = Run()
        for number, spec in enumerate(specs):
            for when in spec.restarts_at_s:
                self.at(when, partial(self._restart, number))
        self._more_to_come = True

    def run(
        self, requests: Iterable[SimRequest], progress: Callable[[float], None] | None = None
    ) -> Run:
        """Serves all of them, to the last token.

        Args:
            requests: By arrival.
            progress: Told the virtual time, every now and then.
        """
        coming = Coming(requests)
        if isinstance(self.router, SeesEverything):
            self.router.see(self._replicas, coming)
        self._next_arrival(coming)
        if self.router.poll_interval_s is not None:
            self.at(0.0, self._poll)
        if isinstance(self.router, HoldsBack):
            self.router.hold_back(self._send, self._turn_away)
            self.at(0.0, partial(self._tick, self.router))
        told = 0
        while self._heap and (self._more_to_come or self._under_way):
            when, _, then = heapq.heappop(self._heap)
            assert when >= self.now, "time goes forward"
            self.now = when
            then(when)
            told += 1
            if progress is not None and told % 4096 == 0:
                progress(self.now)
        run = self.run_so_far
        run.ended_s = self.now
        run.computed_tokens = [one.computed_tokens for one in self._replicas]
        run.busy_s = [one.busy_s for one in self._replicas]
        return run

    def at(self, when: float, then: Callable[[float], None]) -> None:
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, then))

    def _next_arrival(self, coming: Coming) -> None:
        request = coming.peek()
        if request is None:
            self._more_to_come = False
            return

        def arrive(now: float) -> None:
            coming.take()
            self._next_arrival(coming)
            self._arrive(request, now)

        self.at(max(request.arrival_s, self.now), arrive)

    def _arrive(self, request: SimRequest, now: float) -> None:
        served = Served(
            request=request.number,
            arrival_s=now,
            prompt_tokens=len(request.prompt),
            output_tokens=request.output_tokens,
            ttft_target_s=request.ttft_target_s,
        )
        self.run_so_far.served.append(served)
        self._under_way[request.number] = served
        replica = self.router.route(request, now)
        if replica is not None:
            served.replica = replica
            self._replicas[replica].submit(request, now)

    def _send(self, request: SimRequest, replica: int, now: float) -> None:
        """It has waited in the router."""
        self._under_way[request.number].replica = replica
        self._replicas[replica].submit(request, now)

    def _turn_away(self, request: SimRequest, now: float) -> None:
        served = self._under_way.pop(request.number)
        served.ended_s = now - served.arrival_s
        served.failed = True

    def _tick(self, router: HoldsBack, now: float) -> None:
        router.tick(now)
        self.at(now + router.tick_s, partial(self._tick, router))

    def _replica(self, number: int, spec: ReplicaSpec) -> SimReplica:
        preset = spec.preset
        if spec.slowness != 1.0:
            preset = replace(preset, timing=preset.timing.slowed(spec.slowness))
        return SimReplica(
            preset=preset,
            block_size=spec.block_size,
            cache_blocks=spec.blocks,
            at=self.at,
            outcomes=partial(self._outcome, number),
            published=partial(self._published, number),
            eviction=spec.eviction,
            queue_order=spec.queue_order,
        )

    def _outcome(self, replica: int, outcome: Outcome, now: float) -> None:
        served = self._under_way[outcome.request.number]
        if not isinstance(outcome, Ended):
            served.first_token_s = now - served.arrival_s
            self.router.first_token(outcome.request, replica, now)
            return
        del self._under_way[outcome.request.number]
        served.ended_s = now - served.arrival_s
        served.failed = outcome.lost or outcome.refused
        if outcome.refused:
            self.router.refused(outcome.request, replica, now)
        elif not outcome.lost:  # of those the router hears when it hears of its restart
            served.cached_tokens = outcome.cached_tokens
            self.router.done(outcome.request, replica, outcome.cached_tokens, now)

    def _published(self, replica: int, events: list[KvEvent], now: float) -> None:
        if self.router.hears_events:
            delay_s = self._specs[replica].event_delay_s
            self.at(now + delay_s, lambda at: self.router.events(replica, events, at))

    def _restart(self, replica: int, now: float) -> None:
        self._replicas[replica].restart(now)
        self.router.lost(replica, now)

    def _poll(self, now: float) -> None:
        for number, replica in enumerate(self._replicas):
            self.router.load(number, replica.load(), now)
        assert self.router.poll_interval_s is not None
        self.at(now + self.router.poll_interval_s, self._poll)

    def check(self) -> None:
        for replica in self._replicas:
            replica.check()


def simulate(
    requests: Iterable[SimRequest],
    make_router: MakeRouter,
    specs: Sequence[ReplicaSpec],
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Run:
    """One run of one router over one fleet."""
    return World(specs, make_router, seed).run(requests, progress)
