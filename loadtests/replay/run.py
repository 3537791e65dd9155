"""One replay from its first request to its last answer, or to the signal that ends it."""

import asyncio
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

from loadtests.replay.client import Sender, open_session
from loadtests.replay.drive import MonotonicClock, drive, watch_lag
from loadtests.replay.outcome import DROPPED, Outcome
from loadtests.replay.plan import Extent, Planned, Planner
from loadtests.sim.request import SimRequest

_TOLD_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent where, and how.

    Attributes:
        requests: Makes the same requests at every call.
        url: Of the server, without the path.
        on_schedule, concurrency: See `drive.drive`.
        timeout_s: From sending a request to the end of its answer.
    """

    requests: Callable[[], Iterable[SimRequest]]
    extent: Extent
    planner: Planner
    url: str
    api_key: str | None
    on_schedule: bool
    concurrency: int | None
    timeout_s: float


@dataclass(slots=True, kw_only=True)
class Replayed:
    """What has become of it so far; at the end, one outcome for every request.

    Attributes:
        lags_s: How late the event loop was, looked at many times a second.
    """

    outcomes: list[Outcome] = field(default_factory=list)
    lags_s: "array[float]" = field(default_factory=lambda: array("d"))
    elapsed_s: float = 0.0
    in_flight: int = 0
    in_flight_max: int = 0
    interrupted: bool = False


async def replay(
    load: Load,
    *,
    ended: Callable[[Outcome], None],
    told: Callable[[Replayed], None] | None = None,
) -> Replayed:
    """SIGINT and SIGTERM end it: what is in flight is cut, what was not sent is dropped.

    Args:
        ended: Told each outcome as it comes, those of dropped requests last.
        told: Told how it goes, twice a second.
    """
    loop = asyncio.get_running_loop()
    clock = MonotonicClock()
    replayed = Replayed()

    def note(outcome: Outcome) -> None:
        replayed.outcomes.append(outcome)
        ended(outcome)

    async with (
        open_session(load.api_key, load.timeout_s) as session,
        asyncio.TaskGroup() as tasks,
    ):
        plan: Iterator[Planned] = load.planner.plan(load.requests(), load.extent.first_s)
        plan = chain([next(plan)], plan)  # to begin with, a file is read: time starts after that
        start_s = clock.now_s()
        sender = Sender(session, load.url + load.planner.path, clock, start_s, note)
        driving = tasks.create_task(
            drive(
                plan,
                sender,
                clock,
                start_s,
                on_schedule=load.on_schedule,
                concurrency=load.concurrency,
            )
        )
        watching = [tasks.create_task(watch_lag(clock, replayed.lags_s))]
        if told is not None:
            watching.append(tasks.create_task(_tell(told, replayed, sender, clock, start_s)))
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, driving.cancel)
        await asyncio.wait([driving])
        for task in watching:
            task.cancel()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.remove_signal_handler(number)
    replayed.in_flight_max = sender.in_flight_max
    replayed.interrupted = driving.cancelled()
    if replayed.interrupted:
        _drop_the_rest(load, replayed, note)
    return replayed


def _drop_the_rest(load: Load, replayed: Replayed, note: Callable[[Outcome], None]) -> None:
    seen = {outcome.number for outcome in replayed.outcomes}
    for request in load.planner.plan(load.requests(), load.extent.first_s, bodies=False):
        if request.number not in seen:
            note(
                Outcome(
                    number=request.number,
                    scheduled_s=request.due_s,
                    ready_s=request.due_s,
                    error=DROPPED,
                    prompt_tokens_wanted=request.prompt_tokens,
                    output_tokens_wanted=request.output_tokens,
                )
            )


async def _tell(
    told: Callable[[Replayed], None],
    replayed: Replayed,
    sender: Sender,
    clock: MonotonicClock,
    start_s: float,
) -> None:
    while True:
        replayed.elapsed_s = clock.now_s() - start_s
        replayed.in_flight = sender.in_flight
        told(replayed)
        await asyncio.sleep(_TOLD_EVERY_S)
