"""KV events, replay, snapshot and load reports over real ZMQ sockets, against the pool's truth."""

import asyncio
from pathlib import Path

import zmq
import zmq.asyncio

from protocol.kv_dialects import decode_batch
from protocol.kv_events import (
    EventBatch,
    Snapshot,
    decode_replay_message,
    decode_sequence_number,
    decode_snapshot,
    encode_sequence_number,
)
from protocol.load_report import decode_load_report
from tests.replica.core.driving import EventMirror
from tests.support.fake_engine import ApiHarness, make_config, running_api

TIMEOUT_S = 10.0


class Subscriber:
    """A SUB and a DEALER socket, as a router has them."""

    def __init__(self, directory: Path) -> None:
        self._context = zmq.asyncio.Context()
        self._live = self._context.socket(zmq.SUB)
        self._live.subscribe(b"kv")
        self._live.connect(f"ipc://{directory}/events")
        self._replay = self._context.socket(zmq.DEALER)
        self._replay.connect(f"ipc://{directory}/replay")

    async def next_batch(self) -> tuple[int, EventBatch]:
        async with asyncio.timeout(TIMEOUT_S):
            topic, seq, payload = await self._live.recv_multipart()
        assert topic == b"kv"
        return decode_sequence_number(seq), decode_batch(payload)

    async def replay(self, start: int) -> list[tuple[int, EventBatch]]:
        await self._replay.send_multipart([b"", encode_sequence_number(start)])
        batches = []
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                frames = await self._replay.recv_multipart()
                message = decode_replay_message(frames)
                if message is None:
                    return batches
                assert frames[:2] == [b"", b"kv"]
                batches.append((message.seq, decode_batch(message.payload)))

    def close(self) -> None:
        self._context.destroy(linger=0)


def events_config(directory: Path, **engine: object) -> dict[str, object]:
    return {
        "engine": {"kv_cache_blocks": 64, **engine},
        "kv_events": {
            "endpoint": f"ipc://{directory}/events",
            "replay": f"ipc://{directory}/replay",
            "topic": "kv",
            "buffer_steps": 1000,
        },
    }


async def snapshot(api: ApiHarness) -> Snapshot:
    async with api.session.get(api.url + "/kv_cache/snapshot") as response:
        assert response.status == 200
        assert response.content_type == "application/msgpack"
        return decode_snapshot(await response.read())


async def ask(api: ApiHarness, text: str) -> None:
    status, _ = await api.post("/v1/completions", {"prompt": text + "\n", "max_tokens": 40})
    assert status == 200


async def test_replay_live_events_and_snapshot_tell_the_same(tmp_path: Path) -> None:
    subscriber = Subscriber(tmp_path)
    config = make_config(**events_config(tmp_path))
    try:
        async with running_api(config) as api:
            await ask(api, "before anybody listened")
            early = await snapshot(api)
            assert early.epoch == "epoch-1"
            assert (early.block_size, early.total_blocks) == (4, 64)
            # Enough different prompts to evict, then a reset in the middle.
            for i in range(12):
                await ask(api, f"prompt number {i} " + "and so on " * (i % 3))
                if i == 7:
                    assert (await api.post("/reset_prefix_cache", {}))[0] == 200
            late = await snapshot(api)
            everything = await subscriber.replay(0)
            assert [seq for seq, _ in everything] == list(range(late.seq + 1))

            from_nothing, from_snapshot, truth = EventMirror(), EventMirror(), EventMirror()
            for _, batch in everything:
                from_nothing.apply(batch.events)
            from_snapshot.apply(early.events)
            for _, batch in await subscriber.replay(early.seq + 1):
                from_snapshot.apply(batch.events)
            truth.apply(late.events)
            assert truth.blocks
            assert from_nothing.blocks == from_snapshot.blocks == truth.blocks
            kinds = {type(event).__name__ for _, batch in everything for event in batch.events}
            assert kinds == {"BlockStored", "BlockRemoved", "AllBlocksCleared"}
            assert len(truth.blocks) == api.api.client.stats.cached_blocks
    finally:
        subscriber.close()


async def test_live_events_carry_on_where_the_snapshot_ends(tmp_path: Path) -> None:
    subscriber = Subscriber(tmp_path)
    try:
        async with running_api(make_config(**events_config(tmp_path))) as api:
            # A subscription takes effect some time after connecting: ask until one arrives.
            live = asyncio.create_task(subscriber.next_batch())
            for i in range(1000):
                await ask(api, f"{i}: are you there?")
                if live.done():
                    break
            await live
            start = await snapshot(api)
            await ask(api, "the one that counts, long enough for some blocks")
            end = await snapshot(api)
            assert end.seq > start.seq
            mirror, truth = EventMirror(), EventMirror()
            mirror.apply(start.events)
            truth.apply(end.events)
            seq = -1
            while seq < end.seq:
                seq, batch = await subscriber.next_batch()
                if seq > start.seq:
                    mirror.apply(batch.events)
            assert mirror.blocks == truth.blocks
    finally:
        subscriber.close()


async def test_a_replay_from_the_future_is_only_its_end_and_nonsense_is_ignored(
    tmp_path: Path,
) -> None:
    subscriber = Subscriber(tmp_path)
    try:
        async with running_api(make_config(**events_config(tmp_path))) as api:
            await ask(api, "something")
            await subscriber._replay.send_multipart([b"", b"nonsense!"])
            await subscriber._replay.send_multipart([b"only one frame"])
            assert await subscriber.replay(10_000) == []
    finally:
        subscriber.close()


async def test_without_kv_events_the_snapshot_still_tells_the_cache() -> None:
    async with running_api(make_config()) as api:
        assert (await snapshot(api)).seq == -1
        await ask(api, "a prompt of some blocks")
        after = await snapshot(api)
        assert after.seq >= 0
        assert after.events


async def test_load_reports_arrive_while_idle(tmp_path: Path) -> None:
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.subscribe(b"")
    socket.connect(f"ipc://{tmp_path}/load")
    config = make_config(load_reports={"endpoint": f"ipc://{tmp_path}/load", "interval_s": 0.01})
    try:
        async with running_api(config):
            async with asyncio.timeout(TIMEOUT_S):
                reports = [decode_load_report(await socket.recv()) for _ in range(3)]
        assert {(one.running, one.waiting, one.tokens) for one in reports} == {(0, 0, 0)}
        assert reports[0].max_total_tokens == 512
    finally:
        context.destroy(linger=0)
