"""Clients that speak TLS to the router: OpenSSL's own sockets, and what is no TLS at all."""

import asyncio
import logging
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from router.config import LimitsConfig, TimeoutsConfig
from router.dataplane.tls import TlsSide
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
LISTENER = AUTHORITY.listener()
TRUST = AUTHORITY.client_context()
GET_OWN = b"GET /own HTTP/1.1\r\nHost: router\r\n\r\n"


async def echo(call: Call) -> None:
    await call.json(call.body)


def dial(
    port: int, context: ssl.SSLContext = TRUST, receive_bytes: int | None = None
) -> ssl.SSLSocket:
    """A blocking socket; for a thread."""
    raw = socket.socket()
    raw.settimeout(TIMEOUT_S)
    if receive_bytes is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    raw.connect(("127.0.0.1", port))
    try:
        return context.wrap_socket(raw, server_hostname=HOST, suppress_ragged_eofs=False)
    except BaseException:
        raw.close()
        raise


def read_all(sock: ssl.SSLSocket) -> bytes:
    """Until close_notify; a stream that is cut off raises ssl.SSLEOFError."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


@contextmanager
def nothing_to_warn_of(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_openssl_client_is_answered_and_told_where_the_answer_ends(
    version: ssl.TLSVersion,
) -> None:
    context = AUTHORITY.client_context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    replica = ScriptedReplica("r0", echo)
    side = TlsSide(AUTHORITY.server_context())
    side.context.set_alpn_protocols(["http/1.1"])

    def talk(port: int) -> tuple[str | None, bytes]:
        with dial(port, context) as sock:
            sock.sendall(post(body=b"[1]", extra=b"Connection: close\r\n"))
            return sock.selected_alpn_protocol(), read_all(sock)

    async with data_plane(replica, tls=side) as plane:
        protocol, answer = await asyncio.to_thread(talk, plane.port)
    assert protocol == "http/1.1"
    assert answer.endswith(b"\r\n\r\n[1]")
    assert b"x-forwarded-proto: https\r\n" in replica.calls[0].head


async def test_connections_are_kept_and_pipelined_requests_answered_in_order() -> None:
    async with data_plane(ScriptedReplica("r0", echo), tls=LISTENER) as plane:
        client = await plane.connect(tls=TRUST)
        for _ in range(2):
            await client.send(b"".join(post(body=b"[%d]" % index) for index in range(20)))
            for index in range(20):
                assert (await client.response())[1] == b"[%d]" % index


async def test_events_of_a_stream_are_passed_on_as_they_come() -> None:
    step = asyncio.Semaphore(0)

    async def script(call: Call) -> None:
        await call.start_stream()
        for index in range(5):
            await step.acquire()
            await call.event(b"%d" % index)
        await call.end_stream()

    async with data_plane(ScriptedReplica("r0", script), tls=LISTENER) as plane:
        client = await plane.connect(tls=TRUST)
        await client.send(post())
        for index in range(5):
            step.release()
            assert (await client.until(b"\n\n\r\n")).endswith(b"data: %d\n\n\r\n" % index)
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"


async def test_a_large_answer_waits_at_the_replica_for_a_client_that_reads_slowly() -> None:
    body = bytes(range(256)) * 40_000
    written = 0

    async def script(call: Call) -> None:
        nonlocal written
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 65536):
            await call.send(body[start : start + 65536])
            written = start

    def begin(port: int) -> ssl.SSLSocket:
        sock = dial(port, receive_bytes=16384)
        sock.sendall(post(extra=b"Connection: close\r\n"))
        return sock

    async with data_plane(ScriptedReplica("r0", script), tls=LISTENER) as plane:
        sock = await asyncio.to_thread(begin, plane.port)
        await until(lambda: plane.handler.server.connections == 1 and written > 0)
        (connection,) = plane.handler.server._connections
        await until(lambda: connection._writing_paused)
        transport = connection._transport
        assert transport is not None
        # The high-water mark, and the read that went over it.
        assert 0 < transport.get_write_buffer_size() <= 64 * 1024 + 2 * 256 * 1024
        assert written < len(body) - 65536
        with sock:
            answer = await asyncio.to_thread(read_all, sock)
    assert answer.endswith(b"\r\n\r\n" + body)


async def test_a_client_is_not_read_faster_than_its_requests_are_answered() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.json(b"%d" % len(call.body))

    bodies = 12
    request = post(body=b"x" * 1_000_000)

    def send_all(sock: ssl.SSLSocket) -> bytes:
        sock.sendall(request * bodies)
        answers = b""
        while answers.count(b"1000000") < bodies:
            answers += sock.recv(65536)
        return answers

    async with data_plane(ScriptedReplica("r0", script), tls=LISTENER) as plane:
        sock = await asyncio.to_thread(dial, plane.port)
        with sock:
            talking = asyncio.create_task(asyncio.to_thread(send_all, sock))
            await until(lambda: plane.handler.server.connections == 1)
            (connection,) = plane.handler.server._connections
            await until(lambda: connection._reading_paused)
            assert connection._transport is not None
            assert not connection._transport.is_reading()
            release.set()
            await talking


async def test_a_refusal_reaches_a_client_that_still_sends_its_body() -> None:
    limits = LimitsConfig(max_body_bytes=100_000)
    head = b"POST /v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\n"

    def talk(port: int) -> bytes:
        with dial(port) as sock:
            sock.sendall(head)
            for _ in range(40):
                sock.sendall(b"x" * 65536)
            return read_all(sock)

    async with data_plane(ScriptedReplica("r0", echo), tls=LISTENER, limits=limits) as plane:
        answer = await asyncio.to_thread(talk, plane.port)
        await plane.settled(clients=0)
    assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("how", ["close_notify", "without a word", "reset"])
async def test_a_client_that_leaves_in_a_stream_stops_the_replica(how: str) -> None:
    stopped = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await call.until_router_leaves()
        stopped.set()

    def leave(sock: ssl.SSLSocket) -> None:
        if how == "close_notify":
            # Sent; what OpenSSL then finds unread it complains of.
            with pytest.raises(ssl.SSLError, match="APPLICATION_DATA_AFTER_CLOSE_NOTIFY"):
                sock.unwrap()
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "close_notify":
            sock.close()

    def begin(port: int) -> ssl.SSLSocket:
        sock = dial(port)
        sock.sendall(post())
        assert sock.recv(1)
        return sock

    async with data_plane(ScriptedReplica("r0", script), tls=LISTENER) as plane:
        with await asyncio.to_thread(begin, plane.port) as sock:
            leave(sock)
            async with asyncio.timeout(TIMEOUT_S):
                await stopped.wait()
            await plane.settled(clients=0)
        assert plane.handler.outcomes == [("r0", "client_gone")]


async def test_draining_lets_a_stream_end_and_waits_for_no_handshake() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await release.wait()
        await call.event(b"last")
        await call.end_stream()

    async with data_plane(ScriptedReplica("r0", script), tls=LISTENER) as plane:
        server = plane.handler.server
        half_done = await plane.connect()
        client = await plane.connect(tls=TRUST)
        idle = await plane.connect(tls=TRUST)
        await client.send(post())
        await until(lambda: server.handshakes == 1 and server.connections == 2)
        plane.handler.draining = True
        draining = asyncio.create_task(server.drain(TIMEOUT_S))
        assert await idle.rest() == b""
        assert await half_done.rest() == b""
        release.set()
        assert (await client.rest()).endswith(b"data: last\n\n\r\n0\r\n\r\n")
        assert await draining
        assert server.handshakes == 0


async def test_new_connections_get_the_new_certificate_and_open_ones_go_on() -> None:
    other = Authority()
    side = TlsSide(AUTHORITY.server_context())
    async with data_plane(ScriptedReplica("r0", echo), tls=side) as plane:
        client = await plane.connect(tls=TRUST)
        side.context = other.server_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            await plane.connect(tls=TRUST)
        late = await plane.connect(tls=other.client_context())
        for peer in (client, late, client):
            await peer.send(GET_OWN)
            assert (await peer.response())[1] == b'{"own":true}'


async def test_only_clients_with_a_certificate_are_let_in_where_one_is_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    side = TlsSide(AUTHORITY.server_context(asks_clients=True))
    known = AUTHORITY.client_context(AUTHORITY.issue("client"))
    strange = AUTHORITY.client_context(Authority().issue("client"))

    def talk(port: int, context: ssl.SSLContext) -> bytes:
        with dial(port, context) as sock:
            sock.sendall(post(extra=b"Connection: close\r\n"))
            return read_all(sock)

    replica = ScriptedReplica("r0", echo)
    with nothing_to_warn_of(caplog):
        async with data_plane(replica, tls=side) as plane:
            for context in (TRUST, strange):
                with pytest.raises((ssl.SSLError, ConnectionError), match=r"ALERT|reset|pipe"):
                    await asyncio.to_thread(talk, plane.port, context)
            assert (await asyncio.to_thread(talk, plane.port, known)).endswith(b"{}")
            await plane.settled(clients=0)
    assert len(replica.calls) == 1


async def test_who_speaks_plain_http_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    with nothing_to_warn_of(caplog):
        async with data_plane(ScriptedReplica("r0", echo), tls=LISTENER) as plane:
            client = await plane.connect()
            await client.send(post())
            answer = await client.rest()
            await left_alone(plane)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"this port speaks HTTPS" in answer


HELLO_CUT_SHORT = bytes.fromhex("160301020001")
NO_TLS = {
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(100),
    "half a hello": HELLO_CUT_SHORT,
    "nothing": b"",
}


@pytest.mark.parametrize("reset", [False, True], ids=["then closes", "then resets"])
@pytest.mark.parametrize("data", NO_TLS.values(), ids=NO_TLS)
async def test_what_is_no_handshake_leaves_nothing_behind(
    data: bytes, reset: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with nothing_to_warn_of(caplog):
        async with data_plane(ScriptedReplica("r0", echo), tls=LISTENER) as plane:
            with socket.create_connection(("127.0.0.1", plane.port)) as raw:
                raw.sendall(data)
                if reset:
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await left_alone(plane)


async def test_a_handshake_that_does_not_end_is_ended() -> None:
    timeouts = TimeoutsConfig(request_head_s=0.05)
    async with data_plane(ScriptedReplica("r0", echo), tls=LISTENER, timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(HELLO_CUT_SHORT)
        assert await client.rest() == b""
        await left_alone(plane)


async def test_handshakes_count_among_the_connections_there_may_be() -> None:
    limits = LimitsConfig(max_connections=2)
    async with data_plane(ScriptedReplica("r0", echo), tls=LISTENER, limits=limits) as plane:
        client = await plane.connect(tls=TRUST)
        await client.send(GET_OWN)
        await client.response()
        await plane.connect()
        await until(lambda: plane.handler.server.handshakes == 1)
        assert await (await plane.connect()).rest() == b""
        await client.send(GET_OWN)
        await client.response()


async def left_alone(plane: DataPlane) -> None:
    """The router holds no connection and no handshake, and still serves."""
    server = plane.handler.server
    client = await plane.connect(tls=TRUST)
    await client.send(GET_OWN)
    await client.response()
    await until(lambda: server.connections == 1 and server.handshakes == 0)
