"""Replicas that reset, close, babble or frame wrongly at every stage: told, cleaned up, gone on.

After each, nothing is held for anybody, and the next request is answered.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from router.config import LimitsConfig
from router.dataplane.replica_connection import ReplicaConnection
from tests.support.data_plane import (
    TIMEOUT_S,
    Call,
    DataPlane,
    ScriptedReplica,
    data_plane,
    post,
    until,
)  # fmt: skip
from tests.support.reads import Reads, reads_of

LIMITS = LimitsConfig(max_head_bytes=2000)
LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b"b\r\ndata: one\n\n\r\n"
OPEN_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
TOLD = b'data: {"error":{"message":"the stream broke: replica r0: '
END = b"0\r\n\r\n"


async def answer(call: Call) -> None:
    await call.json()


async def check_goes_on(plane: DataPlane, replica: ScriptedReplica, clients: int) -> None:
    await plane.settled(clients)
    replica.script = answer
    client = await plane.connect()
    await client.send(post())
    assert (await client.response())[1] == b'{"ok":true}'
    await plane.settled(clients + 1)


# What a replica sends before it breaks off; nothing of these can be relayed yet.
BEFORE = {
    "before the head": b"",
    "in the status line": b"HTTP/1.",
    "in the head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "at the head's last byte": LENGTH[:-1],
    "after an interim answer": b"HTTP/1.1 103 X\r\n\r\n",
    "after the head, by length": LENGTH,
    "after the head, in chunks": STREAM,
}


@pytest.mark.parametrize("sent", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("reset", [True, False], ids=["resets", "closes"])
async def test_a_replica_that_breaks_off_before_the_first_byte_is_a_502(
    sent: bytes, reset: bool, reads: Reads
) -> None:
    replica = ScriptedReplica("r0", broken_off(sent, reads, reset=reset))
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        head, body = await client.response()
        assert head.startswith(b"HTTP/1.1 502 ")
        assert b'"code":"upstream_failed"' in body
        assert plane.handler.outcomes == [("r0", "broken")]
        await check_goes_on(plane, replica, 1)


@pytest.fixture(name="reads")
def _reads() -> Iterator[Reads]:
    with reads_of(ReplicaConnection) as reads:
        yield reads


def broken_off(sent: bytes, reads: Reads, *, reset: bool):  # type: ignore[no-untyped-def]
    async def script(call: Call) -> None:
        # In two pieces, so that the first has been relayed when the second comes.
        await reads.send(call.send, [sent[:-1], sent[-1:]] if sent else [])
        if reset:
            call.reset()
        else:
            raise ConnectionError("the replica closes")

    return script


@dataclass
class Stream:
    """What was relayed when the replica broke off, and whether an event of ours can follow."""

    sent: bytes
    told: bool


AFTER = {
    "in a body by length": Stream(LENGTH + b"half", False),
    "between chunks": Stream(STREAM + EVENT, True),
    "in a chunk's size": Stream(STREAM + EVENT + b"1", True),
    "in a chunk's extension": Stream(STREAM + EVENT + b"1;x=y", True),
    "in the line end of a chunk's size": Stream(STREAM + EVENT + b"1\r", True),
    "at a chunk's beginning": Stream(STREAM + EVENT + b"ff\r\n", True),
    "in a chunk": Stream(STREAM + EVENT + b"ff\r\ndata: x", True),
    "in a chunk, after a line": Stream(STREAM + EVENT + b"ff\r\ndata: x\r\n", True),
    "in a chunk's line end": Stream(STREAM + EVENT + b"3\r\n: x\r", True),
    "in the last chunk": Stream(STREAM + EVENT + b"0\r\n", True),
    "in the trailers": Stream(STREAM + EVENT + b"0\r\nX-Sum: 1\r\n", True),
    "between chunks, in an event": Stream(STREAM + EVENT + b"4\r\ndata\r\n", True),
}


@pytest.mark.parametrize("stream", AFTER.values(), ids=AFTER)
@pytest.mark.parametrize("reset", [True, False], ids=["resets", "closes"])
async def test_an_answer_broken_off_is_never_taken_for_a_whole_one(
    stream: Stream, reset: bool, reads: Reads
) -> None:
    replica = ScriptedReplica("r0", broken_off(stream.sent, reads, reset=reset))
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.head()
        received = b""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while data := await client.reader.read(65536):
                    received += data
        except ConnectionResetError:
            assert not stream.told
        body = stream.sent.partition(b"\r\n\r\n")[2]
        assert plane.handler.outcomes == [("r0", "broken_stream")]
        if stream.told:  # what is not a whole event is not passed on
            assert received.startswith(EVENT)
            assert received[len(EVENT) :].partition(b"\r\n")[2].startswith(TOLD)
            assert received.endswith(b"\n\n\r\n" + END)
            assert_chunks(received)
        else:
            assert body.startswith(received)  # nothing of ours among it
        await check_goes_on(plane, replica, 0)


def assert_chunks(body: bytes) -> None:
    """Every chunk is as long as it says."""
    while body != END:
        size, _, body = body.partition(b"\r\n")
        assert body[int(size, 16) :].startswith(b"\r\n")
        body = body[int(size, 16) + 2 :]


async def test_a_stream_that_ends_by_closing_and_is_reset_says_so(reads: Reads) -> None:
    replica = ScriptedReplica("r0", broken_off(OPEN_STREAM + b"data: one\n\nda", reads, reset=True))
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        received = await client.rest()
        if plane.handler.outcomes == [("r0", "broken_stream")]:
            assert b"data: one\n\n" + TOLD in received
        await check_goes_on(plane, replica, 0)


CL = b"Content-Length: 2\r\n"
TE = b"Transfer-Encoding: chunked\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
WRONG = {
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty lines": b"\r\n\r\n",
    "empty lines, then an answer": b"\r\n\r\n" + OK + CL + b"\r\n{}",
    "HTTP/2": b"HTTP/2.0 200 OK\r\n" + CL + b"\r\n{}",
    "HTTP/0.9": b"HTTP/0.9 200 OK\r\n" + CL + b"\r\n{}",
    "ICY": b"ICY 200 OK\r\n" + CL + b"\r\n{}",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n" + CL + b"\r\n{}",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n" + CL + b"\r\n{}",
    "a status below 100": b"HTTP/1.1 099 OK\r\n" + CL + b"\r\n{}",
    "other protocols": b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nxyz",
    "other protocols, unnamed": b"HTTP/1.1 101 X\r\n\r\nxyz",
    "bare LFs": OK.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}",
    "a folded line": OK + b"X-A: 1\r\n 2\r\n" + CL + b"\r\n{}",
    "a NUL": OK + b"X-A: \x00\r\n" + CL + b"\r\n{}",
    "a bare CR": OK + b"X-A: 1\r2\r\n" + CL + b"\r\n{}",
    "a blank before a colon": OK + b"X-A : 1\r\n" + CL + b"\r\n{}",
    "length and chunks": OK + CL + TE + b"\r\n0\r\n\r\n",
    "two lengths": OK + CL + b"Content-Length: 3\r\n\r\n{}x",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\n{}",
    "a negative length": OK + b"Content-Length: -2\r\n\r\n{}",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked not last": OK + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + TE + TE + b"\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\n" + TE + b"\r\n0\r\n\r\n",
    "a chunk's size that is none": OK + TE + b"\r\nxyz\r\n",
    "a chunk's size that overflows": OK + TE + b"\r\nfffffffffffffffff\r\n",
    "a chunk longer than its size": OK + TE + b"\r\n2\r\nabc\r\n0\r\n\r\n",
    "two answers": (OK + CL + b"\r\n{}") * 2,
    "an answer, then junk": OK + CL + b"\r\n{}junk",
    "a 204 with a body": b"HTTP/1.1 204 X\r\n" + CL + b"\r\n{}",
    "a head too large": OK + b"X-A: " + b"x" * 3000 + b"\r\n" + CL + b"\r\n{}",
    "a head without end": OK + b"X-A: " + b"x" * 3000,
    "interim answers without end": b"HTTP/1.1 102 X\r\n\r\n" * 200,
}


@pytest.mark.parametrize("sent", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("singly", [False, True], ids=["at once", "in single bytes"])
async def test_what_is_no_answer_is_a_502_or_ends_in_its_middle(
    sent: bytes, singly: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(call: Call) -> None:
        for piece in [sent[i : i + 1] for i in range(len(sent))] if singly else [sent]:
            await call.send(piece)
        await call.until_router_leaves()

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica, limits=LIMITS) as plane:
        client = await plane.connect()
        await client.send(post() + post(b"/own"))
        received = b""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                received = await client.reader.readuntil(b"}}")
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass  # it was cut short
        if not received.startswith(b"HTTP/1.1 502 "):
            # In pieces, an answer was whole (the rest came to an idle connection) or broke off.
            assert received.count(b"HTTP/1.1 ") <= 2
            assert b"xyz" not in received
        client.leave()
        await check_goes_on(plane, replica, 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_answer_cut_short_is_seen_as_cut_short() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf")
        call.reset()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        try:
            rest = await client.rest()
        except ConnectionResetError:
            rest = b""
    assert not rest.endswith(b"0\r\n\r\n")
    assert b"error" not in rest


async def test_an_answer_that_only_its_end_delimits_does_not_look_whole_when_it_breaks() -> None:
    relayed = asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await relayed.wait()
        call.crash()

    async with data_plane(ScriptedReplica("r0", script)) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.reader.readuntil(b"half")
        relayed.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_a_body_after_head_does_not_reach_the_client() -> None:
    async def script(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\nHTTP/1.1 404 X\r\n")

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(b"HEAD /v1/x HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.head()).startswith(b"HTTP/1.1 502 ")
        await client.send(b"GET /own HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await client.response())[1] == b'{"own":true}'
        await check_goes_on(plane, replica, 1)


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\n\r\n", b"x", b"\r\n", None],
                         ids=["an answer", "junk", "an empty line", "an end"])  # fmt: skip
async def test_what_comes_to_an_idle_connection_ends_it(sent: bytes | None) -> None:
    go_on = asyncio.Event()

    async def script(call: Call) -> None:
        await call.json()
        await go_on.wait()
        if sent is None:
            raise ConnectionError("the replica closes")
        await call.send(sent)

    replica = ScriptedReplica("r0", script)
    async with data_plane(replica) as plane:
        client = await plane.connect()
        await client.send(post())
        await client.response()
        (pool,) = plane.handler.pools.values()
        assert pool.idle_connections == 1
        go_on.set()
        await until(lambda: pool.open_connections == 0)
        await check_goes_on(plane, replica, 1)
        assert plane.handler.outcomes == [("r0", "answered")] * 2
    assert replica.connections == 2
