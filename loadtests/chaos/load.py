"""Clients that ask and compare: every answer with the unbroken one that a quiet replica gave."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import httpx
import msgspec

from loadtests.chaos.answers import (
    Answer,
    Kind,
    Loss,
    Reference,
    StreamReader,
    loss_of,
    plain_answer,
    reference_of,
)
from loadtests.chaos.cases import CHAT, Case

# Silence this long is a loss by itself: the router ends whatever hangs long before.
_SILENCE_S = 90.0
_STREAMED_SHARE = 0.6
_USAGE_SHARE = 0.5
# What a client does between two requests: two cores are shared with the fleet.
_PAUSE_S = (0.0, 0.1)
# A connection may have been cut just before the request that found out.
_CUT_SLACK_S = 1.0


class Unsteady(Exception):
    """A quiet replica does not say the same twice, or says nothing: there is no reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A loss, and whose it was.

    Attributes:
        at_s: On the monotonic clock.
        replica: As the router named it; the first one of a stream that went on elsewhere.
    """

    loss: Loss
    case: str
    stream: bool
    replica: str | None
    request_id: str | None
    at_s: float


class Tally:
    """What the clients add up."""

    def __init__(self) -> None:
        self.plain = 0
        self.streams = 0
        self.reports: list[Report] = []

    def add(self, *, stream: bool) -> None:
        self.streams += stream
        self.plain += not stream

    def losses(self) -> Counter[Kind]:
        """How many of each kind."""
        return Counter(one.loss.kind for one in self.reports)

    def check(self) -> None:
        assert len(self.reports) <= self.plain + self.streams
        streams = sum(one.stream for one in self.reports)
        assert self.losses()[Kind.LOST] <= streams <= self.streams


async def references(
    url: str, cases: Sequence[Case], concurrency: int
) -> tuple[dict[Case, Reference], int]:
    """The unbroken answers, and how many cases are left out for not having just one.

    Each is asked for alone, as a whole; then all are streamed, many at once.

    Raises:
        Unsteady: half of them or more have not.
    """
    found: dict[Case, Reference] = {}
    async with _client(url, concurrency) as http:
        for case in cases:
            _, answer = await _ask(http, case, stream=False, usage=True)
            if not answer.done:
                raise Unsteady(f"{case.name}: {answer.error}")
            found[case] = reference_of(answer)
        turns = asyncio.Semaphore(concurrency)

        async def again(case: Case) -> Loss | None:
            async with turns:
                _, answer = await _ask(http, case, stream=True, usage=True)
            return _loss(case, found[case], answer, stream=True, usage=True)

        losses = await asyncio.gather(*(again(case) for case in cases))
    steady = {case: found[case] for case, loss in zip(cases, losses, strict=True) if loss is None}
    if len(steady) * 2 <= len(cases):
        raise Unsteady(next(f"{loss.what}" for loss in losses if loss is not None))
    return steady, len(cases) - len(steady)


class Load:
    """Concurrent clients of the router, until told to stop."""

    def __init__(
        self,
        url: str,
        references: Mapping[Case, Reference],
        *,
        clients: int,
        seed: int,
        worker_killed_since: Callable[[float], bool],
        on_loss: Callable[[Report], None],
    ) -> None:
        """
        Args:
            worker_killed_since: Whether a connection may have been cut on purpose since then.
        """
        self.tally = Tally()
        self._url = url
        self._references = references
        self._cases = list(references)
        self._clients = clients
        self._seed = seed
        self._worker_killed_since = worker_killed_since
        self._on_loss = on_loss

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and every answer has come to its end."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._clients):
                tasks.create_task(self._be_a_client(number, stop))

    async def _be_a_client(self, number: int, stop: asyncio.Event) -> None:
        random = Random(f"client {self._seed} {number}")
        async with _client(self._url, 1) as http:
            while not stop.is_set():
                stream = random.random() < _STREAMED_SHARE
                usage = random.random() < _USAGE_SHARE
                await self._once(http, random.choice(self._cases), stream=stream, usage=usage)
                await asyncio.sleep(random.uniform(*_PAUSE_S))

    async def _once(
        self, http: httpx.AsyncClient, case: Case, *, stream: bool, usage: bool
    ) -> None:
        started_s = time.monotonic()
        headers, answer = await _ask(http, case, stream=stream, usage=usage)
        self.tally.add(stream=stream)
        loss = _loss(case, self._references[case], answer, stream=stream, usage=usage)
        if loss is None:
            return
        if answer.cut and self._worker_killed_since(started_s - _CUT_SLACK_S):
            loss = Loss(kind=Kind.CUT, what=loss.what)
        report = Report(
            loss=loss,
            case=case.name,
            stream=stream,
            replica=headers.get("x-warmroute-replica"),
            request_id=headers.get("x-request-id"),
            at_s=time.monotonic(),
        )
        self.tally.reports.append(report)
        self._on_loss(report)


def _client(url: str, connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections)
    return httpx.AsyncClient(base_url=url, timeout=_SILENCE_S, limits=limits, trust_env=False)


def _loss(
    case: Case, reference: Reference, answer: Answer, *, stream: bool, usage: bool
) -> Loss | None:
    return loss_of(answer, reference, chat=case.path == CHAT, stream=stream, usage=usage)


async def _ask(
    http: httpx.AsyncClient, case: Case, *, stream: bool, usage: bool
) -> tuple[Mapping[str, str], Answer]:
    """The answer's headers and the answer, whatever became of it."""
    chat = case.path == CHAT
    reader = StreamReader(chat=chat)
    headers: Mapping[str, str] = {}
    try:
        async with http.stream(
            "POST", case.path, json=case.sent(stream=stream, usage=usage)
        ) as response:
            headers = response.headers
            if response.status_code != 200 or not stream:
                body = await response.aread()
                return headers, plain_answer(response.status_code, body, chat=chat)
            async for data in response.aiter_raw():
                reader.feed(data)
    except httpx.TransportError as error:
        reader.answer.cut = True
        if not headers:
            reader.answer.status = None
        reader.answer.error = reader.answer.error or f"{type(error).__name__}: {error}"
    except (msgspec.DecodeError, ValueError) as error:
        reader.answer.error = f"an answer that is none: {error}"
    return headers, reader.answer
