"""Probes, load reports and backoff: what is heard of a replica beside its events."""

import asyncio
from random import Random

import msgspec
import pytest
import zmq
import zmq.asyncio

from protocol.load_report import LoadReport, encode_load_report
from router.config import ProbeConfig, ReplicaConfig
from router.control.backoff import Backoff
from router.control.load_reports import follow_load_reports
from router.control.probes import probe
from tests.support.data_plane import TIMEOUT_S, Call, ScriptedReplica


def test_waits_double_up_to_the_most_with_jitter_and_start_again() -> None:
    backoff = Backoff(first_s=1.0, most_s=5.0, rng=Random(0))
    for most in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert most / 2 <= backoff.next_s() <= most
    backoff.reset()
    assert backoff.next_s() <= 1.0


async def first_result(replica: ReplicaConfig, config: ProbeConfig) -> str | None:
    results: asyncio.Queue[str | None] = asyncio.Queue()
    task = asyncio.create_task(
        probe(replica, config, lambda failure, head: results.put_nowait(failure))
    )
    async with asyncio.timeout(TIMEOUT_S):
        first = await results.get()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return first


@pytest.mark.parametrize(
    ("status", "expected"),
    [(b"200 OK", None), (b"503 Loading", "answered 503"), (b"302 Found", "answered 302")],
)
async def test_a_probe_says_whether_the_replica_is_ready(
    status: bytes, expected: str | None
) -> None:
    async def say(call: Call) -> None:
        await call.json(status=status)

    replica = ScriptedReplica("a", say)
    await replica.start()
    config = ReplicaConfig(id="a", url=f"http://127.0.0.1:{replica.port}/")
    assert await first_result(config, ProbeConfig(path="/ready")) == expected
    assert replica.calls[0].head.startswith(b"GET /ready HTTP/1.1")
    await replica.stop()


async def test_a_probe_tells_silence_from_absence() -> None:
    async def be_silent(call: Call) -> None:
        await call.reader.read()

    replica = ScriptedReplica("a", be_silent)
    await replica.start()
    config = ReplicaConfig(id="a", url=f"http://127.0.0.1:{replica.port}")
    assert await first_result(config, ProbeConfig(timeout_s=0.05)) == "no answer within 0.05 s"
    await replica.stop()
    absent = await first_result(config, ProbeConfig())
    assert absent
    assert "connect" in absent.lower()


async def test_probes_keep_their_connection_and_get_a_new_one_when_it_was_closed() -> None:
    async def say(call: Call) -> None:
        await call.json()

    replica = ScriptedReplica("a", say)
    await replica.start()
    config = ReplicaConfig(id="a", url=f"http://127.0.0.1:{replica.port}")
    results: asyncio.Queue[str | None] = asyncio.Queue()
    settings = ProbeConfig(interval_s=0.01, timeout_s=TIMEOUT_S)
    task = asyncio.create_task(
        probe(config, settings, lambda failure, head: results.put_nowait(failure))
    )
    async with asyncio.timeout(TIMEOUT_S):
        assert [await results.get() for _ in range(5)] == [None] * 5
        assert replica.connections == 1
        replica.close_connections()
        assert [await results.get() for _ in range(5)] == [None] * 5
        assert replica.connections == 2
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await replica.stop()


async def test_load_reports_are_heard_and_nonsense_is_complained_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.XPUB)
    port = publisher.bind_to_random_port("tcp://127.0.0.1")
    reports: asyncio.Queue[LoadReport] = asyncio.Queue()
    task = asyncio.create_task(
        follow_load_reports(f"tcp://127.0.0.1:{port}", context, reports.put_nowait)
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await publisher.recv()  # the subscription
            await publisher.send(b"\xc1")
            await publisher.send(msgspec.msgpack.encode(["Other"]))
            await publisher.send(encode_load_report(LoadReport(1, 2, 3, 4)))
            await publisher.send_multipart([b"topic", encode_load_report(LoadReport(5, 6, 7, 8))])
            assert [await reports.get(), await reports.get()] == [
                LoadReport(1, 2, 3, 4), LoadReport(5, 6, 7, 8),
            ]  # fmt: skip
        assert len([one for one in caplog.records if "not a load report" in one.message]) == 1
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        publisher.close(linger=0)
        context.destroy(linger=0)
