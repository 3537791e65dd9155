"""A replica's KV-event side in the test process: PUB socket, replay ROUTER, snapshot endpoint.

It keeps the truth (blocks held, as chains of texts), so that a tree can be compared with it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import zmq
import zmq.asyncio
from aiohttp import web

from prompt.vocabulary import Vocabulary
from protocol.kv_events import (
    END_OF_REPLAY,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventBatch,
    KvEvent,
    Snapshot,
    encode_batch,
    encode_sequence_number,
    encode_snapshot,
)
from router.config import KvEventsConfig, ReplicaConfig
from router.control.subscription import KvSubscription, SubscriptionStatus
from router.core.kv_index import KvIndex
from router.core.prefix_tree import PrefixTree

TIMEOUT_S = 10.0
BLOCK_SIZE = 4
REPLICA = "r0"
# One token a byte: a block's text is its token ids.
BYTE_VOCABULARY = Vocabulary([bytes([byte]) for byte in range(256)])


def stored(hash: int, text: bytes, parent: int | None = None, **fields: object) -> BlockStored:
    """One block of `BLOCK_SIZE` one-byte tokens."""
    return BlockStored(
        block_hashes=[hash],
        parent_block_hash=parent,
        token_ids=list(text),
        block_size=BLOCK_SIZE,
        **fields,  # type: ignore[arg-type]
    )


@dataclass
class Chunk:
    """A block in the publisher's truth."""

    event: BlockStored
    path: bytes


class EventPublisher:
    """Fake replica. Knobs say what it lacks and how it fails."""

    snapshot_port: int | None = None  # of a snapshot socket, where it has one

    def __init__(self, context: zmq.asyncio.Context, rank: int = 0) -> None:
        self.rank = rank
        self.high_water_mark = 100_000
        self.epoch = "epoch-0"
        self.next_seq = 0
        self.snapshot_status = 200
        self.snapshots_asked = 0
        self.bad_snapshots: list[bytes] = []
        self.replays_asked: list[int] = []
        self.answers_replays = True
        self.buffer: list[tuple[int, bytes]] = []
        self.held: dict[int, Chunk] = {}
        self.asked = asyncio.Condition()
        self.context = context
        self._pub: zmq.asyncio.Socket | None = None
        self._router = context.socket(zmq.ROUTER)
        self._router.linger = 0
        self.replay_port = self._router.bind_to_random_port("tcp://127.0.0.1")
        self.port = 0
        self.http_port = 0

    def bind(self) -> None:
        self._pub = self.context.socket(zmq.XPUB)
        self._pub.linger = 0
        self._pub.sndhwm = self.high_water_mark
        if self.port:
            self._pub.bind(f"tcp://127.0.0.1:{self.port}")
        else:
            self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")

    async def bound_again(self) -> None:
        """Until the port is free again that a closed socket leaves in its own time, and taken."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    return self.bind()
                except zmq.ZMQError:
                    self.unbind()
                    await asyncio.sleep(0.01)

    async def subscribed(self) -> None:
        """Until a subscriber is there."""
        assert self._pub is not None
        async with asyncio.timeout(TIMEOUT_S):
            assert (await self._pub.recv())[:1] == b"\x01"

    def unbind(self) -> None:
        """The publisher goes away; subscribers see a disconnect."""
        assert self._pub is not None
        self._pub.close(linger=0)
        self._pub = None

    def restart(self) -> None:
        """The engine starts anew with an empty cache; its port stays."""
        self.epoch = f"{self.epoch}+"
        self.next_seq = 0
        self.buffer.clear()
        self.held.clear()

    async def publish(self, *events: KvEvent, lost: bool = False) -> None:
        """One batch. `lost`: it happens, but no subscriber hears of it."""
        for event in events:
            self._remember(event)
        payload = self.encode(list(events))
        seq, self.next_seq = self.next_seq, self.next_seq + 1
        self.buffer.append((seq, payload))
        if not lost:
            await self.send(encode_sequence_number(seq), payload)

    async def send(self, *frames: bytes) -> None:
        """Frames after the topic, whatever they are."""
        assert self._pub is not None
        await self._pub.send_multipart([self.topic(), *frames])

    def topic(self) -> bytes:
        return b""

    def encode(self, events: list[KvEvent]) -> bytes:
        batch = EventBatch(ts=time.time(), events=events, data_parallel_rank=self.rank)
        return encode_batch(batch)

    def _remember(self, event: KvEvent) -> None:
        if isinstance(event, BlockStored):
            above = event.parent_block_hash
            path = self.held[above].path if isinstance(above, int) else b""
            [hash] = event.block_hashes
            assert isinstance(hash, int)
            self.held[hash] = Chunk(event, path + bytes(event.token_ids))
        elif isinstance(event, BlockRemoved):
            for hash in event.block_hashes:
                assert isinstance(hash, int)
                del self.held[hash]
        elif isinstance(event, AllBlocksCleared):
            self.held.clear()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            epoch=self.epoch,
            seq=self.next_seq - 1,
            block_size=BLOCK_SIZE,
            total_blocks=100,
            events=[chunk.event for chunk in self.held.values()],
        )

    async def answer_snapshot(self, request: web.Request) -> web.Response:
        self.snapshots_asked += 1
        async with self.asked:
            self.asked.notify_all()
        if self.snapshot_status != 200:
            return web.Response(status=self.snapshot_status)
        if self.bad_snapshots:
            return web.Response(body=self.bad_snapshots.pop())
        return web.Response(body=encode_snapshot(self.snapshot()))

    async def until_asked(self, count: int) -> None:
        """Until `count` snapshots were asked for."""
        async with asyncio.timeout(TIMEOUT_S), self.asked:
            await self.asked.wait_for(lambda: self.snapshots_asked >= count)

    async def serve_replays(self) -> None:
        while True:
            identity, empty, start = await self._router.recv_multipart()
            first = int.from_bytes(start, "big")
            self.replays_asked.append(first)
            if not self.answers_replays:
                continue
            topic = self.replay_topic()
            for seq, payload in self.buffer:
                if seq >= first:
                    frames = [identity, empty, *topic, encode_sequence_number(seq), payload]
                    await self._router.send_multipart(frames)
            await self._router.send_multipart([identity, empty, *topic, END_OF_REPLAY, b""])

    def replay_topic(self) -> list[bytes]:
        """The frames before a replayed batch's number."""
        return [b""]

    async def serve_snapshots(self) -> None:
        """Answers at its snapshot socket, if it has one."""

    def close(self) -> None:
        if self._pub is not None:
            self.unbind()
        self._router.close(linger=0)


