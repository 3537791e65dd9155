"""Inflicts faults on a running fleet one after another, and sees to it that each is over again."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from random import Random

import httpx

from loadtests.chaos.faults import Fault, Order, next_order
from loadtests.chaos.fleet import Fleet, NotReady
from loadtests.chaos.processes import Child, Gone, until_gone

# From one fault to the next; while others are not over there may be none to inflict.
_INTERVAL_S = (0.5, 3.0)
_ENDS_WITHIN_S = 20.0
_GONE_WITHIN_S = 10.0
_STARTS_MOST = 3


class Trouble:
    """Faults so far, by kind, and what did not go as it should have."""

    def __init__(self, fleet: Fleet, seed: int, say: Callable[[str], None]) -> None:
        self.faults: Counter[Fault] = Counter()
        self.failed_starts = 0
        self.findings: list[str] = []
        self.worker_kills_s: list[float] = []
        self._fleet = fleet
        self._random = Random(f"faults {seed}")
        self._say = say
        self._troubled: set[str] = set()
        self._workers_killed: set[int] = set()

    async def run(self, seconds: float) -> None:
        """Faults for so long; returns when all are over."""
        ends_s = time.monotonic() + seconds
        async with asyncio.TaskGroup() as tasks:
            while True:
                pause_s = self._random.uniform(*_INTERVAL_S)
                if time.monotonic() + pause_s >= ends_s:
                    await asyncio.sleep(max(0.0, ends_s - time.monotonic()))
                    return
                await asyncio.sleep(pause_s)
                order = await self._next()
                if order is not None:
                    if order.victim is not None:
                        self._troubled.add(order.victim)
                    tasks.create_task(self._see_through(order))

    def worker_killed_since(self, since_s: float) -> bool:
        """Whether a worker of the router was killed, on the monotonic clock."""
        return any(at_s >= since_s for at_s in self.worker_kills_s)

    def look_for_ended(self) -> None:
        """A process that ended although nobody touched it is a finding."""
        children = [self._fleet.router, *self._fleet.replicas.values()]
        for child in children:
            if child.name not in self._troubled and not child.running:
                self._found(f"{child.name} ended ({child.exit_code}): {child.last_lines()}")

    # inside

    async def _next(self) -> Order | None:
        try:
            states = await self._fleet.states()
        except httpx.HTTPError:
            return None
        return next_order(
            states,
            self._troubled,
            self._random,
            between_bytes_s=self._fleet.setting.between_bytes_s,
            so_far=self.faults,
            kill_workers=self._fleet.setting.workers > 1,
        )

    async def _see_through(self, order: Order) -> None:
        """The fault and its end; what goes wrong is a finding, not the end of the run."""
        try:
            if order.victim is None:
                await self._kill_worker()
                return
            self._count(order.fault, f"{order.victim}, for {order.lasts_s:.1f} s")
            await self._inflict(order.fault, order.victim, order.lasts_s)
            await self._fleet.until_ready(order.victim)
        except (Gone, NotReady, TimeoutError, httpx.HTTPError) as error:
            what = str(error) or type(error).__name__
            self._found(f"after {order.fault} of {order.victim}: {what}")
        else:
            if order.victim is not None:
                self._troubled.discard(order.victim)

    async def _inflict(self, fault: Fault, victim: str, lasts_s: float) -> None:
        child = self._fleet.replicas[victim]
        match fault:
            case Fault.PAUSE_SHORT | Fault.PAUSE_LONG:
                await child.pause(lasts_s)
            case Fault.DRAIN:
                await self._fleet.order(victim, "drain")
                await asyncio.sleep(lasts_s)
                await self._fleet.order(victim, "undrain")
            case Fault.KILL_API:
                child.kill_first()
                await self._start_again(child, lasts_s)
            case Fault.KILL_ENGINE:
                child.kill_below()
                await self._start_again(child, lasts_s)
            case Fault.KILL_REPLICA:
                child.kill_all()
                await self._start_again(child, lasts_s)
            case Fault.RESTART:
                child.terminate()
                await self._start_again(child, lasts_s)
            case Fault.KILL_WORKER:
                raise AssertionError("a replica has no workers")

    async def _start_again(self, child: Child, after_s: float) -> None:
        """As a supervisor does: a while after it has ended, on the same ports, again if need be."""
        await child.wait(_ENDS_WITHIN_S)
        await asyncio.sleep(after_s)
        groups = []
        for attempt in range(1, _STARTS_MOST + 1):
            groups.append(child.group)
            await child.start()
            try:
                await self._fleet.until_ready(child.name)
                break
            except NotReady as error:
                if child.running or attempt == _STARTS_MOST:
                    raise
                self.failed_starts += 1
                self._say(f"a start failed: {error}")
        for group in groups:
            try:
                await until_gone(group, _GONE_WITHIN_S)
            except TimeoutError:
                self._found(f"{child.name}: an engine outlived its API process; it was killed")

    async def _kill_worker(self) -> None:
        workers = (await self._fleet.describe())["workers"]
        ready = [one["pid"] for one in workers if one["ready"]]
        fresh = [pid for pid in ready if pid not in self._workers_killed]
        if len(fresh) < 2:
            return  # the other one is not back yet
        pid = self._random.choice(sorted(fresh))
        self._workers_killed.add(pid)
        self._count(Fault.KILL_WORKER, f"process {pid}")
        self.worker_kills_s.append(time.monotonic())
        self._fleet.router.kill_descendant(pid)

    def _count(self, fault: Fault, of: str) -> None:
        self.faults[fault] += 1
        self._say(f"{fault}: {of}")

    def _found(self, what: str) -> None:
        self.findings.append(what)
        self._say(f"FOUND: {what}")
