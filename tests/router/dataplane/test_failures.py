"""What goes wrong on either side: retried before the first byte, told after it."""

import asyncio
import contextlib

import pytest

from router.config import LimitsConfig
from tests.support.data_plane import (
    TIMEOUT_S,
    Call,
    ScriptedReplica,
    StubHandler,
    StubRoute,
    data_plane,
    post,
)


async def answer(call: Call) -> None:
    await call.json()


async def die(call: Call) -> None:
    call.reset()


async def die_after_head(call: Call) -> None:
    await call.start_stream()
    call.reset()


async def busy(call: Call) -> None:
    await call.json(b'{"error":{"message":"full"}}', b"503 Service Unavailable")


async def garbage(call: Call) -> None:
    await call.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def endless_head(call: Call) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\nX-A: " + b"x" * 100_000)


async def silent(call: Call) -> None:
    await call.until_router_leaves()


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        (die, "broken"),
        (die_after_head, "broken"),
        (busy, "refused"),
        (garbage, "broken"),
        (endless_head, "broken"),
    ],
    ids=["dies", "dies after its head", "busy", "not HTTP", "endless head"],
)
async def test_before_the_first_byte_another_replica_is_tried(script: object, outcome: str) -> None:
    replicas = ScriptedReplica("r0", script), ScriptedReplica("r1", answer)  # type: ignore[arg-type]
    async with data_plane(*replicas) as plane:
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
        await plane.finished()
        assert plane.handler.outcomes == [("r0", outcome), ("r1", "answered")]
    assert body == b'{"ok":true}'
    assert b"x-warmroute-replica: r1" in head


async def test_a_replica_that_refuses_connections_is_passed_over() -> None:
    replicas = ScriptedReplica("r0", answer), ScriptedReplica("r1", answer)
    async with data_plane(*replicas) as plane:
        await replicas[0].stop()
        client = await plane.connect()
        await client.send(post())
        assert (await client.response())[1] == b'{"ok":true}'
        assert plane.handler.outcomes[0] == ("r0", "connect_failed")


async def test_with_no_replica_left_the_client_is_told_when_to_come_again() -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        await replica.stop()
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in head
    assert b'"unavailable"' in body


async def test_the_last_replica_that_dies_is_a_502() -> None:
    async with data_plane(ScriptedReplica("r0", die)) as plane:
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"replica r0: the replica closed the connection" in body
        await client.send(b"GET /own HTTP/1.1\r\nHost: router\r\n\r\n")
        assert (await client.response())[1] == b'{"own":true}'


async def test_the_last_replicas_refusal_is_passed_on() -> None:
    async with data_plane(ScriptedReplica("r0", busy)) as plane:
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b'"full"' in body


async def test_an_idle_connection_the_replica_closed_is_no_fault_of_anybody() -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.response()

        async def close_on_request(call: Call) -> None:
            replica.script = answer
            call.reset()

        replica.script = close_on_request
        await client.send(post())
        assert (await client.response())[1] == b'{"ok":true}'
        await plane.finished(2)
        assert plane.handler.outcomes == [("r0", "answered"), ("r0", "answered")]
    assert replica.connections == 2


async def test_a_broken_stream_ends_with_an_error_event() -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        call.reset()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        rest = await client.rest()
        assert plane.handler.outcomes == [("r0", "broken_stream")]
    assert rest.endswith(b"0\r\n\r\n")
    assert rest.count(b"data: ") == 2
    assert b'data: {"error":{"message":"the stream broke: replica r0: ' in rest


async def test_a_stream_that_breaks_before_its_first_event_begins_anew_elsewhere() -> None:
    async def broken(call: Call) -> None:
        await call.start_stream()
        await call.send(b"ff\r\ndata: ha")
        call.reset()

    async def whole(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await call.end_stream()

    async with data_plane(ScriptedReplica("r0", broken), ScriptedReplica("r1", whole)) as plane:
        client = await plane.connect()
        await client.send(post())
        head = await client.head()
        assert b"x-warmroute-replica: r1\r\n" in head
        assert await client.until(b"0\r\n\r\n") == b"b\r\ndata: one\n\n\r\n0\r\n\r\n"
        assert plane.handler.outcomes == [("r0", "broken_stream"), ("r1", "answered")]


async def test_a_stream_that_breaks_before_its_first_event_is_an_error_where_none_is_left() -> None:
    async def script(call: Call) -> None:
        await call.start_stream()
        await call.send(b"ff\r\ndata: ha")
        call.reset()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b"upstream_failed" in body


async def test_when_the_client_leaves_the_replica_is_told_at_once() -> None:
    left = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await call.until_router_leaves()
        left.set()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.until(b"one\n\n")
        client.leave()
        async with asyncio.timeout(TIMEOUT_S):
            await left.wait()
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "client_gone")]
        assert plane.handler.finished[0].status == 499


