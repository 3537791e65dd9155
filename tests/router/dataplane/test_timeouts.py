"""Nobody is waited for without end: slow clients, silent replicas, and the drain."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator

import pytest

from router.config import TimeoutsConfig
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica, data_plane, post


async def answer(call: Call) -> None:
    await call.json()


async def silent(call: Call) -> None:
    await call.until_router_leaves()


HALF_A_HEAD = b"GET /own HTTP/1.1\r\nHost:"
HALF_A_BODY = post(body=b"12345")[:-2]
SLOW_REQUESTS = {
    "head": (HALF_A_HEAD, TimeoutsConfig(request_head_s=0.1), 408, "request_head_timed_out"),
    "body": (HALF_A_BODY, TimeoutsConfig(request_body_s=0.1), 408, "request_body_timed_out"),
    "head, in all": (HALF_A_HEAD, TimeoutsConfig(total_s=0.1), 504, "total_timed_out"),
    "body, in all": (HALF_A_BODY, TimeoutsConfig(total_s=0.1), 504, "total_timed_out"),
}


@pytest.mark.parametrize(
    ("sent", "timeouts", "status", "code"), SLOW_REQUESTS.values(), ids=SLOW_REQUESTS
)
async def test_a_request_that_does_not_arrive_is_not_waited_for(
    sent: bytes, timeouts: TimeoutsConfig, status: int, code: str
) -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica, timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(sent)
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 %d " % status)
        assert b"connection: close\r\n" in head
        assert json.loads(body)["error"]["code"] == code
        assert await client.rest() == b""
    assert not replica.calls


@pytest.mark.parametrize("requests", [0, 1], ids=["at first", "after an answer"])
async def test_an_idle_client_is_left_without_a_word(requests: int) -> None:
    """A 408 could be taken for the answer to a request that is on its way."""
    timeouts = TimeoutsConfig(keep_alive_s=0.1)
    async with data_plane(ScriptedReplica("r0", answer), timeouts=timeouts) as plane:
        client = await plane.connect()
        for _ in range(requests):
            await client.send(post())
            await client.response()
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == b""
        await plane.settled(0)
        assert not plane.handler.refusals


async def test_empty_lines_do_not_keep_a_connection_open() -> None:
    timeouts = TimeoutsConfig(keep_alive_s=0.3)
    async with data_plane(ScriptedReplica("r0", answer), timeouts=timeouts) as plane:
        client = await plane.connect()
        async with asyncio.timeout(TIMEOUT_S):
            with contextlib.suppress(ConnectionError):
                while not client.reader.at_eof():
                    await client.send(b"\r\n")
                    await asyncio.sleep(0.05)  # a trickle
        await plane.settled(0)


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port where connections are neither made nor refused: its queue is full."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listening.getsockname())
        yield listening.getsockname()[1]


SLOW_REPLICAS = {
    "first byte": (TimeoutsConfig(first_byte_s=0.1), "first_byte_timed_out", "broken"),
    "in all": (TimeoutsConfig(total_s=0.1), "total_timed_out", "cut_off"),
}


@pytest.mark.parametrize(("timeouts", "code", "outcome"), SLOW_REPLICAS.values(), ids=SLOW_REPLICAS)
async def test_a_replica_that_does_not_answer_is_a_504(
    timeouts: TimeoutsConfig, code: str, outcome: str
) -> None:
    async with data_plane(ScriptedReplica("r0", silent), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert b"connection: keep-alive\r\n" in head
        assert json.loads(body)["error"]["code"] == code
        await plane.settled(1)
        assert plane.handler.outcomes == [("r0", outcome)]


SLOW_CONNECTS = {
    "connect": (TimeoutsConfig(connect_s=0.1), "connect_timed_out", "connect_failed"),
    "in all": (TimeoutsConfig(total_s=0.1), "total_timed_out", "cut_off"),
}


@pytest.mark.parametrize(("timeouts", "code", "outcome"), SLOW_CONNECTS.values(), ids=SLOW_CONNECTS)
async def test_a_replica_that_cannot_be_reached_in_time_is_a_504(
    timeouts: TimeoutsConfig, code: str, outcome: str
) -> None:
    async with data_plane(ScriptedReplica("r0", answer), timeouts=timeouts) as plane:
        client = await plane.connect()
        with full_backlog() as port:
            plane.handler.pools["r0"]._port = port
            await client.send(post())
            head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 504 ")
        assert json.loads(body)["error"]["code"] == code
        await plane.settled(1)
        assert plane.handler.outcomes == [("r0", outcome)]


SLOW_STREAMS = {
    "between bytes": (TimeoutsConfig(between_bytes_s=0.1), "stream_timed_out", "broken_stream"),
    "in all": (TimeoutsConfig(total_s=0.1), "total_timed_out", "cut_off"),
}


@pytest.mark.parametrize(("timeouts", "code", "outcome"), SLOW_STREAMS.values(), ids=SLOW_STREAMS)
async def test_a_stream_that_takes_too_long_ends_with_an_error_event(
    timeouts: TimeoutsConfig, code: str, outcome: str
) -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await call.until_router_leaves()

    async with data_plane(ScriptedReplica("r0", script), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(post())
        rest = await client.rest()
        await plane.settled(0)
        assert plane.handler.outcomes == [("r0", outcome)]
    assert b'"type":"timeout_error"' in rest
    assert b'"code":"%b"' % code.encode() in rest
    assert rest.endswith(b"0\r\n\r\n")


async def test_a_stream_that_goes_on_and_on_is_cut_off_in_the_end() -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        while True:
            await call.event(b"tick")
            await asyncio.sleep(0.01)

    timeouts = TimeoutsConfig(total_s=0.3)
    async with data_plane(ScriptedReplica("r0", script), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(post())
        rest = await client.rest()
    assert b'"code":"total_timed_out"' in rest
    assert rest.endswith(b"0\r\n\r\n")


async def test_the_time_a_request_waits_behind_others_counts() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.json()

    replica = ScriptedReplica("r0", script)
    timeouts = TimeoutsConfig(total_s=0.1)
    async with data_plane(replica, timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(post() + post())
        for _ in range(2):
            _, body = await client.response()
            assert json.loads(body)["error"]["code"] == "total_timed_out"
    assert len(replica.calls) == 1


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
