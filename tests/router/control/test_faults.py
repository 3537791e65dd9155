"""After any faults on the way, through real sockets, the index says what the publisher holds."""

import asyncio
from contextlib import AsyncExitStack
from random import Random

import pytest

from protocol.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    KvEvent,
    UnknownEvent,
    encode_sequence_number,
)
from router.control import subscriber_socket
from tests.support.event_publisher import (
    TIMEOUT_S,
    EventPublisher,
    Follower,
    Make,
    publishing,
    stored,
    subscribed,
)
from tests.support.sglang_publisher import SglangPublisher

# How often of a hundred batches.
FATES = {
    "heard": 55, "lost": 10, "twice": 8, "late": 8, "truncated": 6, "headless": 3,
    "forgotten": 4, "restarted": 3, "rebound": 2, "router-restarted": 1,
}  # fmt: skip
BATCHES = 60


class World:
    """A publisher whose cache changes at random, and a way to the router that loses and damages."""

    def __init__(self, publisher: EventPublisher, rng: Random) -> None:
        self.publisher = publisher
        self._rng = rng
        self._next_hash = 1
        self._late: tuple[bytes, bytes] | None = None

    def change(self) -> list[KvEvent]:
        """What one step of the engine does to its cache."""
        rng, held = self._rng, self.publisher.held
        events: list[KvEvent] = []
        if held and rng.random() < 0.03:
            return [AllBlocksCleared()]
        leaves = set(held) - {one.event.parent_block_hash for one in held.values()}
        if len(leaves) > 10:
            gone = rng.sample(sorted(leaves), 3)
            events.append(BlockRemoved(block_hashes=list(gone)))
            held = {hash: one for hash, one in held.items() if hash not in gone}
        parent = rng.choice([None, *held])
        for _ in range(rng.randrange(1, 4)):
            hash, self._next_hash = self._next_hash, self._next_hash + 1
            events.append(stored(hash, b"%04d" % (hash % 10_000), parent))
            parent = hash
        return events

    async def step(self, fate: str) -> None:
        publisher = self.publisher
        if fate in ("restarted", "rebound"):
            publisher.unbind()
            if fate == "restarted":
                publisher.restart()
            await publisher.bound_again()
        elif fate == "forgotten":
            del publisher.buffer[: len(publisher.buffer) // 2]
        await publisher.publish(*self.change(), lost=True)
        seq, payload = publisher.buffer[-1]
        frames = (encode_sequence_number(seq), payload)
        if fate == "late":
            late, self._late = self._late, frames
            if late is not None:
                await publisher.send(*late)
            return
        if fate == "truncated":
            frames = (frames[0], payload[: self._rng.randrange(len(payload))])
        elif fate == "headless":
            frames = (frames[0][:3], payload)
        for _ in range({"lost": 0, "twice": 2}.get(fate, 1)):
            await publisher.send(*frames)
        if self._late is not None:
            await publisher.send(*self._late)
            self._late = None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("make", "snapshot_status"),
    [(EventPublisher, 200), (EventPublisher, 404), (SglangPublisher, 404)],
    ids=["ours", "vllm", "sglang"],
)
async def test_after_any_faults_the_index_is_the_truth(
    make: Make, snapshot_status: int, seed: int
) -> None:
    rng = Random(seed)
    fates = rng.choices(list(FATES), list(FATES.values()), k=BATCHES)
    if snapshot_status == 404:
        # What the buffer has dropped cannot be known without a snapshot that has the text.
        fates = [one for one in fates if one != "forgotten"]
    async with publishing(make) as publisher, AsyncExitStack() as router:
        publisher.snapshot_status = snapshot_status
        world = World(publisher, rng)
        follower = await router.enter_async_context(subscribed(publisher))
        for fate in fates:
            if fate == "router-restarted":
                await router.aclose()
                follower = await router.enter_async_context(subscribed(publisher))
            await world.step(fate)
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice([0, 0.01, 0.05]))
        await healed(publisher, follower)


async def healed(publisher: EventPublisher, follower: Follower) -> None:
    """Until all is known again. What is lost at the end of a stream shows only when it goes on."""
    number = 10**7
    async with asyncio.timeout(TIMEOUT_S):
        while not follower.has_all(publisher):
            await publisher.publish(stored(number, b"%04d" % (number % 10_000)))
            number += 1
            await asyncio.sleep(0.05)
    follower.agrees_with(publisher.held.values())


@pytest.mark.parametrize("snapshot_status", [200, 404], ids=["ours", "vllm"])
async def test_a_subscriber_that_is_too_slow_loses_batches_and_finds_the_truth(
    snapshot_status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriber_socket, "_RECEIVE_QUEUE_MESSAGES", 5)
    async with publishing() as publisher:
        publisher.snapshot_status = snapshot_status
        publisher.unbind()
        publisher.high_water_mark = 5
        await publisher.bound_again()
        async with subscribed(publisher) as follower:
            await publisher.subscribed()
            await follower.until(lambda: follower.status.synced)
            # More than the queues and the connection hold, without a pause to read in.
            for number in range(3000):
                event = stored(number, b"%04d" % number, None)
                gone = BlockRemoved(block_hashes=[number - 100] if number >= 100 else [])
                await publisher.publish(event, gone, UnknownEvent(type="long" * 500))
            await healed(publisher, follower)
            assert follower.status.gaps > 0
