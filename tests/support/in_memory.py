"""A data plane without sockets or a clock: every byte, loss and moment is the test's to give."""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast

from protocol.errors import ProtocolError, Unavailable
from router.config import LimitsConfig, TimeoutsConfig
from router.core.answer_scan import AnswerUsage
from router.dataplane.client_connection import ClientConnection
from router.dataplane.http1 import OwnAnswer, Request
from router.dataplane.pool import ReplicaPool
from router.dataplane.replica_connection import ReplicaConnection
from router.dataplane.route import EventLog, UnderWay
from router.dataplane.tunnel_connection import TunnelConnection


class Loop:
    """As much of an event loop as the data plane uses. Runs only when told."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._ready: deque[Callable[[], object]] = deque()

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *arguments: object) -> None:
        self._ready.append(lambda: callback(*arguments))

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> "Task":
        task = Task(coroutine)
        self.call_soon(task.run)
        return task

    def run(self, turns_max: int = 10_000) -> None:
        """Until nothing is left to do."""
        for _ in range(turns_max):
            if not self._ready:
                return
            self._ready.popleft()()
        raise AssertionError("the data plane does not come to rest")


class Task:
    """A coroutine that never has to wait."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine: Coroutine[Any, Any, None] | None = coroutine

    def run(self) -> None:
        if self._coroutine is None:
            return
        try:
            self._coroutine.send(None)
        except StopIteration:
            return
        raise AssertionError("it waits")

    def cancel(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()
            self._coroutine = None


Side = ClientConnection | ReplicaConnection | TunnelConnection


class Transport:
    """One side's end of a connection: keeps what is written, loses the connection when told."""

    def __init__(self, loop: Loop, protocol: Side, *, halves: bool = True) -> None:
        """
        Args:
            halves: Whether they can be closed apart, as TCP's can and TLS's cannot.
        """
        self._loop = loop
        self._protocol = protocol
        self.sent = b""
        self.halves = halves
        self.reading = True
        self.closing = False
        self.ended = False
        self.lost = False
        self.unsent_bytes = 0
        protocol.connection_made(cast(Any, self))

    # What the other side does

    def feed(self, data: bytes) -> None:
        if not self.closing and self.reading and not self.ended and data:
            self._protocol.data_received(data)

    def end(self, error: Exception | None = None) -> None:
        """The other side closes its half, or all where that is the same, or resets."""
        if self.closing:
            return
        if error is None and self.reading and not self.ended:
            self.ended = True
            stays = self._protocol.eof_received()
            assert self.halves or not stays
            if stays or self.closing:
                return
        self.closing = True
        self._loop.call_soon(self._lose, error)

    # asyncio.Transport

    def write(self, data: bytes) -> None:
        if not self.closing:
            self.sent += data

    def write_eof(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return self.halves

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def get_extra_info(self, name: str) -> object:
        return ("192.0.2.1", 5) if name == "peername" else None

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lose, None)

    def _lose(self, error: Exception | None) -> None:
        assert not self.lost
        self.lost = True
        self._protocol.connection_lost(error)


class Pool(ReplicaPool):
    """Connections that are made at once; `transports` has all there ever were."""

    def __init__(self, loop: Loop, limits: LimitsConfig) -> None:
        super().__init__(
            "replica", 1, max_connections=100, connect_timeout_s=1.0,
            max_head_bytes=limits.max_head_bytes,
        )  # fmt: skip
        self._loop = loop
        self._limits = limits
        self.transports: list[Transport] = []
        self.halves = True

    async def open(self, make: Callable[[ReplicaPool, int], Any]) -> Any:
        connection = make(self, self._limits.max_head_bytes)
        self.transports.append(Transport(self._loop, connection, halves=self.halves))
        self._open.add(connection)
        return connection


class Assignment:
    replica_id = "r0"
    matched_tokens = 0
    body = rewriter = None
    asks = b""
    lost = False

    def __init__(self, plane: "InMemoryPlane") -> None:
        self.pool = plane.pool
        self._plane = plane
        self._released = False
        plane.leases += 1

    def first_byte(self, now: float, status: int) -> None:
        assert not self._released

    def release(self, outcome: str, status: int, usage: AnswerUsage, now: float) -> None:
        assert not self._released
        self._released = True
        self._plane.leases -= 1
        self._plane.outcomes.append(outcome)


class Route:
    def __init__(self, plane: "InMemoryPlane") -> None:
        self._plane = plane
        self._attempts = 0
        self._finished = False

    hedge_after_s: float | None = None
    log: EventLog | None = None

    def enter(self, exchange: UnderWay, now: float) -> bool:
        return True

    def assign(self, now: float) -> Assignment:
        if self._attempts == 2:
            raise Unavailable("no replica is left")
        self._attempts += 1
        return Assignment(self._plane)

    def may_retry(self, now: float) -> bool:
        return self._attempts < 2

    def resume(self, broken: ProtocolError) -> None:
        raise broken

    def finished(self, exchange: UnderWay, now: float) -> None:
        assert not self._finished
        self._finished = True
        self._plane.finished += 1
        self._plane.statuses.append(exchange.status)


class InMemoryPlane(logging.Handler):
    """One client, one pool; the handler between them. Whatever is logged as an error is kept."""

    def __init__(self, limits: LimitsConfig, timeouts: TimeoutsConfig) -> None:
        super().__init__(logging.ERROR)
        self.limits = limits
        self.timeouts = timeouts
        self.draining = False
        self.loop = Loop()
        self.pool = Pool(self.loop, limits)
        self.leases = self.opened = self.finished = self.connections = 0
        self.outcomes: list[str] = []
        self.statuses: list[int] = []
        self.errors: list[str] = []
        self._ids = itertools.count()
        self.connection = ClientConnection(self, cast(Any, self.loop))
        self.client = Transport(self.loop, self.connection)

    def emit(self, record: logging.LogRecord) -> None:
        self.errors.append(self.format(record))

    def open(self, request: Request) -> Route | OwnAnswer:
        if request.path == b"/own":
            return OwnAnswer(200, b"{}")
        self.opened += 1
        return Route(self)

    def new_request_id(self) -> bytes:
        return b"id-%d" % next(self._ids)

    def connection_opened(self, connection: ClientConnection) -> None:
        self.connections += 1

    def connection_closed(self, connection: ClientConnection) -> None:
        self.connections -= 1

    def refused(self, request: Request, error: ProtocolError) -> None:
        pass

    def check_over(self) -> None:
        """Everybody has left: nothing is held, and each request ended once."""
        assert not self.errors, self.errors
        assert self.leases == self.connections == 0
        assert self.finished == self.opened
        assert self.client.lost
        self.pool.check()
        assert self.pool.open_connections == 0
        assert all(one.lost for one in self.pool.transports)
