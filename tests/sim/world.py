"""A world: routers, replicas and clients in virtual time, with trouble for a while, then peace.

    0 s           trouble_s                                                       the end
    ├─ requests, faults ─┼─ faults end ─ all requests end ─ all is followed ─ claims are true ─┤

Everything follows from the seed: what fails is seen again by running the seed again.
"""

import asyncio
import logging
import traceback
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any
from unittest import mock

from router.control import subscription
from router.control.backoff import Backoff
from router.core.lease_board import board_bytes
from tests.sim.asks import Ask, Asking
from tests.sim.checks import Checks
from tests.sim.client import SimClient
from tests.sim.faults import Faults
from tests.sim.journal import Journal
from tests.sim.loop import STARTS_AT_S, NothingLeft, SimLoop
from tests.sim.network import Network, Process
from tests.sim.pubsub import sim_subscriber
from tests.sim.replica import Kind, SimReplica
from tests.sim.scenario import Scenario, draw_scenario
from tests.sim.trouble import TICK_S, Trouble
from tests.sim.worker import Worker

_ENDS_WITHIN_S = 120.0
_HEALS_WITHIN_S = 60.0
_DELAYED_S = 3.0
_LAST_ASKS = 4
# Most worlds' replicas are ready before anybody asks.
_STARTS_IN_PEACE, _START_S = 0.8, 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Which check has failed, and how."""

    check: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a world.

    Attributes:
        digest: Of its journal: two runs of a seed have the same.
    """

    seed: int
    failure: Failure | None
    digest: str
    lines: int
    turns: int
    virtual_s: float
    faults: Faults
    asks: list[Ask]
    tail: list[str]


class _Over(Exception):
    """It has failed: nothing after that is of interest."""


