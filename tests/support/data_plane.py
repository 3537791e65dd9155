"""A data plane to test: raw bytes in and out, scripted replicas behind a handler that routes."""

import asyncio
import itertools
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from protocol.errors import MethodNotAllowed, ProtocolError, Unavailable
from router.config import LimitsConfig, TimeoutsConfig
from router.core.answer_scan import AnswerUsage
from router.dataplane.client_connection import ClientConnection
from router.dataplane.http1 import OwnAnswer, Request
from router.dataplane.pool import ReplicaPool
from router.dataplane.route import EventLog, Outcome, UnderWay
from router.dataplane.server import Server
from router.dataplane.tls import TlsSide

Script = Callable[["Call"], Awaitable[None]]
TIMEOUT_S = 10.0


class Call:
    """One request that reached a scripted replica, and the means to answer it."""

    def __init__(
        self, head: bytes, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.head = head
        self.body = body
        self.reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def json(self, body: bytes = b'{"ok":true}', status: bytes = b"200 OK") -> None:
        length = str(len(body)).encode()
        await self.send(
            b"HTTP/1.1 " + status + b"\r\ncontent-type: application/json\r\n"
            b"content-length: " + length + b"\r\n\r\n" + body
        )

    async def start_stream(self) -> None:
        await self.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    async def event(self, text: bytes) -> None:
        data = b"data: " + text + b"\n\n"
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    def end(self) -> None:
        """The replica closes its half."""
        self._writer.write_eof()

    def reset(self) -> None:
        """The replica dies."""
        self._writer.transport.abort()

    def close(self) -> None:
        """After what was sent; over TLS with its close_notify."""
        self._writer.close()

    def cut(self) -> None:
        """Ends TCP after what was sent, whatever was spoken over it."""
        descriptor = os.dup(self._writer.get_extra_info("socket").fileno())
        with socket.socket(fileno=descriptor) as same:
            same.shutdown(socket.SHUT_WR)

    def crash(self) -> None:
        """The replica dies, and its kernel says so."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def until_router_leaves(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            assert await self.reader.read() == b""


class ScriptedReplica:
    """A server that reads HTTP/1.1 requests and lets a script answer them."""

    def __init__(self, replica_id: str, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.id = replica_id
        self.script = script
        self.tls = tls
        self.calls: list[Call] = []
        self.called = asyncio.Event()
        self.connections = 0
        self.port = 0
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.close_connections()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def close_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        # A task of our own: asyncio complains when one of its own is cancelled.
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                call = Call(head, await reader.readexactly(length), reader, writer)
                self.calls.append(call)
                self.called.set()
                await self.script(call)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the router left, or the script reset the connection
        finally:
            writer.transport.abort()


class StubAssignment:
    matched_tokens = 7
    body = rewriter = None
    asks = b""
    lost = False

    def __init__(self, handler: "StubHandler", replica_id: str) -> None:
        self.replica_id = replica_id
        self.pool = handler.pools[replica_id]
        self._handler = handler
        handler.leases += 1

    def first_byte(self, now: float, status: int) -> None:
        pass

    def release(self, outcome: str, status: int, usage: AnswerUsage, now: float) -> None:
        self._handler.leases -= 1
        self._handler.outcomes.append((self.replica_id, outcome))


class StubRoute:
    """Goes through the replicas in order."""

    def __init__(self, handler: "StubHandler") -> None:
        self._handler = handler
        self._left = list(handler.pools)

    hedge_after_s: float | None = None
    log: EventLog | None = None

    def enter(self, exchange: UnderWay, now: float) -> bool:
        return True

    def assign(self, now: float) -> StubAssignment:
        if not self._left:
            raise Unavailable("no replica is left", retry_after_s=1)
        return StubAssignment(self._handler, self._left.pop(0))

    def may_retry(self, now: float) -> bool:
        return bool(self._left)

    def resume(self, broken: ProtocolError) -> None:
        raise broken

    def finished(self, exchange: UnderWay, now: float) -> None:
        self._handler.note_finished(exchange)


class StubHandler:
    """Routes every request but /own, which it answers itself."""

    def __init__(self, limits: LimitsConfig, timeouts: TimeoutsConfig) -> None:
        self.limits = limits
        self.timeouts = timeouts
        self.draining = False
        self.pools: dict[str, ReplicaPool] = {}
        self.leases = 0
        self.outcomes: list[tuple[str, str]] = []
        self.finished: list[UnderWay] = []
        self.refusals: list[ProtocolError] = []
        self.changed = asyncio.Condition()
        self._notices: set[asyncio.Task[None]] = set()
        self.server = Server(self, limits.max_connections)
        self._ids = itertools.count()

    def open(self, request: Request) -> StubRoute | OwnAnswer:
        if request.path == b"/own":
            if request.method not in (b"GET", b"HEAD"):
                raise MethodNotAllowed("use GET", allow="GET, HEAD")
            return OwnAnswer(200, b'{"own":true}')
        if self.draining:
            raise Unavailable("the router is shutting down", retry_after_s=1)
        return StubRoute(self)

    def note_finished(self, exchange: UnderWay) -> None:
        self.finished.append(exchange)

        async def notify() -> None:
            async with self.changed:
                self.changed.notify_all()

        task = asyncio.create_task(notify())
        self._notices.add(task)
        task.add_done_callback(self._notices.discard)

    def new_request_id(self) -> bytes:
        return f"generated-{next(self._ids)}".encode()

    def connection_opened(self, connection: ClientConnection) -> None:
        self.server.opened(connection)

    def connection_closed(self, connection: ClientConnection) -> None:
        self.server.closed(connection)

    def refused(self, request: Request, error: ProtocolError) -> None:
        self.refusals.append(error)


class Peer:
    """A client that speaks raw bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def response(self) -> tuple[bytes, bytes]:
        """(head, body) of one answer framed by content-length."""
        head = await self.head()
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                async with asyncio.timeout(TIMEOUT_S):
                    return head, await self.reader.readexactly(int(line.partition(b":")[2]))
        raise AssertionError(f"no content-length in {head!r}")

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.readuntil(end)

    async def rest(self) -> bytes:
        """Everything until the router closes."""
        async with asyncio.timeout(TIMEOUT_S):
            return await self.reader.read()

    def leave(self) -> None:
        self.writer.transport.abort()

    def crash(self) -> None:
        """The client dies, and its kernel says so."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.leave()


class DataPlane:
    """A listening data plane."""

    def __init__(self, handler: StubHandler, port: int) -> None:
        self.handler = handler
        self.port = port
        self._peers: list[Peer] = []

    async def connect(
        self, receive_buffer_bytes: int | None = None, tls: ssl.SSLContext | None = None
    ) -> Peer:
        """A client; its kernel's buffer for what it has not yet read may be kept small."""
        # Named as TCP, or asyncio leaves Nagle's algorithm on.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setblocking(False)
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        name = None if tls is None else "localhost"
        streams = await asyncio.open_connection(
            sock=sock, limit=2**24, ssl=tls, server_hostname=name
        )
        peer = Peer(*streams)
        self._peers.append(peer)
        return peer

    async def finished(self, count: int = 1) -> None:
        """Until `count` exchanges are over."""
        async with asyncio.timeout(TIMEOUT_S), self.handler.changed:
            await self.handler.changed.wait_for(lambda: len(self.handler.finished) >= count)

    async def settled(self, clients: int) -> None:
        """Until nothing is held for anybody: no lease, no connections but `clients` and idle ones.

        Clients are counted that the router has not yet closed.
        """
        pools, server = self.handler.pools.values(), self.handler.server
        await until(
            lambda: (
                not self.handler.leases
                and server.connections == clients
                and all(pool.open_connections == pool.idle_connections for pool in pools)
            )
        )
        for pool in pools:
            pool.check()

    def close(self) -> None:
        for peer in self._peers:
            peer.leave()


@asynccontextmanager
async def data_plane(
    *replicas: ScriptedReplica,
    limits: LimitsConfig | None = None,
    timeouts: TimeoutsConfig | None = None,
    tls: TlsSide | None = None,
    replica_tls: TlsSide | None = None,
) -> AsyncIterator[DataPlane]:
    """A data plane in front of `replicas`; at the end no lease is left."""
    timeouts = timeouts or TimeoutsConfig(connect_s=TIMEOUT_S)  # a busy machine is no fault here
    handler = StubHandler(limits or LimitsConfig(), timeouts)
    for replica in replicas:
        await replica.start()
        handler.pools[replica.id] = ReplicaPool(
            "127.0.0.1",
            replica.port,
            max_connections=handler.limits.max_connections_per_replica,
            connect_timeout_s=handler.timeouts.connect_s,
            max_head_bytes=handler.limits.max_head_bytes,
            tls=replica_tls,
        )
    plane = DataPlane(handler, await handler.server.listen("127.0.0.1", 0, tls=tls))
    watcher = asyncio.create_task(handler.server.watch_timeouts())
    try:
        yield plane
    finally:
        watcher.cancel()
        plane.close()
        assert await handler.server.drain(TIMEOUT_S)
        assert handler.leases == 0
        for pool in handler.pools.values():
            pool.check()
            pool.close()
        for replica in replicas:
            await replica.stop()
        assert {outcome for _, outcome in handler.outcomes} <= {
            value for name, value in vars(Outcome).items() if name.isupper()
        }


async def until(condition: Callable[[], bool]) -> None:
    """For what changes and tells nobody."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def post(path: bytes = b"/v1/x", body: bytes = b"{}", extra: bytes = b"") -> bytes:
    """A request's bytes."""
    length = str(len(body)).encode()
    return (
        b"POST " + path + b" HTTP/1.1\r\nHost: router\r\n" + extra
        + b"Content-Length: " + length + b"\r\n\r\n" + body
    )  # fmt: skip
