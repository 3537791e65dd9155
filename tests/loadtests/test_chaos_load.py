"""The chaos test's clients: a connection that breaks is a loss, and whose it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtests.chaos.answers import Kind, Reference
from loadtests.chaos.cases import pool
from loadtests.chaos.load import Load, Report, Unsteady, references

REFERENCE = Reference(text="one", finish_reason="stop", prompt_tokens=1, completion_tokens=1)
(CASE,) = pool("m", 1)
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nx-warmroute-replica: r1\r\ncontent-type: text/event-stream\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[str]:
    """Gives each request `answer`, and closes the connection."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def losses(answer: bytes, *, worker_killed: bool = False) -> list[Report]:
    """Those of one client until it has met a plain one and a streamed one."""
    stop = asyncio.Event()
    met: list[Report] = []

    def on_loss(report: Report) -> None:
        met.append(report)
        if len({one.stream for one in met}) == 2:
            stop.set()

    async with server(answer) as url, asyncio.timeout(20):
        load = Load(
            url,
            {CASE: REFERENCE},
            clients=1,
            seed=1,
            worker_killed_since=lambda since_s: worker_killed,
            on_loss=on_loss,
        )
        await load.run(stop)
    load.tally.check()
    assert load.tally.plain + load.tally.streams == len(met)
    return met


async def test_a_connection_that_closes_without_a_word_is_a_loss_of_either_kind() -> None:
    met = await losses(b"")
    assert {(one.stream, one.loss.kind) for one in met} == {(False, Kind.FAILED), (True, Kind.LOST)}
    assert all(one.loss.what.startswith("no status") for one in met)


async def test_one_that_a_killed_worker_had_is_counted_apart() -> None:
    assert {one.loss.kind for one in await losses(b"", worker_killed=True)} == {Kind.CUT}


async def test_an_error_that_was_said_is_no_workers_fault() -> None:
    said = b"HTTP/1.1 503 Unavailable\r\ncontent-length: 4\r\n\r\nbusy"
    met = await losses(said, worker_killed=True)
    assert {one.loss.kind for one in met} == {Kind.FAILED, Kind.LOST}
    assert all("status 503" in one.loss.what and "busy" in one.loss.what for one in met)


async def test_a_stream_cut_in_its_middle_is_lost_with_the_replica_it_came_from() -> None:
    met = await losses(STREAM_HEAD + b"8\r\ndata: {}\r\n")
    streamed = [one for one in met if one.stream]
    assert {one.loss.kind for one in streamed} == {Kind.LOST}
    assert {one.replica for one in streamed} == {"r1"}


async def test_without_a_reference_there_is_no_run() -> None:
    async with server(b"HTTP/1.1 503 Unavailable\r\ncontent-length: 4\r\n\r\nbusy") as url:
        with pytest.raises(Unsteady, match="busy"):
            await references(url, [CASE], 1)
