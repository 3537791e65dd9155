"""What a workload is, and how requests are made of one: sessions that begin, turns that follow."""

import heapq
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from random import Random
from typing import NamedTuple, NoReturn, TypeVar

from loadtests.sim.request import SimRequest
from loadtests.sim.workloads.contents import ContentSpace, joined

T = TypeVar("T")

_LEAD_SESSIONS = 4
"""Sessions of up to so many typical lengths are under way when the requests begin."""


class WorkloadError(ValueError):
    """A workload was asked for that cannot be: names the workload and the parameter."""


def parameter(default: T, doc: str, *, least: float | None = None, most: float | None = None) -> T:
    """A workload's field: its default, what it means, and its range, both ends included."""
    entry: T = field(default=default, metadata={"doc": doc, "least": least, "most": most})
    return entry


class Turn(NamedTuple):
    """One request of a session.

    Attributes:
        wait_s: Since the turn before it arrived, or since the session began.
        contents: What its prompt is made of.
        output_tokens: Length of the answer.
        answer: Its content, where later prompts have it; None: nobody sees it again.
    """

    wait_s: float
    contents: tuple[range, ...]
    output_tokens: int
    answer: range | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Turns in their order, each drawn when the one before it has been taken.

    Attributes:
        turns: At least one.
        has_id: Whether a client could say which requests belong to it.
        tenant: Whose it is.
        ttft_target_s: Within how many seconds its first tokens are wanted; None: no target.
    """

    turns: Iterator[Turn]
    has_id: bool
    tenant: str = ""
    ttft_target_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Workload(ABC):
    """Parameters, and the sessions that come of them; holds no state.

    Raises:
        WorkloadError: A parameter is out of its range.
    """

    def __post_init__(self) -> None:
        for entry in fields(self):
            least, most = entry.metadata.get("least"), entry.metadata.get("most")
            value = getattr(self, entry.name)
            if isinstance(value, float) and not math.isfinite(value):
                self.refuse(entry.name, f"expected a finite number, got {value}")
            if (least is not None and value < least) or (most is not None and value > most):
                bounds = " and ".join(
                    f"{word} {bound}"
                    for word, bound in (("at least", least), ("at most", most))
                    if bound is not None
                )
                self.refuse(entry.name, f"expected {bounds}, got {value}")

    def refuse(self, name: str, why: str) -> NoReturn:
        raise WorkloadError(f"{type(self).__name__}.{name}: {why}")

    @property
    @abstractmethod
    def turns_mean(self) -> float:
        """Turns a session."""

    @property
    @abstractmethod
    def session_s(self) -> float:
        """How long a session typically is from its first turn's arrival to its last's."""

    @abstractmethod
    def sessions(self, rng: Random, space: ContentSpace) -> Iterator[Session]:
        """Endless; what sessions share is made before the first."""

    @property
    def intensity_max(self) -> float:
        return 1.0

    def intensity(self, time_s: float) -> float:
        """How often sessions begin at a time, beside their mean: 0 … `intensity_max`."""
        return 1.0


def generate(
    workload: Workload,
    *,
    seed: int,
    requests_per_s: float,
    count: int | None = None,
    duration_s: float | None = None,
) -> Iterator[SimRequest]:
    """Requests of a workload in the order they arrive; the same arguments give the same ones.

    Sessions begin as a Poisson process (exponential gaps). They have been doing so for a while
    when time 0 comes, so that the rate is right from the start: of sessions that are under way by
    then only the turns from 0 on are given.

    Args:
        workload: What is asked.
        seed: Of all chance.
        requests_per_s: Mean rate of requests, not of sessions.
        count: At most so many requests.
        duration_s: Only requests that arrive before.

    Raises:
        WorkloadError: At the call: a rate not above 0, neither a count nor a duration, or a
            negative one.
        ContentsExhausted: From the iterator: more than 2³² different tokens.
    """
    if not 0 < requests_per_s < math.inf:
        raise WorkloadError(f"requests_per_s: expected a number above 0, got {requests_per_s}")
    if count is None and duration_s is None:
        raise WorkloadError("count, duration_s: expected at least one of them")
    for name, value in (("count", count), ("duration_s", duration_s)):
        if value is not None and not value >= 0:
            raise WorkloadError(f"{name}: expected at least 0, got {value}")
    return _requests(workload, seed, requests_per_s, count, duration_s)


def _requests(
    workload: Workload,
    seed: int,
    requests_per_s: float,
    count: int | None,
    duration_s: float | None,
) -> Iterator[SimRequest]:
    number = 0
    arrivals = _arrivals(workload, seed, requests_per_s)
    while count is None or number < count:
        arrival_s, turn, session, conversation = next(arrivals)
        if duration_s is not None and arrival_s >= duration_s:
            return
        yield SimRequest(
            number=number,
            arrival_s=arrival_s,
            prompt=joined(turn.contents),
            output_tokens=turn.output_tokens,
            answer=None if turn.answer is None else joined((turn.answer,)),
            conversation=conversation if session.has_id else None,
            tenant=session.tenant,
            ttft_target_s=session.ttft_target_s,
        )
        number += 1


def _arrivals(
    workload: Workload, seed: int, requests_per_s: float
) -> Iterator[tuple[float, Turn, Session, int]]:
    """All turns from time 0 on: when, what, of which session, and that session's number.

    1. Sessions that begin no later than the earliest turn in the heap put their first turn there.
    2. The earliest turn is taken; the next of its session takes its place.
    """
    starts = _starts(workload, Random(f"starts {seed}"), requests_per_s / workload.turns_mean)
    sessions = workload.sessions(Random(f"contents {seed}"), ContentSpace())
    heap: list[tuple[float, int, Turn, Session]] = []
    start_s = next(starts)
    sessions_begun = 0
    while True:
        while not heap or start_s <= heap[0][0]:
            session = next(sessions)
            turn = next(session.turns)
            heapq.heappush(heap, (start_s + turn.wait_s, sessions_begun, turn, session))
            sessions_begun += 1
            start_s = next(starts)
        arrival_s, session_number, turn, session = heap[0]
        if arrival_s >= 0:
            yield arrival_s, turn, session, session_number
        following = next(session.turns, None)
        if following is None:
            heapq.heappop(heap)
        else:
            again = (arrival_s + following.wait_s, session_number, following, session)
            heapq.heapreplace(heap, again)


def _starts(workload: Workload, rng: Random, sessions_per_s: float) -> Iterator[float]:
    """Poisson, thinned to the workload's intensity (Lewis & Shedler 1979, algorithm 1)."""
    highest = workload.intensity_max
    time_s = -_LEAD_SESSIONS * workload.session_s
    while True:
        time_s += rng.expovariate(sessions_per_s * highest)
        if rng.random() * highest < workload.intensity(time_s):
            yield time_s
