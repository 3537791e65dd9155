"""Which requests become tunnels, what both sides are told, and what comes instead."""

import asyncio

import pytest

from tests.support.data_plane import Call, ScriptedReplica, data_plane, post
from tests.support.websocket import FIELDS, SWITCHED, echo, says, upgrade


async def test_both_sides_are_told_of_the_upgrade_and_of_each_other() -> None:
    answered = SWITCHED.replace(
        b"\r\n\r\n", b"\r\nX-Request-Id: theirs\r\nSec-WebSocket-Protocol: realtime\r\n\r\n"
    )
    replica = ScriptedReplica("r0", says(answered))
    async with data_plane(replica) as plane:
        client = await plane.connect()
        extra = (
            b"Sec-WebSocket-Protocol: realtime\r\nAuthorization: Bearer x\r\nX-Request-Id: mine\r\n"
            b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
        )
        await client.send(upgrade(b"/v1/realtime?model=m", FIELDS + extra))
        lines = (await client.head()).split(b"\r\n")
        assert lines[0] == b"HTTP/1.1 101 Switching Protocols"
        assert sorted(lines[1:-2]) == [
            b"connection: Upgrade",
            b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            b"sec-websocket-protocol: realtime",
            b"upgrade: websocket",
            b"x-request-id: mine",
            b"x-warmroute-matched-tokens: 7",
            b"x-warmroute-replica: r0",
        ]
        head = replica.calls[0].head
        lines = head.split(b"\r\n")
        assert lines[0] == b"GET /v1/realtime?model=m HTTP/1.1"
        for field in (
            b"host: 127.0.0.1:%d" % replica.port,
            b"connection: Upgrade",
            b"upgrade: websocket",
            b"sec-websocket-version: 13",
            b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
            b"sec-websocket-protocol: realtime",
            b"sec-websocket-extensions: permessage-deflate; client_max_window_bits",
            b"authorization: Bearer x",
            b"x-request-id: mine",
            b"x-forwarded-for: 127.0.0.1",
            b"x-forwarded-proto: http",
            b"x-forwarded-host: router",
        ):
            assert lines.count(field) == 1, (field, head)
        assert b"\r\ntraceparent: 00-" in head
        assert b"content-length" not in head


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"CONNECTION:upgrade\r\nuPGRADE: WebSocket\r\n", id="in any case"),
        pytest.param(b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n", id="in a list"),
        pytest.param(FIELDS + b"Content-Length: 0\r\n", id="of no length"),
    ],
)
async def test_a_handshake_may_be_spelled_as_http_allows(fields: bytes) -> None:
    async with data_plane(ScriptedReplica("r0", echo)) as plane:
        client = await plane.connect()
        await client.send(upgrade(fields=fields))
        assert (await client.head()).startswith(b"HTTP/1.1 101 ")


NOT_TUNNELS = {
    "another protocol": upgrade(fields=b"Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    "one of two": upgrade(fields=b"Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n"),
    "one of two fields": upgrade(fields=FIELDS + b"Upgrade: h2c\r\n"),
    "a version of it": upgrade(fields=b"Connection: Upgrade\r\nUpgrade: websocket/13\r\n"),
    "not in Connection": upgrade(fields=b"Upgrade: websocket\r\n"),
    "HTTP/1.0": upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "POST": post(extra=FIELDS),
    "with a body": upgrade(fields=FIELDS + b"Content-Length: 2\r\n") + b"{}",
    "with chunks": upgrade(fields=FIELDS + b"Transfer-Encoding: chunked\r\n") + b"0\r\n\r\n",
}


@pytest.mark.parametrize("sent", NOT_TUNNELS.values(), ids=NOT_TUNNELS)
async def test_whatever_else_asks_for_an_upgrade_is_a_plain_request(sent: bytes) -> None:
    async def answer(call: Call) -> None:
        await call.json()

    replica = ScriptedReplica("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(sent)
        assert (await client.response())[1] == b'{"ok":true}'
        assert b"upgrade: " not in replica.calls[0].head


@pytest.mark.parametrize("singly", [False, True], ids=["at once", "in single bytes"])
async def test_interim_answers_and_bytes_right_behind_the_101_are_read_right(
    singly: bool,
) -> None:
    sent = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\n" + SWITCHED + b"hello"

    async def script(call: Call) -> None:
        for piece in [sent[i : i + 1] for i in range(len(sent))] if singly else [sent]:
            await call.send(piece)
            await asyncio.sleep(0)

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(upgrade())
        assert (await client.head()).startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert await client.until(b"hello") == b"hello"


@pytest.mark.parametrize(
    "status", [b"401 X", b"404 X", b"426 Upgrade Required", b"503 X", b"200 X"]
)
async def test_another_answer_is_relayed_and_nothing_behind_it_is_a_request(status: bytes) -> None:
    sent = b"HTTP/1.1 " + status + b"\r\nX-Why: no\r\nContent-Length: 4\r\n\r\nnope"
    replica = ScriptedReplica("r0", says(sent))
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(upgrade() + post(b"/own") + post())
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 " + status[:3])
        assert answer.endswith(b"connection: close\r\n\r\nnope")
        assert b"x-why: no\r\n" in answer
        assert b"x-warmroute-replica: r0\r\n" in answer
        assert answer.count(b"HTTP/1.1 ") == 1
        await plane.finished()
        assert plane.handler.outcomes == [("r0", "answered")]
        assert plane.handler.finished[0].status == int(status[:3])
        (pool,) = plane.handler.pools.values()
        assert pool.idle_connections == 0  # it is not used again
    assert len(replica.calls) == 1


REFUSALS = {
    "chunks": (b"Transfer-Encoding: chunked\r\n\r\n4\r\nnope\r\n0\r\n\r\n", b"nope\r\n0\r\n\r\n"),
    "no body": (b"Content-Length: 0\r\n\r\n", b"connection: close\r\n\r\n"),
    "to the end": (b"\r\nnope", b"close\r\n\r\nnope"),
}


@pytest.mark.parametrize(("sent", "end"), REFUSALS.values(), ids=REFUSALS)
async def test_a_refusal_may_be_framed_in_any_way(sent: bytes, end: bytes) -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 403 X\r\n" + sent)
        raise ConnectionError("it closes")

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(upgrade())
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert answer.endswith(end)
