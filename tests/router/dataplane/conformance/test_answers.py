"""Replicas' answers in every form and cut at every byte: relayed unchanged but for the head.

Sources: RFC 9112 §6.3 (where an answer ends), §7.1 (chunks); RFC 9110 §6.4.1 (no content), §15.2
(1xx).
"""

import asyncio
from dataclasses import dataclass

import pytest

from router.dataplane.replica_connection import ReplicaConnection
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica, data_plane, post
from tests.support.reads import Reads, reads_of, splits

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
CHUNKS = b'3\r\nabc\r\n1A;x="y"\r\nabcdefghijklmnopqrstuvwxyz\r\n0;z\r\nX-Sum: 1\r\n\r\n'


@dataclass
class Case:
    """What a replica sends, and what its client gets: status line, body bytes, fields."""

    sent: bytes
    status: bytes
    body: bytes
    fields: tuple[bytes, ...] = ()
    not_fields: tuple[bytes, ...] = ()
    method: bytes = b"POST"
    version: bytes = b"1.1"
    closes: bool = False
    ends: bool = False  # the replica ends it by closing
    reuses: bool = True


OK = b"200 OK"
CASES = {
    "by length": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-A: b\r\n\r\nabc", OK, b"abc",
        (b"content-length: 3", b"x-a: b"),
    ),
    "of length 0": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", OK, b"", (b"content-length: 0",)
    ),
    "a body that looks like an answer": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\nHTTP/1.1 404 X\r\n\r\n\r\n\r\nab", OK,
        b"HTTP/1.1 404 X\r\n\r\n\r\n\r\nab",
    ),
    "in chunks, with extensions and trailers": Case(
        CHUNKED + b"Trailer: X-Sum\r\n\r\n" + CHUNKS, OK, CHUNKS,
        (b"transfer-encoding: chunked", b"trailer: X-Sum"), (b"x-sum: 1", b"content-length"),
    ),
    "in no chunks": Case(CHUNKED + b"\r\n0\r\n\r\n", OK, b"0\r\n\r\n"),
    "until it closes": Case(
        b"HTTP/1.1 200 OK\r\n\r\nabc", OK, b"abc", (), (b"content-length",),
        closes=True, ends=True, reuses=False,
    ),
    "HTTP/1.0": Case(
        b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", OK, b"abc", reuses=False
    ),
    "HTTP/1.0 that stays": Case(
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 3\r\n\r\nabc", OK, b"abc"
    ),
    "closing by its own word": Case(
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", OK, b"abc",
        (b"connection: keep-alive",), reuses=False,
    ),
    "204": Case(
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b"204 No Content", b"",
        (), (b"content-length", b"transfer-encoding"),
    ),
    "304 with the length there would be": Case(
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"x\"\r\n\r\n",
        b"304 Not Modified", b"", (b"content-length: 9", b'etag: "x"'),
    ),
    "to HEAD": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", OK, b"", (b"content-length: 9",),
        method=b"HEAD", reuses=False,
    ),
    "to HEAD, in chunks that do not come": Case(
        CHUNKED + b"\r\n", OK, b"", (b"transfer-encoding: chunked",), method=b"HEAD", reuses=False
    ),
    "after interim ones": Case(
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", OK, b"abc", (), (b"link",),
    ),
    "after an unasked 100": Case(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabc",
        b"201 Created", b"abc",
    ),
    "an error": Case(
        b"HTTP/1.1 404 Nope\r\nContent-Length: 2\r\n\r\n{}", b"404 Not Found", b"{}"
    ),
    "a status without a name": Case(
        b"HTTP/1.1 299\r\nContent-Length: 2\r\n\r\n{}", b"299 ", b"{}"
    ),
    "hop-by-hop fields": Case(
        b"HTTP/1.1 200 OK\r\nConnection: X-Hop , keep-alive\r\nX-HOP: 1\r\nKeep-Alive: 5\r\n"
        b"Content-Length: 2\r\nX-End: caf\xe9\r\nProxy-Connection: x\r\n\r\n{}", OK, b"{}",
        (b"x-end: caf\xe9",), (b"x-hop", b"keep-alive: 5", b"proxy-connection"),
    ),
    "blanks around the framing": Case(
        b"HTTP/1.1 200 OK\r\nContent-Length:  2 \r\n\r\n{}", OK, b"{}", (b"content-length: 2",)
    ),
    "chunks for HTTP/1.0": Case(
        CHUNKED + b"\r\n" + CHUNKS, OK, b"abcabcdefghijklmnopqrstuvwxyz", (),
        (b"transfer-encoding", b"x-sum"), version=b"1.0", closes=True,
    ),
}  # fmt: skip