class Follower:
    """A subscription under test, its tree and what it told."""

    def __init__(self, subscription: KvSubscription, tree: PrefixTree, index: KvIndex) -> None:
        self.subscription = subscription
        self.cache_id = subscription.cache_id
        self.status = subscription.status
        self.tree = tree
        self.index = index
        self.changed = asyncio.Event()
        self.trusted: list[bool] = []

    def on_change(self, status: SubscriptionStatus) -> None:
        self.trusted.append(status.synced)
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Until `holds()`; looked at after each change."""
        async with asyncio.timeout(TIMEOUT_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    async def caught_up(self, publisher: EventPublisher) -> None:
        """Until all the publisher's batches are known; then the tree equals its truth."""
        await self.until(lambda: self.has_all(publisher))
        self.agrees_with(publisher.held.values())

    def has_all(self, publisher: EventPublisher) -> bool:
        """Whether the publisher's last batch is known, and those before it."""
        last = publisher.next_seq - 1 if publisher.next_seq else None
        return self.status.synced and self.status.seq == last

    def agrees_with(self, chunks: Iterable[Chunk]) -> None:
        """The tree holds these blocks, and no other."""
        held = list(chunks)
        self.tree.check()
        assert self.tree.held_blocks(self.cache_id) == len(held)
        for chunk in held:
            match = self.tree.match((), chunk.path + b"\xff").confirmed
            assert match[self.cache_id][:2] == (len(chunk.path), len(chunk.path))


Make = Callable[[zmq.asyncio.Context, int], "EventPublisher"]


@asynccontextmanager
async def following(
    *,
    replay: bool = True,
    snapshot_status: int = 200,
    wait: bool = True,
    rank: int = 0,
    make: Make = EventPublisher,
) -> AsyncIterator[tuple[EventPublisher, Follower]]:
    """A publisher of one rank, and a subscription that follows it, connected."""
    async with publishing(make, rank) as publisher:
        publisher.snapshot_status = snapshot_status
        async with subscribed(publisher, replay=replay) as follower:
            if wait:
                await publisher.subscribed()
            yield publisher, follower


@asynccontextmanager
async def publishing(make: Make = EventPublisher, rank: int = 0) -> AsyncIterator[EventPublisher]:
    """A publisher whose sockets answer."""
    context = zmq.asyncio.Context()
    publisher = make(context, rank)
    try:
        async with serving_snapshots(publisher), asyncio.TaskGroup() as tasks:
            publisher.bind()
            running = [
                tasks.create_task(publisher.serve_replays()),
                tasks.create_task(publisher.serve_snapshots()),
            ]
            try:
                yield publisher
            finally:
                for task in running:
                    task.cancel()
    finally:
        publisher.close()
        context.destroy(linger=0)


@asynccontextmanager
async def serving_snapshots(publisher: EventPublisher) -> AsyncIterator[None]:
    """Its HTTP side runs."""
    app = web.Application()
    app.router.add_get("/kv_cache/snapshot", publisher.answer_snapshot)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    publisher.http_port = runner.addresses[0][1]
    try:
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def subscribed(publisher: EventPublisher, *, replay: bool = True) -> AsyncIterator[Follower]:
    """A router's side: it knows nothing yet."""
    rank = publisher.rank
    tree = PrefixTree()
    index = KvIndex(tree, BYTE_VOCABULARY)
    snapshot_port = publisher.snapshot_port
    config = ReplicaConfig(
        id=REPLICA,
        url=f"http://127.0.0.1:{publisher.http_port}/",
        kv_events=KvEventsConfig(
            endpoint=f"tcp://127.0.0.1:{publisher.port - rank}",
            replay=f"tcp://127.0.0.1:{publisher.replay_port - rank}" if replay else None,
            snapshot=f"tcp://127.0.0.1:{snapshot_port - rank}" if snapshot_port else None,
            ranks=rank + 1,
        ),
    )
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.TaskGroup() as tasks:
        follower: Follower
        subscription = KvSubscription(
            config, index, publisher.context, http,
            lambda status: follower.on_change(status), rank=rank,
        )  # fmt: skip
        follower = Follower(subscription, tree, index)
        running = tasks.create_task(subscription.run())
        try:
            yield follower
        finally:
            running.cancel()
