"""Clients that leave, stall or do not read, at every stage: cleaned up after, memory bounded."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from router.config import TimeoutsConfig
from router.dataplane.client_connection import ClientConnection
from tests.support.data_plane import (
    TIMEOUT_S,
    Call,
    DataPlane,
    Peer,
    ScriptedReplica,
    data_plane,
    post,
    until,
)  # fmt: skip
from tests.support.reads import reads_of


async def answer(call: Call) -> None:
    await call.json()


async def silent(call: Call) -> None:
    await call.until_router_leaves()


async def streaming(call: Call) -> None:
    await call.start_stream()
    await call.event(b"one")
    await call.until_router_leaves()


async def flooding(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
    while True:
        await call.send(b"x" * 65536)


async def check_goes_on(plane: DataPlane, replica: ScriptedReplica) -> None:
    await plane.settled(0)
    replica.script = answer
    client = await plane.connect()
    await client.send(post())
    assert (await client.response())[1] == b'{"ok":true}'
    await plane.settled(1)


def reset(client: Peer) -> None:
    client.leave()


def close_sending_side(client: Peer) -> None:
    client.writer.write_eof()


# What the client has sent when it leaves, and whether a replica is then at work.
STAGES = {
    "before a byte": (b"", False),
    "in the request line": (b"POST /v1", False),
    "in the head": (b"POST /v1/x HTTP/1.1\r\nHost: a\r\nX", False),
    "in the body": (post(body=b"12345")[:-2], False),
    "in a chunk": (
        b"POST /v1/x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", False,
    ),
    "awaiting 100": (post(extra=b"Expect: 100-continue\r\n")[:-2], False),
    "awaiting the answer": (post(), True),
    "in the next request's head": (post() + b"GET / HTTP", True),
    "in the next request's body": (post() + post(body=b"12345")[:-2], True),
    "with more of them waiting": (post() * 5, True),
}  # fmt: skip


@pytest.mark.parametrize("leave", [reset, close_sending_side])
@pytest.mark.parametrize(("sent", "reaches"), STAGES.values(), ids=STAGES)
async def test_a_client_that_leaves_leaves_nothing_behind(
    sent: bytes, reaches: bool, leave: Callable[[Peer], None]
) -> None:
    replica = ScriptedReplica("r0", silent)
    async with data_plane(replica) as plane:
        with reads_of(ClientConnection) as reads:
            client = await plane.connect()
            await reads.send(client.send, [sent] if sent else [])
            if reaches:
                async with asyncio.timeout(TIMEOUT_S):
                    await replica.called.wait()
            leave(client)
            await check_goes_on(plane, replica)
        expected = [("r0", "client_gone")] if reaches else []
        assert plane.handler.outcomes == [*expected, ("r0", "answered")]
        assert [one.status for one in plane.handler.finished] == [499] * reaches + [200]


@pytest.mark.parametrize("leave", [reset, close_sending_side])
async def test_a_client_that_leaves_in_a_stream_stops_the_replica(
    leave: Callable[[Peer], None],
) -> None:
    replica = ScriptedReplica("r0", streaming)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.until(b"one\n\n")
        leave(client)
        await check_goes_on(plane, replica)
        assert plane.handler.outcomes[0] == ("r0", "client_gone")


async def test_a_client_that_leaves_while_its_connection_is_being_made_frees_it() -> None:
    async with data_plane(ScriptedReplica("r0", answer)) as plane:
        (pool,) = plane.handler.pools.values()
        client = await plane.connect()
        begun = asyncio.Event()

        async def never() -> None:
            begun.set()
            await asyncio.Event().wait()

        connect, pool.connect = pool.connect, never  # type: ignore[method-assign,assignment]
        await client.send(post())
        async with asyncio.timeout(TIMEOUT_S):
            await begun.wait()
        client.leave()
        await plane.settled(0)
        pool.connect = connect  # type: ignore[method-assign]
        assert plane.handler.outcomes == [("r0", "client_gone")]


async def test_a_client_that_does_not_read_stops_the_replicas_bytes_and_is_cut_off() -> None:
    timeouts = TimeoutsConfig(between_bytes_s=0.2)
    replica = ScriptedReplica("r0", flooding)
    async with data_plane(replica, timeouts=timeouts) as plane:
        client = await plane.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post())
        await until(lambda: plane.handler.server.connections == 1)
        (connection,) = plane.handler.server._connections
        most = 0

        def gone() -> bool:
            nonlocal most
            transport = connection._transport
            if transport is not None:
                most = max(most, transport.get_write_buffer_size())
            return plane.handler.server.connections == 0

        await until(gone)
        # The high-water mark, and the one read that went over it.
        assert 0 < most <= 64 * 1024 + 256 * 1024
        await check_goes_on(plane, replica)
        assert plane.handler.outcomes[0] == ("r0", "client_gone")


@pytest.mark.parametrize("last", [True, False], ids=["then closes", "then stays"])
async def test_an_answer_read_slowly_is_not_cut_off_by_the_keep_alive_timeout(last: bool) -> None:
    """It is over for us when the last byte is written, and for the client long after."""
    body = b"x" * 60_000
    timeouts = TimeoutsConfig(keep_alive_s=0.01)

    async def script(call: Call) -> None:
        await call.json(body)

    async with data_plane(ScriptedReplica("r0", script), timeouts=timeouts) as plane:
        client = await plane.connect(receive_buffer_bytes=4096)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: plane.handler.server.connections == 1)
        (connection,) = plane.handler.server._connections
        assert connection._transport is not None
        router_socket = connection._transport.get_extra_info("socket")
        router_socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await client.send(post(extra=b"Connection: close\r\n" if last else b""))
        await plane.finished()  # for the router: the rest of it waits in buffers
        transport = connection._transport
        assert transport is not None
        assert transport.get_write_buffer_size() > 0
        for seconds in (1, 2, 3):
            connection.check_timeouts(asyncio.get_running_loop().time() + seconds)
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await client.response())[1] == body


async def test_large_bodies_are_not_piled_up_behind_a_request_under_way() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.json(b"%d" % len(call.body))

    large = post(body=b"x" * 1_000_000)
    async with data_plane(ScriptedReplica("r0", script)) as plane:
        with reads_of(ClientConnection) as reads:
            client = await plane.connect()
            client.writer.write(large * 8)
            # One under way, one waiting, what one read brought of the third.
            await reads.until(2 * len(large))
            assert reads.bytes < 3 * len(large)
            release.set()
            for _ in range(8):
                assert (await client.response())[1] == b"1000000"
            assert reads.bytes == 8 * len(large)


async def test_a_client_still_sending_can_read_the_answer_that_ends_its_connection() -> None:
    """Closed at once, its kernel would answer our reset by dropping what it had not read."""
    async with data_plane(ScriptedReplica("r0", answer)) as plane:
        for _ in range(20):
            client = await plane.connect()
            client.writer.write(post(extra=b"Connection: close\r\n"))
            client.writer.write(post(body=b"x" * 3_000_000))
            assert (await client.response())[1] == b'{"ok":true}'
