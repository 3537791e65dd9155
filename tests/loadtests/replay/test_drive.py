"""When requests are sent, in virtual time: on schedule, at a cap, in turn, until it is ended."""

import asyncio
import heapq
import itertools
from collections.abc import Coroutine
from typing import Any

import pytest

from loadtests.replay.drive import MonotonicClock, Turn, drive
from loadtests.replay.plan import Planned

START_S = 100.0


class VirtualClock:
    """Stands still until nobody can go on, then is at the next sleeper's time."""

    def __init__(self) -> None:
        self._now_s = START_S
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    async def until(self, at_s: float) -> None:
        wake: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (max(at_s, self._now_s), next(self._numbers), wake))
        await wake

    async def run(self, whole: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(whole)
        while not task.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers and not task.done():
                self._now_s, _, wake = heapq.heappop(self._sleepers)
                if not wake.done():
                    wake.set_result(None)
        await task


class Server:
    """Takes `takes_s` for each answer; notes every turn and when its request came."""

    def __init__(self, clock: VirtualClock, takes_s: float) -> None:
        self._clock = clock
        self._takes_s = takes_s
        self.turns: list[Turn] = []
        self.sent_s: list[float] = []
        self.in_flight = 0
        self.in_flight_max = 0
        self.cancelled = 0

    async def send(self, request: Planned, turn: Turn) -> None:
        self.turns.append(Turn(turn.scheduled_s - START_S, turn.ready_s - START_S))
        self.sent_s.append(self._clock.now_s() - START_S)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight_max, self.in_flight)
        try:
            await self._clock.until(self._clock.now_s() + self._takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1


def plan(*due_s: float) -> list[Planned]:
    return [
        Planned(number=number, due_s=due, prompt_tokens=1, output_tokens=1, body=b"")
        for number, due in enumerate(due_s)
    ]


async def test_open_loop_sends_on_schedule_whatever_the_server_does() -> None:
    clock = VirtualClock()
    server = Server(clock, takes_s=50.0)
    requests = plan(0.0, 0.5, 0.5, 3.0)
    await clock.run(drive(requests, server.send, clock, START_S, on_schedule=True))
    assert server.sent_s == [0.0, 0.5, 0.5, 3.0]
    assert server.turns == [(0.0, 0.0), (0.5, 0.5), (0.5, 0.5), (3.0, 3.0)]
    assert server.in_flight_max == 4


async def test_at_the_cap_what_is_due_waits_and_is_timed_from_when_it_was_due() -> None:
    clock = VirtualClock()
    server = Server(clock, takes_s=10.0)
    requests = plan(0.0, 1.0, 2.0, 3.0, 40.0)
    driven = drive(requests, server.send, clock, START_S, on_schedule=True, concurrency=2)
    await clock.run(driven)
    assert server.in_flight_max == 2
    assert server.sent_s == [0.0, 1.0, 10.0, 11.0, 40.0]
    assert [turn.scheduled_s for turn in server.turns] == [0.0, 1.0, 2.0, 3.0, 40.0]
    # None is late by the generator's doing: each went the moment it could.
    assert [turn.ready_s for turn in server.turns] == server.sent_s


async def test_closed_loop_ignores_timestamps() -> None:
    clock = VirtualClock()
    server = Server(clock, takes_s=10.0)
    requests = plan(0.0, 1000.0, 2000.0, 3000.0, 4000.0)
    driven = drive(requests, server.send, clock, START_S, on_schedule=False, concurrency=2)
    await clock.run(driven)
    assert server.in_flight_max == 2
    assert server.sent_s == [0.0, 0.0, 10.0, 10.0, 20.0]
    assert [turn.scheduled_s for turn in server.turns] == server.sent_s


async def test_a_generator_that_is_slow_to_make_bodies_is_late_and_shows() -> None:
    clock = VirtualClock()
    server = Server(clock, takes_s=1.0)

    def slow_plan():
        for request in plan(0.0, 1.0, 1.0):
            clock._now_s += 2.0
            yield request

    await clock.run(drive(slow_plan(), server.send, clock, START_S, on_schedule=True))
    assert server.sent_s == [2.0, 4.0, 6.0]
    assert [turn.ready_s for turn in server.turns] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("concurrency", [None, 2])
async def test_cancelled_it_cuts_what_is_in_flight_and_sends_no_more(
    concurrency: int | None,
) -> None:
    clock = VirtualClock()
    server = Server(clock, takes_s=1000.0)
    requests = plan(0.0, 0.0, 30.0)
    driving = asyncio.create_task(
        drive(requests, server.send, clock, START_S, on_schedule=True, concurrency=concurrency)
    )

    async def end_it() -> None:
        await clock.until(START_S + 5.0)
        driving.cancel()

    await clock.run(end_it())
    await asyncio.wait([driving])
    assert driving.cancelled()
    assert (server.cancelled, server.in_flight, len(server.sent_s)) == (2, 0, 2)


async def test_the_real_clock_never_wakes_early() -> None:
    clock = MonotonicClock()
    for wait_s in (0.0, 0.0004, 0.002, -1.0):
        at_s = clock.now_s() + wait_s
        await clock.until(at_s)
        assert clock.now_s() >= at_s
