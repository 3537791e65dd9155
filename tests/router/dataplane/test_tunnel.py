"""An open tunnel: bytes both ways at the slower side's pace, its halves, its ends."""

import asyncio
import contextlib

import pytest

from router.config import LimitsConfig, TimeoutsConfig
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica, data_plane, post, until
from tests.support.websocket import SWITCHED, echo, opened, upgrade

BLOCK = bytes(range(256)) * 256  # 64 KiB


async def test_bytes_pass_both_ways_and_the_end_is_counted_once() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await opened(plane)
        assert plane.handler.leases == 1
        for data in (b"x", b"GET / HTTP/1.1\r\n\r\n", BLOCK, b"\x00\xff"):
            await client.send(data)
            async with asyncio.timeout(TIMEOUT_S):
                assert await client.reader.readexactly(len(data)) == data
        assert not plane.handler.finished
        client.writer.write_eof()
        assert await client.rest() == b""
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "answered")]
        assert (plane.handler.finished[0].status, plane.handler.finished[0].failure) == (101, None)
        await plane.settled(0)


async def test_a_client_that_has_said_all_still_hears_the_rest() -> None:
    async def script(call: Call) -> None:
        await call.send(SWITCHED)
        assert await call.reader.read() == b"question"
        for _ in range(50):
            await call.send(BLOCK)

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane)
        await client.send(b"question")
        client.writer.write_eof()
        assert await client.rest() == BLOCK * 50
        await plane.settled(0)
        # The script resets its connection when it is done, as it may: it had all there was to say.
        assert {outcome for _, outcome in plane.handler.outcomes} <= {"answered", "broken_stream"}


async def test_a_replica_that_has_said_all_still_hears_the_rest() -> None:
    heard = bytearray()
    over = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SWITCHED + b"done")
        call.end()
        while data := await call.reader.read(65536):
            heard.extend(data)
        over.set()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane)
        assert await client.rest() == b"done"
        for _ in range(50):
            await client.send(BLOCK)
        client.writer.write_eof()
        async with asyncio.timeout(TIMEOUT_S):
            await over.wait()
        assert bytes(heard) == BLOCK * 50
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "answered")]
        await plane.settled(0)


async def test_a_replica_that_dies_ends_the_clients_side() -> None:
    async def script(call: Call) -> None:
        await call.send(SWITCHED + b"half a mess")
        await call.reader.readexactly(1)
        call.crash()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane)
        assert await client.until(b"mess") == b"half a mess"
        await client.send(b"x")
        assert await client.rest() == b""
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "broken_stream")]
        assert plane.handler.finished[0].status == 101
        assert plane.handler.finished[0].failure == "the replica broke the connection"
        await client.send(post(b"/own") * 3)  # it lingers: what comes is thrown away
        client.leave()
        await plane.settled(0)


@pytest.mark.parametrize("goes_on", [False, True], ids=["leaves", "goes on"])
async def test_a_replica_that_leaves_is_an_end_for_the_client(goes_on: bool) -> None:
    async def script(call: Call) -> None:
        await call.send(SWITCHED + b"bye")
        call.reset()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane)
        assert await client.rest() == b"bye"
        assert plane.handler.leases == 1
        if not goes_on:
            client.writer.close()
        while not plane.handler.finished:
            if goes_on:
                await client.send(b"x")  # nobody is there: the router hears so by and by
            await asyncio.sleep(0.001)
        assert plane.handler.outcomes == [("r0", "answered")]
        client.leave()
        await plane.settled(0)


async def test_a_client_that_dies_ends_the_replicas_side() -> None:
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SWITCHED)
        with contextlib.suppress(ConnectionError):
            while await call.reader.read(65536):
                pass
        gone.set()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane)
        await client.send(b"x")
        client.crash()
        async with asyncio.timeout(TIMEOUT_S):
            await gone.wait()
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "client_gone")]
        assert plane.handler.finished[0].status == 101
        await plane.settled(0)


async def test_a_slow_client_slows_its_replica() -> None:
    sent = 0
    blocks = 400

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(SWITCHED)
        for _ in range(blocks):
            await call.send(BLOCK)
            sent += 1
        call.end()
        await call.reader.read()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane, 8192)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: sent > 0)
        seen = -1
        while seen != sent:
            seen = sent
            await asyncio.sleep(0.1)  # it may still be filling buffers
        assert sent < blocks
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(TIMEOUT_S):
            assert len(await client.reader.read(-1)) == blocks * len(BLOCK)
        client.writer.close()
        await plane.settled(0)
        assert plane.handler.outcomes == [("r0", "answered")]


