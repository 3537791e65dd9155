"""Asks each replica whether it is ready, over and over; tells the fleet what it hears.

Probes go the way requests go, over a connection of their own, and cost as little: hundreds of
replicas are asked each second.
"""

import asyncio
import logging
from collections.abc import Callable

from router.config import LimitsConfig, ProbeConfig, ReplicaConfig
from router.dataplane.http1 import ResponseHead
from router.dataplane.pool import ConnectFailed, ReplicaPool
from router.dataplane.replica_connection import ReplicaConnection
from router.dataplane.tls import TlsSide

log = logging.getLogger(__name__)


async def probe(
    replica: ReplicaConfig,
    config: ProbeConfig,
    on_result: Callable[[str | None, ResponseHead | None], None],
    tls: TlsSide | None = None,
) -> None:
    """Runs until cancelled.

    Args:
        tls: For a replica at an https:// address.
        on_result: Told after each probe: None when the replica is ready, else why not; and the
            head of its answer, if there was one.
    """
    pool = ReplicaPool(
        *replica.address,
        max_connections=1,
        connect_timeout_s=config.timeout_s,
        max_head_bytes=LimitsConfig().max_head_bytes,
        tls=tls,
    )
    request = b"GET %b HTTP/1.1\r\nhost: %b\r\naccept: */*\r\n\r\n" % (
        config.path.encode(), pool.host_header,
    )  # fmt: skip
    last_failure: str | None = None
    try:
        while True:
            failure, head = await _probe_once(pool, request, config.timeout_s)
            if failure not in (None, last_failure):
                log.info("replica %s: probe: %s", replica.id, failure)
            last_failure = failure
            on_result(failure, head)
            await asyncio.sleep(config.interval_s)
    finally:
        pool.close()


async def _probe_once(
    pool: ReplicaPool, request: bytes, timeout_s: float
) -> tuple[str | None, ResponseHead | None]:
    try:
        async with asyncio.timeout(timeout_s):
            reused = pool.take_idle()
            if reused is not None:
                try:
                    return _judge(await _ask(reused, request))
                except _Broken:
                    pass  # closed by the replica before it heard us
            return _judge(await _ask(await pool.connect(), request))
    except TimeoutError:
        return f"no answer within {timeout_s} s", None
    except ConnectFailed as error:
        return f"cannot connect: {error}", None
    except _Broken as error:
        return str(error), None


def _judge(head: ResponseHead) -> tuple[str | None, ResponseHead]:
    return None if head.status == 200 else f"answered {head.status}", head


async def _ask(connection: ReplicaConnection, request: bytes) -> ResponseHead:
    """The head of the answer. Raises _Broken."""
    answer = _Answer()
    connection.send(request, b"", answer, head_only=False)
    try:
        return await answer.head
    finally:
        if not answer.ended:
            connection.abandon()


class _Broken(Exception):
    """There was no whole answer."""


class _Answer:
    """Takes an answer of which only the head matters."""

    def __init__(self) -> None:
        self.head: asyncio.Future[ResponseHead] = asyncio.get_running_loop().create_future()
        self.ended = False
        self._told: ResponseHead | None = None

    def answer_head(self, head: ResponseHead) -> None:
        self._told = head

    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        pass

    def answer_ended(self) -> None:
        self.ended = True
        if not self.head.done():
            assert self._told is not None
            self.head.set_result(self._told)

    def answer_broken(self, reason: str) -> None:
        self.ended = True
        if not self.head.done():
            self.head.set_exception(_Broken(reason))