async def test_a_client_that_leaves_before_the_answer_begins_frees_the_replica() -> None:
    left = asyncio.Event()

    async def script(call: Call) -> None:
        await call.until_router_leaves()
        left.set()

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        async with asyncio.timeout(TIMEOUT_S):
            await replica.called.wait()
            client.leave()
            await left.wait()


async def test_a_client_that_reads_slowly_slows_the_replica_down() -> None:
    sent = 0
    everything = 64 * 1024 * 1024

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % everything)
        piece = b"x" * 65536
        while sent < everything:
            await call.send(piece)
            sent += len(piece)

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(post())
        # Nothing moves any more once all buffers are full: wait for that, not for a time.
        seen = None
        async with asyncio.timeout(TIMEOUT_S):
            while seen is None or sent != seen or not sent:
                seen = sent
                await asyncio.sleep(0.1)
        assert sent < everything / 2
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        await client.head()
        async with asyncio.timeout(TIMEOUT_S):
            body = await client.reader.readexactly(everything)
    assert len(body) == everything


async def test_the_replicas_connections_are_bounded() -> None:
    release = asyncio.Event()

    async def script(call: Call) -> None:
        await release.wait()
        await call.json()

    replica = ScriptedReplica("r0", script)
    limits = LimitsConfig(max_connections_per_replica=1)
    async with data_plane(replica, limits=limits) as plane:
        first, second = await plane.connect(), await plane.connect()
        await first.send(post())
        async with asyncio.timeout(TIMEOUT_S):
            await replica.called.wait()
        await second.send(post())
        assert (await second.response())[0].startswith(b"HTTP/1.1 429 ")
        release.set()
        assert (await first.response())[1] == b'{"ok":true}'


async def test_one_connection_too_many_is_closed() -> None:
    async with data_plane(
        ScriptedReplica("r0", answer), limits=LimitsConfig(max_connections=1)
    ) as plane:
        first = await plane.connect()
        await first.send(post())
        await first.response()
        second = await plane.connect()
        with contextlib.suppress(ConnectionResetError):
            assert await second.rest() == b""
        await first.send(post())
        assert (await first.response())[1] == b'{"ok":true}'


async def test_a_client_that_never_reads_is_not_served_on_and_on() -> None:
    answer_bytes = 200_000
    served = 0

    async def large(call: Call) -> None:
        nonlocal served
        served += 1
        await call.json(b"x" * answer_bytes)

    async with data_plane(ScriptedReplica("r0", large)) as plane:
        client = await plane.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(400):
            client.writer.write(post())
        seen = None
        async with asyncio.timeout(TIMEOUT_S):
            while seen is None or served != seen or not served:
                seen = served
                await asyncio.sleep(0.2)
        assert served < 100
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(400):
            assert len((await client.response())[1]) == answer_bytes


@pytest.mark.parametrize("where", ["open", "assign"])
@pytest.mark.parametrize("pipelined", [False, True], ids=["alone", "pipelined"])
async def test_our_own_bug_is_a_500_with_a_traceback_in_the_log(
    where: str, pipelined: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(*arguments: object) -> None:
        raise RuntimeError("a bug of ours")

    async with data_plane(ScriptedReplica("r0", answer)) as plane:
        client = await plane.connect()
        if pipelined:
            await client.send(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await client.response())[1] == b'{"own":true}'
        monkeypatch.setattr(StubHandler if where == "open" else StubRoute, where, bug)
        await client.send(post())
        answered = await client.rest()
        monkeypatch.undo()
    assert answered.startswith(b"HTTP/1.1 500 ")
    assert b"a bug of ours" not in answered
    assert "a bug of ours" in caplog.text
    assert "Traceback" in caplog.text


async def test_after_a_stale_connection_a_fresh_one_is_taken() -> None:
    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        clients = [await plane.connect() for _ in range(3)]
        release = asyncio.Event()

        async def together(call: Call) -> None:
            if len(replica.calls) == 3:
                release.set()
            await release.wait()
            await call.json()

        replica.script = together
        for client in clients:
            await client.send(post())
        for client in clients:
            await client.response()
        assert replica.connections == 3  # all idle now

        async def stale(call: Call) -> None:
            if replica.connections == 3:
                call.reset()
            else:
                await call.json()

        replica.script = stale
        await clients[0].send(post())
        assert (await clients[0].response())[1] == b'{"ok":true}'
        assert [outcome for _, outcome in plane.handler.outcomes] == ["answered"] * 4


async def test_a_405_says_what_is_allowed() -> None:
    async with data_plane(ScriptedReplica("r0", answer)) as plane:
        client = await plane.connect()
        await client.send(b"POST /own HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        head, _ = await client.response()
    assert head.startswith(b"HTTP/1.1 405 ")
    assert b"allow: GET, HEAD\r\n" in head
