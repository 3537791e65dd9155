"""Replicas that are reached over TLS: whom the router trusts, and where their answers end."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import cast

import httpx
import pytest

from router.config import ProbeConfig, ReplicaConfig
from router.control.probes import probe
from router.control.replica_http import ReplicaTransport
from router.dataplane.http1 import ResponseHead
from router.dataplane.pool import ConnectFailed, ConnectTooSlow, ReplicaPool
from router.dataplane.tls import TlsSide, connect_tls
from tests.support.certificates import HOST, Authority
from tests.support.data_plane import (
    TIMEOUT_S,
    Call,
    DataPlane,
    ScriptedReplica,
    data_plane,
    post,
    until,
)

AUTHORITY = Authority()
SERVER = AUTHORITY.server_context()
TOWARDS = AUTHORITY.towards_replicas()
HEAD_UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n"


async def echo(call: Call) -> None:
    await call.json(call.body)


async def ask(plane: DataPlane, body: bytes = b"{}") -> tuple[bytes, bytes]:
    client = await plane.connect()
    await client.send(post(body=body))
    return await client.response()


async def failure(plane: DataPlane) -> str:
    """Why the only replica could not be reached, as the client is told."""
    head, body = await ask(plane)
    assert head.startswith(b"HTTP/1.1 50")
    message: str = json.loads(body)["error"]["message"]
    return message


async def test_a_connection_over_tls_is_used_again() -> None:
    replica = ScriptedReplica("r0", echo, SERVER)
    async with data_plane(replica, replica_tls=TOWARDS) as plane:
        for size in (1, 10, 100_000, 3_000_000):
            assert (await ask(plane, b"x" * size))[1] == b"x" * size
        await plane.settled(clients=4)
    assert replica.connections == 1


async def test_events_of_a_stream_are_passed_on_as_they_come() -> None:
    step = asyncio.Semaphore(0)

    async def script(call: Call) -> None:
        await call.start_stream()
        for index in range(5):
            await step.acquire()
            await call.event(b"%d" % index)
        await call.end_stream()

    async with data_plane(ScriptedReplica("r0", script, SERVER), replica_tls=TOWARDS) as plane:
        client = await plane.connect()
        await client.send(post())
        for index in range(5):
            step.release()
            assert (await client.until(b"\n\n\r\n")).endswith(b"data: %d\n\n\r\n" % index)
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_a_stream_that_is_reset_ends_with_an_error_event() -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        call.reset()

    async with data_plane(ScriptedReplica("r0", script, SERVER), replica_tls=TOWARDS) as plane:
        client = await plane.connect()
        await client.send(post())
        rest = await client.rest()
    assert b"the replica closed the connection" in rest
    assert rest.endswith(b"0\r\n\r\n")


UNTRUSTED = {
    "signed by a stranger": (
        TlsSide(Authority().client_context(), HOST),
        SERVER,
        "certificate verify failed: unable to get local issuer certificate",
    ),
    "for another host": (
        TlsSide(AUTHORITY.client_context(), "replica.example"),
        SERVER,
        "certificate verify failed: Hostname mismatch, certificate is not valid for "
        "'replica.example'.",
    ),
    "for another address": (
        TlsSide(AUTHORITY.client_context(), "10.0.0.1"),
        SERVER,
        "certificate verify failed: IP address mismatch, certificate is not valid for '10.0.0.1'.",
    ),
    "expired": (
        TOWARDS,
        AUTHORITY.server_context(AUTHORITY.issue(expired=True)),
        "certificate verify failed: certificate has expired",
    ),
}


@pytest.mark.parametrize(("side", "server", "reason"), UNTRUSTED.values(), ids=UNTRUSTED)
async def test_a_replica_that_is_not_who_it_should_be_gets_no_request_and_the_reason_is_told(
    side: TlsSide, server: ssl.SSLContext, reason: str
) -> None:
    replica = ScriptedReplica("r0", echo, server)
    async with data_plane(replica, replica_tls=side) as plane:
        message = await failure(plane)
        await plane.settled(clients=1)
    assert f"replica r0: cannot connect: {reason}" in message
    assert replica.calls == []


async def test_after_a_replica_that_is_not_trusted_another_is_tried() -> None:
    bad = ScriptedReplica("r0", echo, Authority().server_context())
    good = ScriptedReplica("r1", echo, SERVER)
    async with data_plane(bad, good, replica_tls=TOWARDS) as plane:
        assert (await ask(plane))[1] == b"{}"
        assert [outcome for _, outcome in plane.handler.outcomes] == ["connect_failed", "answered"]


async def test_without_verification_any_certificate_will_do() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    replica = ScriptedReplica("r0", echo, Authority().server_context())
    async with data_plane(replica, replica_tls=TlsSide(context, "whoever")) as plane:
        assert (await ask(plane))[1] == b"{}"


async def test_a_replica_may_ask_for_our_certificate() -> None:
    server = AUTHORITY.server_context(asks_clients=True)
    side = TlsSide(AUTHORITY.client_context(), HOST)
    async with data_plane(ScriptedReplica("r0", echo, server), replica_tls=side) as plane:
        # In TLS 1.3 the handshake is over for us before the replica looks at our certificate.
        assert "the replica closed the connection" in await failure(plane)
        side.context = AUTHORITY.client_context(AUTHORITY.issue("router"))
        assert (await ask(plane))[1] == b"{}"


async def test_why_a_replica_refuses_us_is_told() -> None:
    context = AUTHORITY.server_context(asks_clients=True)

    def refuse(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        tls = context.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
        with pytest.raises(ssl.SSLError):
            tls.do_handshake()
        with socket.socket(fileno=tls.detach()) as raw:
            while raw.recv(1000):  # else its reset would overtake the alert
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(TIMEOUT_S)
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listener))
        pool = pool_of(listener.getsockname()[1])
        connection = await pool.connect()
        broken = Broken()
        connection.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"", broken, head_only=False)
        async with asyncio.timeout(TIMEOUT_S):
            reason = await broken.reason
        await refusing
    assert reason == "the replica closed the connection (TLS: tlsv13 alert certificate required)"
    assert pool.open_connections == 0


async def test_a_server_without_tls_is_told_from_one_that_is_down() -> None:
    async with server(lambda writer: writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        with pytest.raises(ConnectFailed, match=r"^TLS: wrong version number$"):
            await pool_of(port).connect()


async def test_a_handshake_is_part_of_connecting_and_bounded_with_it() -> None:
    async with server(lambda writer: None) as port:
        pool = pool_of(port, connect_timeout_s=0.05)
        for _ in range(2):
            with pytest.raises(ConnectTooSlow, match=r"^no connection within 0\.05 s$"):
                await pool.connect()
            pool.check()
            assert pool.open_connections == 0


async def test_a_server_that_closes_in_the_handshake_is_a_failed_connect() -> None:
    async with server(lambda writer: writer.close()) as port:
        with pytest.raises(ConnectFailed, match=r"closed in the TLS handshake|reset"):
            await pool_of(port).connect()


async def test_a_connect_that_is_given_up_leaves_nothing_open() -> None:
    arrived = asyncio.Event()
    async with server(lambda writer: arrived.set()) as port:
        pool = pool_of(port)
        connecting = asyncio.create_task(pool.connect())
        async with asyncio.timeout(TIMEOUT_S):
            await arrived.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        pool.check()
        assert pool.open_connections == 0


@pytest.mark.parametrize("said", [True, False], ids=["close_notify", "cut off"])
async def test_an_answer_that_ends_by_closing_is_whole_only_after_close_notify(said: bool) -> None:
    async def script(call: Call) -> None:
        await call.send(HEAD_UNTIL_CLOSE + b"all of it")
        if said:
            call.close()
        else:
            call.cut()
        await call.until_router_leaves()

    async with data_plane(ScriptedReplica("r0", script, SERVER), replica_tls=TOWARDS) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.reader.readuntil(b"all of it")
        if said:
            assert await client.rest() == b""
        else:
            with pytest.raises(ConnectionResetError):
                await client.rest()
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "answered" if said else "broken_stream")]


async def test_the_end_of_an_answer_waits_for_a_client_that_reads_slowly() -> None:
    """The replica has closed long before: what it sent is not lost."""
    paused = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(HEAD_UNTIL_CLOSE + b"x" * 150_000)
        await paused.wait()
        await call.send(b"y" * 100_000)
        call.close()

    async with data_plane(ScriptedReplica("r0", script, SERVER), replica_tls=TOWARDS) as plane:
        client = await plane.connect(receive_buffer_bytes=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: plane.handler.server.connections == 1)
        (connection,) = plane.handler.server._connections
        assert connection._transport is not None
        router_socket = connection._transport.get_extra_info("socket")
        router_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(post())
        await until(lambda: connection._writing_paused)
        paused.set()
        for _ in range(100):  # the loopback has brought the end by then
            await asyncio.sleep(0)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        body = (await client.rest()).partition(b"\r\n\r\n")[2]
        assert (body.count(b"x"), body.count(b"y")) == (150_000, 100_000)


async def test_what_came_before_the_end_is_read_after_a_pause() -> None:
    """Also when TCP has ended meanwhile."""
    rest = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 1000)
        await rest.wait()
        writer.write(b"y" * 100_000)
        writer.close()

    class Pausing(asyncio.Protocol):
        def __init__(self) -> None:
            self.received = 0
            self.lost: asyncio.Future[Exception | None] = loop.create_future()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.Transport, transport)

        def data_received(self, data: bytes) -> None:
            self.received += len(data)
            if not rest.is_set():
                self.transport.pause_reading()
                rest.set()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    loop = asyncio.get_running_loop()
    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=SERVER)
    protocol = Pausing()
    await connect_tls(protocol, *listening.sockets[0].getsockname(), TOWARDS, TIMEOUT_S)
    async with asyncio.timeout(TIMEOUT_S):
        await rest.wait()
        for _ in range(100):  # the loopback has brought the end by then
            await asyncio.sleep(0)
        assert protocol.received == 1000
        protocol.transport.resume_reading()
        assert await protocol.lost is None
    assert protocol.received == 101_000
    listening.close()


async def test_probes_and_snapshots_trust_whom_requests_trust() -> None:
    replica = ScriptedReplica("r0", echo, SERVER)
    side = TlsSide(Authority().client_context(), HOST)
    await replica.start()
    config = ReplicaConfig(id="r0", url=f"https://127.0.0.1:{replica.port}")
    results: list[str | None] = []
    changed = asyncio.Event()

    def heard(result: str | None, _head: ResponseHead | None) -> None:
        results.append(result)
        changed.set()

    async def next_result() -> str | None:
        changed.clear()
        async with asyncio.timeout(TIMEOUT_S):
            await changed.wait()
        return results[-1]

    probing = asyncio.create_task(probe(config, ProbeConfig(interval_s=0.01), heard, side))
    async with httpx.AsyncClient(transport=ReplicaTransport(side)) as http:
        assert "certificate verify failed" in str(await next_result())
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await http.get(f"{config.base_url}/kv_cache/snapshot")
        side.context = AUTHORITY.client_context()  # the certificates were read again
        await until(lambda: results[-1] is None)
        for _ in range(2):
            assert (await http.get(f"{config.base_url}/kv_cache/snapshot")).status_code == 200
    probing.cancel()
    await replica.stop()


def pool_of(port: int, connect_timeout_s: float = TIMEOUT_S) -> ReplicaPool:
    return ReplicaPool(
        "127.0.0.1", port,
        max_connections=1, connect_timeout_s=connect_timeout_s, max_head_bytes=1000, tls=TOWARDS,
    )  # fmt: skip


@asynccontextmanager
async def server(greet: Callable[[asyncio.StreamWriter], object]) -> AsyncIterator[int]:
    """The port of a server that does one thing with each connection; at the end all have left."""
    writers: list[asyncio.StreamWriter] = []
    left = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        greet(writer)
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        left.release()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield listening.sockets[0].getsockname()[1]
    listening.close()
    async with asyncio.timeout(TIMEOUT_S):
        for _ in writers:
            await left.acquire()


class Broken:
    """A sink for an answer that does not come."""

    def __init__(self) -> None:
        self.reason: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def answer_head(self, head: ResponseHead) -> None:
        raise AssertionError(head)

    def answer_bytes(self, data: bytes, framed: bytes = b"") -> None:
        raise AssertionError(data)

    def answer_ended(self) -> None:
        raise AssertionError

    def answer_broken(self, reason: str) -> None:
        self.reason.set_result(reason)