async def test_a_slow_replica_slows_its_client() -> None:
    go_on = asyncio.Event()
    heard = 0

    async def script(call: Call) -> None:
        nonlocal heard
        await call.send(SWITCHED)
        await go_on.wait()
        while data := await call.reader.read(65536):
            heard += len(data)

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await opened(plane)
        blocks = 0
        with contextlib.suppress(TimeoutError):
            while blocks < 2000:
                client.writer.write(BLOCK)
                async with asyncio.timeout(0.3):
                    await client.writer.drain()
                blocks += 1
        assert blocks < 2000
        go_on.set()
        client.writer.write_eof()
        assert await client.rest() == b""
        assert heard == (blocks + 1) * len(BLOCK)
        await plane.settled(0)


CUTS = {
    "idle": (TimeoutsConfig(tunnel_idle_s=0.1), "nothing passed through the tunnel for 0.1 s"),
    "in all": (TimeoutsConfig(total_s=0.1), "the request was not over within 0.1 s"),
}


@pytest.mark.parametrize(("timeouts", "failure"), CUTS.values(), ids=CUTS)
async def test_a_tunnel_is_cut_when_its_time_is_over(
    timeouts: TimeoutsConfig, failure: str
) -> None:
    async with data_plane(ScriptedReplica("r0", echo), timeouts=timeouts) as plane:
        client = await opened(plane)
        assert await client.rest() == b""
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "cut_off")]
        assert plane.handler.finished[0].status == 101
        assert plane.handler.finished[0].failure == failure
        client.leave()
        await plane.settled(0)


async def test_a_tunnel_in_use_is_not_idle() -> None:
    timeouts = TimeoutsConfig(tunnel_idle_s=1.0, between_bytes_s=0.1, first_byte_s=0.5)
    async with data_plane(ScriptedReplica("r0", echo), timeouts=timeouts) as plane:
        client = await opened(plane)
        for _ in range(8):
            await asyncio.sleep(0.2)
            await client.send(b"x")
            assert await client.until(b"x") == b"x"
        assert not plane.handler.finished


async def test_half_a_tunnel_is_waited_for_as_answers_are() -> None:
    async def script(call: Call) -> None:
        await call.send(SWITCHED)
        await asyncio.Event().wait()

    timeouts = TimeoutsConfig(between_bytes_s=0.1)
    async with data_plane(ScriptedReplica("r0", script), timeouts=timeouts) as plane:
        client = await opened(plane)
        client.writer.write_eof()
        assert await client.rest() == b""
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "cut_off")]
        await plane.settled(0)


async def test_a_drain_waits_for_open_tunnels_then_cuts_them() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client, idle = await opened(plane), await plane.connect()
        await until(lambda: plane.handler.server.connections == 2)
        plane.handler.draining = True
        drain = asyncio.create_task(plane.handler.server.drain(0.5))
        assert await idle.rest() == b""
        await client.send(b"still there")
        assert await client.until(b"there") == b"still there"
        assert not await drain
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "client_gone")]
        await plane.settled(0)


async def test_a_drain_ends_with_the_last_tunnel() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await opened(plane)
        plane.handler.draining = True
        drain = asyncio.create_task(plane.handler.server.drain(TIMEOUT_S))
        client.writer.write_eof()
        assert await client.rest() == b""
        assert await drain


async def test_tunnels_count_among_a_replicas_connections_and_take_none_that_are_idle() -> None:
    async def script(call: Call) -> None:
        if b"upgrade" in call.head:
            await echo(call)
        else:
            await call.json()

    replica = ScriptedReplica("r0", script)
    limits = LimitsConfig(max_connections_per_replica=2)
    async with data_plane(replica, limits=limits) as plane:
        (pool,) = plane.handler.pools.values()
        client = await plane.connect()
        await client.send(post())
        await client.response()
        assert (pool.open_connections, pool.idle_connections) == (1, 1)
        first = await opened(plane)
        assert (pool.open_connections, pool.idle_connections) == (2, 1)
        second = await opened(plane)  # in the idle one's place
        assert (pool.open_connections, pool.idle_connections) == (2, 0)
        third = await plane.connect()
        await third.send(upgrade())
        assert (await third.rest()).startswith(b"HTTP/1.1 429 ")
        for tunnel in (first, second):
            tunnel.writer.write_eof()
            assert await tunnel.rest() == b""
        await plane.settled(1)
        assert replica.connections == 3