class World:
    """One run of one seed."""

    def __init__(self, seed: int, scenario: Scenario | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.scenario = scenario or draw_scenario(self.rng)
        self.loop = SimLoop()
        self.journal = Journal(self.loop.time)
        self.network = Network(self.loop, self.rng)
        self.failure: Failure | None = None
        self.troubled = True
        self.checks = Checks(self)
        self.replicas: dict[str, SimReplica] = {}
        self.workers: list[Worker] = []
        size = board_bytes(self.scenario.workers, len(self.scenario.replicas))
        self.board = memoryview(bytearray(size))
        self._asking = Asking(self.rng, self.scenario.families)
        self.clients: list[SimClient] = []
        self._trouble = Trouble(self)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def asks(self) -> list[Ask]:
        return self._asking.asks

    def fail(self, check: str, message: str) -> None:
        if self.failure is None:
            self.journal.add("check", f"{check}: {message}")
            self.failure = Failure(check=check, message=message)
            self.loop.stop()

    def failed(self, error: BaseException | None) -> None:
        """An assertion of some part's own, or a bug that shows otherwise."""
        if isinstance(error, _Over) or error is None:
            return
        while error.__context__ is not None:  # what a parser's callback has raised
            error = error.__context__
        found = traceback.extract_tb(error.__traceback__)
        place = f"{found[-1].filename.rsplit('/', 1)[-1]}:{found[-1].name}" if found else "?"
        self.fail(place, f"{type(error).__name__}: {error}")

    def run(self) -> Outcome:
        errors = _Errors(self)
        logger = logging.getLogger("router")
        before = (logger.level, logger.propagate)
        logger.addHandler(errors)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        backoff = partial(Backoff, rng=self.rng)
        try:
            with (
                mock.patch.object(subscription, "subscriber", sim_subscriber),
                mock.patch.object(subscription, "Backoff", backoff),
                mock.patch.object(subscription, "_BLOCKS_AT_ONCE", self.scenario.blocks_at_once),
            ):
                self._run()
        finally:
            logger.removeHandler(errors)
            logger.setLevel(before[0])
            logger.propagate = before[1]
        return Outcome(
            seed=self.seed,
            failure=self.failure,
            digest=self.journal.digest,
            lines=self.journal.count,
            turns=self.loop.turns,
            virtual_s=self.loop.time() - STARTS_AT_S,
            faults=self.scenario.faults,
            asks=self.asks,
            tail=self.journal.tail(400),
        )

    def _run(self) -> None:
        self.loop.after_turn = self._after_turn
        story = self.loop.create_task(self._story())
        try:
            # RuntimeError: stopped by a failure. What the story has raised is looked at below.
            with suppress(RuntimeError, NothingLeft, AssertionError, _Over):
                self.loop.run_until_complete(story)
        finally:
            self.loop.after_turn = lambda: None
            for worker in self.workers:
                worker.kill()
            story.cancel()
            with suppress(NothingLeft):
                self.loop.call_later(1.0, self.loop.stop)
                self.loop.run_forever()
            if story.done() and not story.cancelled():
                self.failed(story.exception())
            elif self.failure is None:
                self.fail("requests", "nothing is left to happen, and it is not over")
            self.loop.close()

    def _after_turn(self) -> None:
        if self.failure is not None:
            return
        try:
            self.checks.after_turn()
        except AssertionError as error:
            self.failed(error)

    # The story

    async def _story(self) -> None:
        scenario = self.scenario
        self.network.faults = scenario.faults
        for name, spec in scenario.replicas.items():
            self.replicas[name] = SimReplica(name, spec, self.network, self.rng, self.journal)
        self.workers = [self._trouble.worker(number) for number in range(scenario.workers)]
        self.network.start(Process("c"))
        if self.rng.random() < _STARTS_IN_PEACE:
            await asyncio.sleep(_START_S)
        asking = self.loop.create_task(self._ask_all())
        ends_at = self.loop.time() + scenario.trouble_s
        while self.loop.time() < ends_at:
            await asyncio.sleep(TICK_S)
            self._trouble.tick()
        await asking
        self._make_peace()
        await self._until(self._is_quiet, _ENDS_WITHIN_S, "all requests are over")
        await self._until(
            lambda: (
                all(replica.ready for replica in self.replicas.values())
                and all(worker.synced for worker in self.workers)
            ),
            _HEALS_WITHIN_S,
            "all replicas are ready, and all events are followed",
        )
        await asyncio.sleep(_DELAYED_S)  # subscriptions that were sent during a partition arrive
        for replica in self.replicas.values():
            replica.touch()
        await asyncio.sleep(1.0)
        await self._until(self._all_told, _HEALS_WITHIN_S, "all batches are applied")
        self.checks.healed()
        await self._last_asks()
        prediction = self.workers[0].config.prediction
        await asyncio.sleep(max(prediction.ttl_s, prediction.without_events_ttl_s) + 1.0)
        self.checks.over()

    def _make_peace(self) -> None:
        self.journal.add("world", "peace")
        self.troubled = False
        self.network.heal()
        self._trouble.end()

    # Requests

    def _is_quiet(self) -> bool:
        """Whether all requests are over, and all workers are there to stay."""
        return (
            all(ask.outcomes for ask in self.asks)
            and len(self.workers) == self.scenario.workers
            and not any(worker.draining for worker in self.workers)
        )

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self.failed(task.exception())

    async def _ask_all(self) -> None:
        scenario = self.scenario
        for _ in range(scenario.requests):
            await asyncio.sleep(
                self.rng.expovariate(scenario.requests / scenario.trouble_s)
                if self.rng.random() < 0.7
                else 0.0
            )
            self.spawn(self._ask(self._asking.next()))

    async def _ask(self, ask: Ask) -> None:
        number = self.rng.randrange(self.scenario.workers)
        self.journal.add("client", f"asks {number} for {ask.number}: {len(ask.prompt)} tokens")
        worker = next((one for one in self.workers if one.number == number), None)
        client = next((one for one in self.clients if one.idle and one.worker is worker), None)
        if worker is None:
            self.ask_over(ask, "refused")
            return
        if client is None or self.rng.random() < 0.2:
            client = made = SimClient(self, worker)
            self.clients.append(client)
            try:
                await self.loop.create_connection(lambda: made, f"c.{worker.process.name}", 80)
            except ConnectionRefusedError:
                self.ask_over(ask, "refused")
                return
        if client.idle:
            client.send(ask)
        else:
            self.ask_over(ask, "refused")

    def ask_over(self, ask: Ask, outcome: str) -> None:
        self.journal.add("client", f"{ask.number} is over: {outcome}")
        ask.outcomes.append(outcome)

    async def _last_asks(self) -> None:
        """In peace every request is answered. On new connections: old ones may be closed by now."""
        self.clients.clear()
        for _ in range(_LAST_ASKS):
            ask = self._asking.next()
            await self._ask(ask)
            await self._until(self._is_quiet, _ENDS_WITHIN_S, "a last request is over")
            most_tokens = len(ask.prompt) + int(ask.fields["max_tokens"])
            too_long = most_tokens > self.scenario.smallest_cache_tokens
            if ask.outcomes != ["answered"] and not too_long:
                self.fail("requests", f"in peace request {ask.number} ended {ask.outcomes}")

    def _all_told(self) -> bool:
        """Whether every worker has applied the last batch of every replica; or, where it cannot be
        had again, nothing."""
        for worker in self.workers:
            for name, status in worker.model.subscriptions.items():
                replica = self.replicas[name]
                seq = -1 if status.seq is None else status.seq
                nothing = seq < 0 and replica.spec.kind is not Kind.OURS
                if not status.synced or not (nothing or seq == replica.engine.last_seq):
                    return False
        return True

    async def _until(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        ends_at = self.loop.time() + within_s
        while not condition():
            if self.loop.time() > ends_at:
                self.fail("liveness", f"not within {within_s:.0f} s: {what}: {self._standing()}")
                raise _Over
            await asyncio.sleep(0.05)

    def _standing(self) -> str:
        """How far everybody is with everybody's events."""
        return ", ".join(
            f"{worker.process.name} of {name} ({self.replicas[name].spec.kind.value}):"
            f" {status.seq} of {self.replicas[name].engine.last_seq}"
            f" synced={status.synced} {worker.model.fleet[name].state}"
            for worker in self.workers
            for name, status in worker.model.subscriptions.items()
        )


class _Errors(logging.Handler):
    """What the router logs as an error is one of its own: a failure."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._world.failed(error)
        else:
            self._world.fail("log", record.getMessage())


def run_seed(seed: int) -> Outcome:
    return World(seed).run()
