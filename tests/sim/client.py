"""A client of the router: asks, reads the answer, or leaves midway."""

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from tests.sim.asks import Ask
from tests.sim.network import End

if TYPE_CHECKING:
    from tests.sim.worker import Worker
    from tests.sim.world import World


class SimClient(asyncio.Protocol):
    """One connection, one request at a time; `ask` is None between them."""

    def __init__(self, world: "World", worker: "Worker") -> None:
        self.worker = worker
        self.ask: Ask | None = None
        self.open = False
        self._world = world
        self._end: End | None = None

    @property
    def idle(self) -> bool:
        return self.open and self.ask is None

    def send(self, ask: Ask) -> None:
        """Asks, over an open connection."""
        assert self.idle
        assert self._end is not None
        self.ask = ask
        self._status = 0
        self._body = b""
        self._parser = httptools.HttpResponseParser(self)
        self._end.write(ask.request("router"))
        faults, rng, loop = self._world.scenario.faults, self._world.rng, self._world.loop
        if not self._world.troubled:
            return
        if rng.random() < faults.leave:
            loop.call_later(rng.random() ** 2 * 2.0, self._leave, ask)
        if rng.random() < faults.slow_reader:
            loop.call_later(rng.random(), self._rest, ask)

    def _leave(self, ask: Ask) -> None:
        if self.ask is ask and self._end is not None:
            self._over("left")
            if self._world.rng.random() < 0.5:
                self._end.abort()
            else:
                self._end.close()
            self.open = False

    def _rest(self, ask: Ask) -> None:
        if self.ask is ask and self._end is not None:
            self._end.pause_reading()
            ask.slow = True
            rest_s = self._world.rng.random() * 4.0
            self._world.loop.call_later(rest_s, self._end.resume_reading)

    def router_wrote(self, data: bytes) -> None:
        """The router's end has written this."""
        if self.ask is not None:
            self.ask.sent += data

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._end = cast(End, transport)
        self._end.peer.on_write = self.router_wrote
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self.ask is None:
            if self.open:
                self._world.fail("client", f"it got {data[:80]!r} unasked")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._world.fail("client", f"request {self.ask.number}: no HTTP: {error!r} {data!r}")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.ask is not None:
            self._judge(whole=False)

    # httptools

    def on_status(self, status: bytes) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        keeps = self._parser.should_keep_alive()
        if self.ask is not None:
            self._judge(whole=True)
        if not keeps and self._end is not None:
            self._end.close()
            self.open = False

    def _judge(self, *, whole: bool) -> None:
        ask = self.ask
        assert ask is not None
        outcome, wrong = ask.judge(self._status, self._body, whole=whole)
        if wrong is not None:
            self._world.fail("answers", f"request {ask.number}: {outcome}: {wrong}")
        self._over(outcome)

    def _over(self, outcome: str) -> None:
        ask, self.ask = self.ask, None
        assert ask is not None
        self._world.ask_over(ask, outcome)
