"""When a connection ends: after so many requests, and when the router drains."""

import asyncio
import json

import pytest

from router.config import LimitsConfig
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica, data_plane, post, until


async def echo(call: Call) -> None:
    await call.json(call.body)


@pytest.mark.parametrize("path", [b"/v1/x", b"/own"], ids=["a replica's", "our own"])
async def test_the_last_answer_a_connection_may_carry_says_so(path: bytes) -> None:
    limits = LimitsConfig(max_requests_per_connection=3)
    request = b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    async with data_plane(ScriptedReplica("r0", echo), limits=limits) as plane:
        client = await plane.connect()
        for left in (2, 1, 0):
            await client.send(request)
            head, _ = await client.response()
            assert (b"connection: close\r\n" in head) == (left == 0)
        assert await client.rest() == b""
        again = await plane.connect()
        await again.send(request)
        assert b"connection: keep-alive\r\n" in (await again.response())[0]


async def test_what_is_pipelined_after_the_last_request_is_not_served() -> None:
    limits = LimitsConfig(max_requests_per_connection=3)
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica, limits=limits) as plane:
        client = await plane.connect()
        await client.send(b"".join(post(body=b"[%d]" % index) for index in range(12)))
        for index in range(3):
            head, body = await client.response()
            assert body == b"[%d]" % index
        assert b"connection: close\r\n" in head
        assert await client.rest() == b""
    assert len(replica.calls) == 3


async def test_a_stream_that_is_the_last_ends_with_the_connection() -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await call.end_stream()

    limits = LimitsConfig(max_requests_per_connection=1)
    async with data_plane(ScriptedReplica("r0", script), limits=limits) as plane:
        client = await plane.connect()
        await client.send(post())
        rest = await client.rest()
    assert b"connection: close\r\n" in rest
    assert rest.endswith(b"0\r\n\r\n")


def check_turned_away(head: bytes, body: bytes) -> None:
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"connection: close\r\n" in head
    assert b"retry-after: 1\r\n" in head
    assert json.loads(body)["error"]["code"] == "unavailable"


async def test_a_request_on_an_open_connection_is_turned_away_while_draining() -> None:
    replica = ScriptedReplica("r0", echo)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.response()
        plane.handler.draining = True
        await client.send(post())
        check_turned_away(*await client.response())
        assert await client.rest() == b""
    assert len(replica.calls) == 1


async def test_a_request_behind_a_stream_is_turned_away_while_draining() -> None:
    """The stream's head had promised that the connection stays."""
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await release.wait()
        await call.end_stream()

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post() + post())
        await client.until(b"one\n\n\r\n")
        plane.handler.draining = True
        drained = asyncio.create_task(plane.handler.server.drain(TIMEOUT_S))
        release.set()
        assert await client.until(b"0\r\n\r\n") == b"0\r\n\r\n"
        check_turned_away(*await client.response())
        assert await client.rest() == b""
        assert await drained
    assert len(replica.calls) == 1


async def test_an_answer_that_begins_while_draining_is_its_connections_last() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.json(call.body)

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post(body=b"[1]") + post(body=b"[2]"))
        async with asyncio.timeout(TIMEOUT_S):
            await replica.called.wait()
        plane.handler.draining = True
        release.set()
        head, body = await client.response()
        assert b"connection: close\r\n" in head
        assert body == b"[1]"
        assert await client.rest() == b""
    assert len(replica.calls) == 1


async def test_a_request_half_here_when_draining_begins_is_told() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        whole = post()
        await client.send(whole[:30])
        await until(lambda: any(one.busy for one in plane.handler.server._connections))
        plane.handler.draining = True
        drained = asyncio.create_task(plane.handler.server.drain(TIMEOUT_S))
        await client.send(whole[30:])
        check_turned_away(*await client.response())
        assert await drained
