"""The load generator, a process of its own: told by lines of JSON, it answers each with one.

As little as a client can do: precomputed bytes out, answers in until they are whole. An answer that
is not a 200, or lacks a part, or never comes, is an error.
"""

import asyncio
import gc
import sys
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import cast

import msgspec
import uvloop

from loadtests.overhead.answers import AnswerReader
from loadtests.overhead.cases import PLAIN, Case, Requests
from loadtests.overhead.orders import Done, Idle, LetGo, Open, Order
from loadtests.overhead.timer import Timer
from loadtests.quantiles import quantile

# What is not answered this long after the last request was sent is an error.
_PATIENCE_S = 60.0
_CLOSING_S = 5.0
_ERRORS_MAX = 1000
_CONNECTING_AT_ONCE = 200


class _Connection(asyncio.Protocol):
    """One keep-alive connection. Its load says what it sends next."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._reader = AnswerReader(load.case)
        self._came_s = 0.0  # when the request that is out came to be sent
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._load.connections.add(self)
        self._load.free(self)

    def send(self, request: bytes, came_s: float) -> None:
        self._came_s = came_s
        self.waiting = True
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        load = self._load
        load.reads += 1
        if not self._reader.feed(data):
            return
        self.waiting = False
        wrong = self._reader.finish()
        load.answered(time.monotonic() - self._came_s, wrong)
        load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._load.lost(self, "the connection was closed" if error is None else str(error))

    def close(self) -> None:
        self._transport.abort()


class _Load(ABC):
    """What all connections of one order share. `next_request` is None when no more are sent."""

    def __init__(self, port: int, case: Case, numbers: Callable[[], int]) -> None:
        self.case = case
        self.reads = 0
        self.requests = 0
        self.errors: list[str] = []
        self.latencies = array("d")
        self.connections: set[_Connection] = set()
        self._port = port
        self._made = Requests(case)
        self._numbers = numbers
        self._ending = False
        self._ended = asyncio.Event()
        self._closed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._started_s = self._ended_s = time.monotonic()
        self._busy_s = time.process_time()

    async def connect_many(self, count: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(self.connect())

    async def connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), "127.0.0.1", self._port
            )
        except OSError as error:
            self.errors.append(str(error))

    def request(self) -> bytes:
        return self._made.request(self._numbers())

    def answered(self, latency_s: float, wrong: str) -> None:
        self.requests += 1
        if wrong:
            self.errors.append(wrong)
        else:
            self.latencies.append(latency_s)

    def lost(self, connection: _Connection, why: str) -> None:
        self.connections.discard(connection)
        if connection.waiting:
            self.requests += 1
            self.errors.append(why)
        if not self._ending and len(self.errors) < _ERRORS_MAX:
            task = asyncio.create_task(self.connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._end_if_over()
        if not self.connections:
            self._closed.set()

    @abstractmethod
    def free(self, connection: _Connection) -> None:
        """The connection has nothing to do: it is new, or its answer has come."""

    def _end_if_over(self) -> None:
        if self._ending and not any(one.waiting for one in self.connections):
            self._ended.set()

    async def end(self) -> None:
        """No more requests; waits for the answers to those that are out, then closes all."""
        self._ending = True
        self._end_if_over()
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._ended.wait()
        self._ended_s = time.monotonic()
        if not self.connections:
            return
        for connection in self.connections:
            connection.close()
        async with asyncio.timeout(_CLOSING_S):
            await self._closed.wait()

    def done(self) -> Done:
        """What came of it, from the making of this to its end."""
        seconds = self._ended_s - self._started_s
        ordered = array("d", sorted(self.latencies))
        return Done(
            requests=self.requests,
            errors=len(self.errors),
            error=self.errors[0] if self.errors else "",
            seconds=seconds,
            p50_s=quantile(ordered, 0.5),
            p99_s=quantile(ordered, 0.99),
            busy=(time.process_time() - self._busy_s) / max(seconds, 1e-9),
            reads_per_answer=self.reads / max(self.requests, 1),
        )


class _ClosedLoad(_Load):
    def free(self, connection: _Connection) -> None:
        if self._ending:
            self._end_if_over()
        elif len(self.errors) < _ERRORS_MAX:
            connection.send(self.request(), time.monotonic())


class _IdleLoad(_Load):
    """Asks once over each connection, then keeps it."""

    def __init__(self, port: int, case: Case, numbers: Callable[[], int]) -> None:
        super().__init__(port, case, numbers)
        self._asked: set[_Connection] = set()
        self._answered = asyncio.Event()

    def free(self, connection: _Connection) -> None:
        if connection not in self._asked:
            self._asked.add(connection)
            connection.send(self.request(), time.monotonic())
        if not any(one.waiting for one in self.connections):
            self._answered.set()

    async def all_answered(self) -> None:
        self._answered.clear()
        if any(one.waiting for one in self.connections):
            async with asyncio.timeout(_PATIENCE_S):
                await self._answered.wait()


class _OpenLoad(_Load):
    """Requests wait in `_came` for a free connection, connections in `_free` for a request."""

    def __init__(self, order: Open, numbers: Callable[[], int]) -> None:
        super().__init__(order.port, order.case, numbers)
        self._free: list[_Connection] = []
        self._came: deque[float] = deque()
        self._rng = Random(order.seed)
        self._rate_per_s = order.rate_per_s
        self._next_s = 0.0

    def free(self, connection: _Connection) -> None:
        if self._came:
            connection.send(self.request(), self._came.popleft())
        else:
            self._free.append(connection)
            self._end_if_over()

    def lost(self, connection: _Connection, why: str) -> None:
        if connection in self._free:
            self._free.remove(connection)
        super().lost(connection, why)

    async def come(self, seconds: float) -> None:
        """Lets requests come for so long."""
        end_s = time.monotonic() + seconds
        self._next_s = time.monotonic()
        with Timer() as timer:
            while self._next_s < end_s:
                now_s = time.monotonic()
                while self._next_s <= now_s:
                    self._come(self._next_s)
                    self._next_s += self._rng.expovariate(self._rate_per_s)
                await timer.until(self._next_s)

    def _come(self, at_s: float) -> None:
        if self._free:
            self._free.pop().send(self.request(), at_s)
        else:
            self._came.append(at_s)


class Generator:
    """Carries out orders one after the other. Numbers are never used twice."""

    def __init__(self) -> None:
        self._number = 0
        self._idle: _Load | None = None

    async def carry_out(self, order: Order) -> Done:
        if isinstance(order, LetGo):
            if self._idle is not None:
                await self._idle.end()
                self._idle = None
            return Done()
        if isinstance(order, Idle):
            return await self._open_idle(order)
        load: _Load
        if isinstance(order, Open):
            load = _OpenLoad(order, self._next_number)
        else:
            load = _ClosedLoad(order.port, order.case, self._next_number)
        await load.connect_many(order.connections)
        if isinstance(load, _OpenLoad):
            await load.come(order.seconds)
        else:
            await asyncio.sleep(order.seconds)
        await load.end()
        return load.done()

    async def _open_idle(self, order: Idle) -> Done:
        self._idle = load = _IdleLoad(order.port, PLAIN, lambda: 0)
        for first in range(0, order.connections, _CONNECTING_AT_ONCE):
            await load.connect_many(min(_CONNECTING_AT_ONCE, order.connections - first))
            await load.all_answered()
        return load.done()

    def _next_number(self) -> int:
        self._number += 1
        return self._number


async def serve() -> None:
    """One order a line of standard input, one answer a line of standard output."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    generator = Generator()
    decoder = msgspec.json.Decoder(Order)
    async for line in reader:
        done = await generator.carry_out(decoder.decode(line))
        print(msgspec.json.encode(done).decode(), flush=True)


if __name__ == "__main__":
    gc.disable()  # nothing here has cycles, and a collection would be somebody's latency
    uvloop.run(serve())
