"""Replicas that only tell what they cache: events, replays and snapshots of caches made by seed.

Run by `loadtests.bench_sync` as a process of its own, told by lines of JSON on its standard input:
`{"replica": 0, "do": "publish", "batches": 10, "lost": false}` makes batches and sends them, or
only numbers and remembers them; `"forget"` empties the replay buffer; `"restart"` begins a new life
with another cache and breaks the connection. Each line is answered by one on standard output.
"""

import argparse
import asyncio
import functools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from random import Random

import uvloop
import zmq
import zmq.asyncio
from aiohttp import web

from protocol.kv_events import (
    END_OF_REPLAY,
    BlockStored,
    EventBatch,
    Snapshot,
    encode_batch,
    encode_sequence_number,
    encode_snapshot,
)

BLOCK_SIZE = 16
VOCABULARY_SIZE = 49_152
SYSTEM_BLOCKS = 64
BATCH_BLOCKS = 4
SEEDS_A_LIFE = 1000


def cache(seed: int, blocks: int) -> list[BlockStored]:
    """A cache of conversations below one system prompt that all caches share, an event a chain."""
    rng, events, left = Random(seed), [_system()], blocks - SYSTEM_BLOCKS
    while left:
        length = min(left, rng.randrange(20, 150))
        events.append(_chain(rng, _system().block_hashes[-1], length))
        left -= length
    return events


def batch(seed: int, seq: int) -> BlockStored:
    """What batch `seq` of that cache stores."""
    return _chain(Random(f"{seed}/{seq}"), _system().block_hashes[-1], BATCH_BLOCKS)


@functools.cache
def _system() -> BlockStored:
    return _chain(Random(0), None, SYSTEM_BLOCKS)


def _chain(rng: Random, parent: int | bytes | None, blocks: int) -> BlockStored:
    return BlockStored(
        block_hashes=[rng.getrandbits(64) for _ in range(blocks)],
        parent_block_hash=parent,
        # Log-uniform: some tokens are frequent, most are rare, as words are.
        token_ids=[int(VOCABULARY_SIZE ** rng.random()) for _ in range(blocks * BLOCK_SIZE)],
        block_size=BLOCK_SIZE,
        medium="GPU",
    )


class Publisher:
    """One replica's sockets. Its HTTP side is `answer_snapshot`."""

    def __init__(self, context: zmq.asyncio.Context, seed: int, blocks: int) -> None:
        self.seed = seed
        self.blocks = blocks
        self.http_port = 0
        self._context = context
        self._lives = 0
        self._seq = 0
        self._buffer: list[tuple[int, bytes]] = []
        self._snapshot = b""
        self._events = cache(seed, blocks)
        self._pub = context.socket(zmq.PUB)
        self.port = self._pub.bind_to_random_port("tcp://127.0.0.1")
        self._router = context.socket(zmq.ROUTER)
        self._router.sndhwm = 100_000
        self.replay_port = self._router.bind_to_random_port("tcp://127.0.0.1")

    async def publish(self, batches: int, *, lost: bool) -> None:
        for _ in range(batches):
            event = batch(self.seed, self._seq)
            self._events.append(event)
            self._snapshot = b""
            payload = encode_batch(EventBatch(ts=time.time(), events=[event]))
            number = encode_sequence_number(self._seq)
            self._buffer.append((self._seq, payload))
            self._seq += 1
            if not lost:
                await self._pub.send_multipart([b"", number, payload])

    def forget(self) -> None:
        self._buffer.clear()

    async def restart(self) -> None:
        self._pub.close(linger=0)
        self.seed += SEEDS_A_LIFE
        self._lives += 1
        self._seq = 0
        self._buffer.clear()
        self._events, self._snapshot = cache(self.seed, self.blocks), b""
        self._pub = self._context.socket(zmq.PUB)
        while True:
            with suppress(zmq.ZMQError):  # the old socket leaves its port in its own time
                self._pub.bind(f"tcp://127.0.0.1:{self.port}")
                return
            await asyncio.sleep(0.001)

    async def answer_snapshot(self, request: web.Request) -> web.Response:
        return web.Response(body=self.snapshot())

    def snapshot(self) -> bytes:
        """Encoded once: how long a replica takes for it is not what is measured."""
        if not self._snapshot:
            self._snapshot = encode_snapshot(
                Snapshot(
                    epoch=f"{self.seed}/{self._lives}",
                    seq=self._seq - 1,
                    block_size=BLOCK_SIZE,
                    total_blocks=2 * self.blocks,
                    events=self._events,
                )
            )
        return self._snapshot

    async def serve_replays(self) -> None:
        while True:
            identity, empty, start = await self._router.recv_multipart()
            first = int.from_bytes(start, "big")
            for seq, payload in self._buffer:
                if seq >= first:
                    number = encode_sequence_number(seq)
                    await self._router.send_multipart([identity, empty, b"", number, payload])
            await self._router.send_multipart([identity, empty, b"", END_OF_REPLAY, b""])


async def serve(replicas: int, blocks: int) -> None:
    context = zmq.asyncio.Context()
    publishers = [Publisher(context, seed, blocks) for seed in range(1, replicas + 1)]
    async with AsyncExitStack() as stack:
        for publisher in publishers:
            app = web.Application()
            app.router.add_get("/kv_cache/snapshot", publisher.answer_snapshot)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            publisher.http_port = runner.addresses[0][1]
            publisher.snapshot()
        _say([[one.http_port, one.port, one.replay_port] for one in publishers])
        replays = [asyncio.create_task(one.serve_replays()) for one in publishers]
        async for line in await _lines():
            order = json.loads(line)
            publisher = publishers[order["replica"]]
            if order["do"] == "publish":
                await publisher.publish(order["batches"], lost=order["lost"])
            elif order["do"] == "forget":
                publisher.forget()
            else:
                await publisher.restart()
            _say("done")
        for task in replays:
            task.cancel()
    context.destroy(linger=0)


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


def prompts(events: Sequence[BlockStored]) -> Iterator[list[int]]:
    """The tokens of every chain, from the root on."""
    above: dict[int | bytes, list[int]] = {}
    for event in events:
        parent = event.parent_block_hash
        tokens = [*(above[parent] if parent is not None else ()), *event.token_ids]
        above[event.block_hashes[-1]] = tokens
        yield tokens


def main() -> None:
    parser = argparse.ArgumentParser(description="Stand-in replicas for loadtests.bench_sync.")
    parser.add_argument("--replicas", type=int, required=True)
    parser.add_argument("--blocks", type=int, required=True)
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.replicas, arguments.blocks))


if __name__ == "__main__":
    main()
