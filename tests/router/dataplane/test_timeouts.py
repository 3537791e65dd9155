"""Nobody is waited for without end: slow clients, silent replicas, and the drain."""

import asyncio

import pytest

from router.config import TimeoutsConfig
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica, data_plane, post


async def answer(call: Call) -> None:
    await call.json()


async def silent(call: Call) -> None:
    await call.until_router_leaves()


SLOW_REQUESTS = {
    "half a head": (b"GET /own HTTP/1.1\r\nHost:", b"HTTP/1.1 408 ", b"head"),
    "half a body": (post(body=b"12345")[:-2], b"HTTP/1.1 408 ", b"body"),
    "nothing": (b"", b"", b""),
}


@pytest.mark.parametrize(("sent", "status", "what"), SLOW_REQUESTS.values(), ids=SLOW_REQUESTS)
async def test_a_client_that_does_not_go_on_is_not_waited_for(
    sent: bytes, status: bytes, what: bytes
) -> None:
    timeouts = TimeoutsConfig(request_head_s=0.1, request_body_s=0.1, keep_alive_s=0.1)
    async with data_plane(ScriptedReplica("r0", answer), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(sent)
        try:
            rest = await client.rest()
        except ConnectionResetError:
            rest = b""
    assert rest.startswith(status)
    assert what in rest


async def test_a_replica_that_does_not_answer_is_a_504() -> None:
    timeouts = TimeoutsConfig(first_byte_s=0.1)
    async with data_plane(ScriptedReplica("r0", silent), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(post())
        assert (await client.response())[0].startswith(b"HTTP/1.1 504 ")


async def test_a_stream_that_falls_silent_ends_with_an_error_event() -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await call.until_router_leaves()

    timeouts = TimeoutsConfig(between_bytes_s=0.1)
    async with data_plane(ScriptedReplica("r0", script), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(post())
        rest = await client.rest()
    assert b"was silent for 0.1 s" in rest
    assert rest.endswith(b"0\r\n\r\n")


async def test_draining_finishes_what_runs_and_closes_what_idles() -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await go_on.wait()
        await call.event(b"two")
        await call.end_stream()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        idle, busy_client = await plane.connect(), await plane.connect()
        await busy_client.send(post())
        await busy_client.until(b"one\n\n")
        plane.handler.draining = True
        drained = asyncio.create_task(plane.handler.server.drain(TIMEOUT_S))
        assert await idle.rest() == b""
        go_on.set()
        assert (await busy_client.rest()).endswith(b"0\r\n\r\n")
        assert await drained
