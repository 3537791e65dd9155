"""A worker as SGLang writes one: events as arrays, epochs in topics, snapshots without text.

Written after sglang/srt/disaggregation/kv_events.py, with msgspec alone: what it sends does not
depend on how we read it.
"""

import time
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from protocol.kv_events import BlockRemoved, BlockStored, KvEvent
from tests.support.event_publisher import EventPublisher

CHUNK_RECORDS = 4096


class SglangPublisher(EventPublisher):
    """Has a snapshot socket beside the others; its HTTP side is never asked."""

    def __init__(self, context: zmq.asyncio.Context, rank: int = 0) -> None:
        super().__init__(context, rank)
        self._snapshots = context.socket(zmq.ROUTER)
        self._snapshots.linger = 0
        self.snapshot_port = self._snapshots.bind_to_random_port("tcp://127.0.0.1")
        self.refusals: list[bytes] = []
        self.unheard_of: list[int] = []  # hashes that it holds and never told of

    def topic(self) -> bytes:
        return b"kv-events\x00sgl-kv-epoch=" + self.epoch.encode()

    def encode(self, events: list[KvEvent]) -> bytes:
        return msgspec.msgpack.encode([time.time(), [_array(one) for one in events], self.rank])

    def replay_topic(self) -> list[bytes]:
        return []

    async def serve_snapshots(self) -> None:
        while True:
            identity, empty, request = await self._snapshots.recv_multipart()
            assert (empty, request) == (b"", b"snapshot-v1")
            self.snapshots_asked += 1
            async with self.asked:
                self.asked.notify_all()
            for kind, body in await self._answer():
                await self._snapshots.send_multipart([identity, b"", kind, body])

    async def _answer(self) -> list[tuple[bytes, bytes]]:
        if self.refusals:
            return [(b"error", self.refusals.pop())]
        barrier_seq, self.next_seq = self.next_seq, self.next_seq + 1
        payload = self.encode([])
        self.buffer.append((barrier_seq, payload))
        if self._pub is not None:
            topic = self.topic() + b"\x00sgl-kv-snapshot=barrier"
            await self._pub.send_multipart([topic, barrier_seq.to_bytes(8, "big"), payload])
        records: list[Any] = [
            [chunk.event.parent_block_hash, [hash]] for hash, chunk in self.held.items()
        ]
        records += [[None, [hash]] for hash in self.unheard_of]
        header = [1, self.epoch, self.rank, self.next_seq, barrier_seq, "barrier", len(records)]
        chunks = [records[at : at + CHUNK_RECORDS] for at in range(0, len(records), CHUNK_RECORDS)]
        return [
            (b"header", msgspec.msgpack.encode(header)),
            *((b"chunk", msgspec.msgpack.encode(one)) for one in chunks),
            (b"end", b""),
        ]

    def close(self) -> None:
        self._snapshots.close(linger=0)
        super().close()


def _array(event: KvEvent) -> list[Any]:
    if isinstance(event, BlockStored):
        return ["BlockStored", event.block_hashes, event.parent_block_hash, event.token_ids,
                event.block_size, None, "GPU"]  # fmt: skip
    if isinstance(event, BlockRemoved):
        return ["BlockRemoved", event.block_hashes, "GPU"]
    return ["AllBlocksCleared"]
