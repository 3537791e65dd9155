"""Before the 101: another replica, within the budget; what comes early; who leaves or waits."""

import asyncio
import json

import pytest

from router.config import LimitsConfig, TimeoutsConfig
from tests.support.data_plane import (
    TIMEOUT_S,
    Call,
    Script,
    ScriptedReplica,
    data_plane,
    post,
    until,
)
from tests.support.websocket import SWITCHED, echo, says, upgrade


async def resets(call: Call) -> None:
    call.crash()


async def leaves(call: Call) -> None:
    raise ConnectionError("it leaves")


HEAD = b"HTTP/1.1 101 X\r\n"
UP = b"Connection: Upgrade\r\n"
WS = b"Upgrade: websocket\r\n"
FAILURES: dict[str, tuple[Script, str]] = {
    "busy": (says(b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\nno"), "refused"),
    "too many": (says(b"HTTP/1.1 429 X\r\nContent-Length: 2\r\n\r\nno"), "refused"),
    "reset": (resets, "broken"),
    "closed": (leaves, "broken"),
    "junk": (says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), "broken"),
    "bare LFs": (says(b"HTTP/1.1 101 X\nUpgrade: websocket\nConnection: Upgrade\n\n"), "broken"),
    "an odd 101": (says(HEAD + UP + WS + b"X: \x00\r\n\r\n"), "broken"),
    "another protocol": (says(HEAD + UP + b"Upgrade: h2c\r\n\r\n"), "broken"),
    "two protocols": (says(HEAD + UP + WS + WS + b"\r\n"), "broken"),
    "no protocol": (says(HEAD + UP + b"\r\n"), "broken"),
    "no upgrade": (says(HEAD + WS + b"\r\n"), "broken"),
    "HTTP/1.0": (says(HEAD.replace(b"1.1", b"1.0") + UP + WS + b"\r\n"), "broken"),
    "a head too large": (says(HEAD + b"X: " + b"x" * 5000), "broken"),
    "interim answers without end": (says(b"HTTP/1.1 102 X\r\n\r\n" * 300), "broken"),
}


@pytest.mark.parametrize(("script", "outcome"), FAILURES.values(), ids=FAILURES)
async def test_a_handshake_that_fails_is_tried_elsewhere(script: Script, outcome: str) -> None:
    limits = LimitsConfig(max_head_bytes=4000)
    replicas = ScriptedReplica("r0", script), ScriptedReplica("r1", echo)
    async with data_plane(*replicas, limits=limits) as plane:
        client = await plane.connect()
        await client.send(upgrade() + b"early")
        head = await client.head()
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"x-warmroute-replica: r1\r\n" in head
        assert await client.until(b"early") == b"early"
        client.writer.write_eof()
        assert await client.rest() == b""
        await plane.settled(0)
        assert plane.handler.outcomes == [("r0", outcome), ("r1", "answered")]
        assert plane.handler.finished[0].attempts == 2
    assert replicas[0].calls[0].head.startswith(b"GET /v1/realtime HTTP/1.1\r\n")


@pytest.mark.parametrize(("script", "outcome"), FAILURES.values(), ids=FAILURES)
async def test_the_last_failure_is_told_and_the_connection_closed(
    script: Script, outcome: str
) -> None:
    limits = LimitsConfig(max_head_bytes=4000)
    async with data_plane(ScriptedReplica("r0", script), limits=limits) as plane:
        client = await plane.connect()
        await client.send(upgrade() + post(b"/own"))
        answer = await client.rest()
        assert answer.count(b"HTTP/1.1 ") == 1
        assert b"connection: close\r\n" in answer
        if outcome == "broken":
            assert answer.startswith(b"HTTP/1.1 502 ")
            body = answer.partition(b"\r\n\r\n")[2]
            assert json.loads(body)["error"]["code"] == "upstream_failed"
        else:
            assert answer.endswith(b"\r\n\r\nno")  # its own words
            outcome = "answered"
        client.leave()
        await plane.settled(0)
        assert plane.handler.outcomes == [("r0", outcome)]


async def test_a_replica_that_cannot_be_reached_is_passed_over() -> None:
    replicas = ScriptedReplica("r0", echo), ScriptedReplica("r1", echo)
    async with data_plane(*replicas) as plane:
        await replicas[0].stop()
        client = await plane.connect()
        await client.send(upgrade())
        assert b"x-warmroute-replica: r1\r\n" in await client.head()
        assert plane.handler.outcomes == [("r0", "connect_failed")]
        await replicas[1].stop()
        client = await plane.connect()
        await client.send(upgrade())
        assert (await client.rest()).startswith(b"HTTP/1.1 503 ")
        await replicas[0].start()
        await replicas[1].start()


SLOW = {
    "first byte": (TimeoutsConfig(first_byte_s=0.1), "first_byte_timed_out", "broken"),
    "in all": (TimeoutsConfig(total_s=0.1), "total_timed_out", "cut_off"),
}


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 10", b"HTTP/1.1 200 OK\r\nX: "])
@pytest.mark.parametrize(("timeouts", "code", "outcome"), SLOW.values(), ids=SLOW)
async def test_a_handshake_is_not_waited_for_without_end(
    timeouts: TimeoutsConfig, code: str, outcome: str, said: bytes
) -> None:
    async with data_plane(ScriptedReplica("r0", says(said)), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(upgrade())
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 504 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == code
        client.leave()
        await plane.settled(0)
        assert plane.handler.outcomes == [("r0", outcome)]


async def test_a_refusal_that_stops_in_its_middle_is_cut_short() -> None:
    timeouts = TimeoutsConfig(between_bytes_s=0.1)
    said = b"HTTP/1.1 403 X\r\nContent-Length: 9\r\n\r\nno"
    async with data_plane(ScriptedReplica("r0", says(said)), timeouts=timeouts) as plane:
        client = await plane.connect()
        await client.send(upgrade())
        assert (await client.reader.readuntil(b"\r\n\r\nno")).startswith(b"HTTP/1.1 403 ")
        with pytest.raises(ConnectionResetError):
            await client.rest()
        await plane.settled(0)
        assert plane.handler.outcomes == [("r0", "broken_stream")]
        assert plane.handler.finished[0].status == 403


async def test_a_client_that_leaves_during_the_handshake_is_forgotten() -> None:
    replica = ScriptedReplica("r0", says(b""))
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(upgrade())
        async with asyncio.timeout(TIMEOUT_S):
            await replica.called.wait()
        client.leave()
        await plane.finished()
        assert plane.handler.finished[0].status == 499
        assert plane.handler.outcomes == [("r0", "client_gone")]
        await plane.settled(0)


async def test_bytes_that_come_before_the_101_are_kept_and_much_of_them_has_to_wait() -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await echo(call)

    data = bytes(range(256)) * 256 * 160  # 10 MiB
    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        client.writer.write(upgrade() + data)
        (connection,) = plane.handler.server._connections
        await until(lambda: connection._reading_paused)
        assert len(connection._reader.behind) < 2**19
        go_on.set()
        await client.head()
        async with asyncio.timeout(TIMEOUT_S):
            assert await client.reader.readexactly(len(data)) == data


async def test_a_handshake_behind_other_requests_waits_for_its_turn() -> None:
    async def script(call: Call) -> None:
        if b"upgrade: websocket" in call.head:
            await echo(call)
        else:
            await call.json()

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post() + post(b"/own?", b"").replace(b"POST", b"GET") + upgrade() + b"hi")
        assert (await client.response())[1] == b'{"ok":true}'
        assert (await client.response())[1] == b'{"own":true}'
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")
        assert await client.until(b"hi") == b"hi"
    assert replica.connections == 2  # one of its own, though another was idle


async def test_what_the_router_answers_itself_it_answers_and_closes() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(upgrade(b"/own") + post(b"/own"))
        answer = await client.rest()
        assert answer.endswith(b'connection: close\r\n\r\n{"own":true}')
        plane.handler.draining = True
        client = await plane.connect()
        await client.send(upgrade())
        assert (await client.rest()).startswith(b"HTTP/1.1 503 ")


async def test_a_head_that_is_no_request_is_no_upgrade() -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(upgrade(fields=b"Host: b\r\n" + upgrade().partition(b"router\r\n")[2]))
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_client_that_reads_nothing_is_cut_off_in_the_end() -> None:
    async def script(call: Call) -> None:
        await call.send(SWITCHED + b"x" * 2**22)

    timeouts = TimeoutsConfig(tunnel_idle_s=0.2, between_bytes_s=0.3)
    async with data_plane(ScriptedReplica("r0", script), timeouts=timeouts) as plane:
        client = await plane.connect(8192)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(upgrade())
        await plane.settled(0)
