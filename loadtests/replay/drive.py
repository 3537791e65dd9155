"""Sends a plan: on its schedule, with at most so many at once, or both. The clock is an argument.

open loop             a request goes when it is due, whatever the server does
closed loop           a request goes when another has ended; timestamps are ignored
open loop with a cap  what is due at the cap waits its turn, and its wait counts
"""

import asyncio
import time
from array import array
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple, Protocol

from loadtests.replay.plan import Planned

_LAG_INTERVAL_S = 0.02


class Clock(Protocol):
    def now_s(self) -> float: ...

    async def until(self, at_s: float) -> None:
        """Lets others run at least once, also when that time is past."""


class MonotonicClock:
    """Not the event loop's: uvloop's counts whole milliseconds, and stands still within a turn."""

    def now_s(self) -> float:
        return time.monotonic()

    async def until(self, at_s: float) -> None:
        await asyncio.sleep(0)
        while (left_s := at_s - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left_s)  # it may wake a little early


class Turn(NamedTuple):
    """When a request was scheduled, and when it could be sent, on the clock's time."""

    scheduled_s: float
    ready_s: float


Send = Callable[[Planned, Turn], Awaitable[None]]
"""Sends one request and returns when its answer has ended, however."""


async def drive(
    plan: Iterable[Planned],
    send: Send,
    clock: Clock,
    start_s: float,
    *,
    on_schedule: bool,
    concurrency: int | None = None,
) -> None:
    """Returns when every request has been sent and has ended; cancelled, all in flight are too.

    Args:
        plan: In the order of arrival. The next request is taken, and its body made, before it is
            due.
        send: Never raises.
        start_s: The clock's time at which the plan's begins.
        on_schedule: Whether requests wait until they are due.
        concurrency: At most so many at once.
    """
    assert on_schedule or concurrency is not None
    assert concurrency is None or concurrency > 0
    slots = None if concurrency is None else asyncio.Semaphore(concurrency)
    # Until then the cap held everything up: a request that was due before is not late by our doing.
    let_through_s = start_s
    async with asyncio.TaskGroup() as tasks:
        for request in plan:
            if on_schedule:
                await clock.until(start_s + request.due_s)
            if slots is not None:
                held = slots.locked()
                await slots.acquire()
                if held or not on_schedule:
                    let_through_s = clock.now_s()
            due_s = start_s + request.due_s if on_schedule else let_through_s
            turn = Turn(due_s, max(due_s, let_through_s))
            tasks.create_task(_one(request, turn, send, slots))
            await asyncio.sleep(0)  # it is sent now, not after the next one's body is made


async def _one(request: Planned, turn: Turn, send: Send, slots: asyncio.Semaphore | None) -> None:
    try:
        await send(request, turn)
    finally:
        if slots is not None:
            slots.release()


async def watch_lag(clock: Clock, lags_s: "array[float]") -> None:
    """Notes how late the event loop wakes a sleeper, until cancelled."""
    while True:
        due_s = clock.now_s() + _LAG_INTERVAL_S
        await clock.until(due_s)
        lags_s.append(clock.now_s() - due_s)
