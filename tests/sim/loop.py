"""An event loop in virtual time: asyncio's own, but nothing is waited for and nothing is real.

The loop is the world's heap of events and its clock. When nothing is left to do now, the clock
jumps to the next timer. Connections are made through `connect`, which the network gives it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

STARTS_AT_S = 1000.0
"""Far from 0, as on any machine that has been up for a while."""

Connect = Callable[[Callable[[], asyncio.Protocol], str, int], Coroutine[Any, Any, Any]]


class NothingLeft(Exception):
    """Somebody waits for what will never happen."""


class SimLoop(asyncio.BaseEventLoop):
    """Runs what is ready, in the order it became so, then jumps to what is due next.

    Attributes:
        connect: What `create_connection` does.
        after_turn: Called after each turn: all that was ready at once has run.
        failures: What tasks and callbacks have raised and nobody took.
        turns: So many there have been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = STARTS_AT_S
        self.connect: Connect | None = None
        self.after_turn: Callable[[], None] = lambda: None
        self.failures: list[BaseException] = []
        self.turns = 0
        self._selector = self  # `_run_once` asks it how long to sleep
        self.set_exception_handler(_keep_failure)

    def time(self) -> float:
        return self.now_s

    def select(self, timeout_s: float | None) -> list[Any]:
        """What sleeping is here. Raises NothingLeft."""
        if timeout_s is None:
            raise NothingLeft("nothing is left to happen")
        if timeout_s > 0:
            self.now_s = max(self.now_s, self._scheduled[0].when())
        return []

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        assert self.connect is not None, "there is a network"
        assert not options, "plain TCP only"
        return await self.connect(protocol_factory, host, port)

    def _run_once(self) -> None:
        super()._run_once()
        self.turns += 1
        self.after_turn()

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass


def _keep_failure(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    assert isinstance(loop, SimLoop)
    loop.failures.append(context.get("exception") or RuntimeError(context["message"]))