def script_of(case: Case, pieces: list[bytes], reads: Reads):  # type: ignore[no-untyped-def]
    async def script(call: Call) -> None:
        await reads.send(call.send, pieces)
        if case.ends:
            raise ConnectionError("the replica closes")

    return script


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_an_answer_is_the_same_however_it_is_cut(case: Case) -> None:
    replica = ScriptedReplica("r0", None)  # type: ignore[arg-type]
    keep = b"Connection: keep-alive\r\n" if case.version == b"1.0" and not case.closes else b""
    request = (
        case.method + b" /v1/x HTTP/" + case.version + b"\r\nHost: a\r\n" + keep
        + b"Content-Length: 0\r\n\r\n"
    )  # fmt: skip
    async with data_plane(replica) as plane:
        with reads_of(ReplicaConnection) as reads:
            client = await plane.connect()
            answered = 0
            for pieces in [[case.sent], *splits(case.sent)]:
                replica.script = script_of(case, pieces, reads)
                await client.send(request)
                head = await client.head()
                async with asyncio.timeout(TIMEOUT_S):
                    body = await client.reader.readexactly(len(case.body))
                assert head.startswith(b"HTTP/1.1 " + case.status + b"\r\n"), pieces
                assert body == case.body, pieces
                lines = head.split(b"\r\n")
                assert all(one in lines for one in case.fields), head
                assert not [one for one in case.not_fields if one in head.lower()], head
                assert (b"connection: close" in lines) == case.closes
                if case.closes:
                    assert await client.rest() == b""
                    client = await plane.connect()
                answered += 1
                await plane.finished(answered)
        assert {outcome for _, outcome in plane.handler.outcomes} == {"answered"}
    assert replica.connections == (1 if case.reuses else answered)


async def test_an_answer_larger_than_all_buffers_is_relayed_unchanged() -> None:
    body = bytes(range(256)) * 40_000

    async def script(call: Call) -> None:
        await call.send(CHUNKED + b"\r\n")
        for start in range(0, len(body), 100_000):
            part = body[start : start + 100_000]
            await call.send(b"%x\r\n%b\r\n" % (len(part), part))
        await call.send(b"0\r\n\r\n")

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.head()
        received = b""
        while size := int(await client.until(b"\r\n"), 16):
            async with asyncio.timeout(TIMEOUT_S):
                received += (await client.reader.readexactly(size + 2))[:-2]
        assert await client.until(b"\r\n") == b"\r\n"
    assert received == body


async def test_an_answer_before_the_whole_request_was_sent_costs_the_replicas_connection() -> None:
    """It may never read the rest, and a next request behind that would wait for ever."""
    large = b"x" * 16_000_000
    early = asyncio.Event()

    class Hasty(ScriptedReplica):
        async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if early.is_set():
                await super()._serve(reader, writer)
                return
            early.set()
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 413 X\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
            left.append(writer)

    left: list[asyncio.StreamWriter] = []

    async def answer(call: Call) -> None:
        await call.json()

    replica = Hasty("r0", answer)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        client.writer.write(post(body=large))
        head, _ = await client.response()
        assert head.startswith(b"HTTP/1.1 413 ")
        await client.send(post())
        assert (await client.response())[1] == b'{"ok":true}'
        left[0].transport.abort()
    assert replica.connections == 2


async def test_a_client_gets_bytes_as_soon_as_the_replica_sends_them() -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.start_stream()
        await call.event(b"one")
        await go_on.wait()
        await call.event(b"two")
        await call.end_stream()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.until(b"data: one\n\n\r\n")
        go_on.set()
        assert (await client.until(b"0\r\n\r\n")).endswith(b"data: two\n\n\r\n0\r\n\r\n")
