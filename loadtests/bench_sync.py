"""How fast the router knows the caches, and knows them again: `make bench-sync`.

    decode     event batches per dialect: straight into structs, against piece by piece
    restart    a router starts in front of replicas that are full: snapshots of all of them
    heal       from a fault to the moment the router says it is exact again, which is then checked
    live       CPU time a batch of a stream that is just followed

The replicas are stand-ins in a process of their own. Exact means: asked for every prompt that a
replica holds, the tree says all of it, and it holds no block more.
"""

import argparse
import asyncio
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from random import Random
from typing import Any

import httpx
import msgspec
import uvloop
import zmq.asyncio

from cli.terminal import table
from loadtests.sync_publishers import (
    BATCH_BLOCKS,
    SEEDS_A_LIFE,
    SYSTEM_BLOCKS,
    VOCABULARY_SIZE,
    batch,
    cache,
    prompts,
)
from prompt.vocabulary import Vocabulary
from protocol.kv_dialects import decode_batch, decode_batch_by_pieces
from protocol.kv_events import BlockStored, SnapshotReader
from router.config import KvEventsConfig, ReplicaConfig
from router.control.pace import Pace
from router.control.subscription import KvSubscription, SubscriptionStatus
from router.core.kv_index import KvIndex
from router.core.prefix_tree import PrefixTree

_TIMEOUT_S = 60.0


class Publishers:
    """The stand-ins' process, as the bench sees it."""

    def __init__(self, stack: ExitStack, replicas: int, blocks: int) -> None:
        command = [sys.executable, "-m", "loadtests.sync_publishers",
                   "--replicas", str(replicas), "--blocks", str(blocks)]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(self._end)
        self.ports: list[list[int]] = self._hear()

    def tell(self, do: str, replica: int = 0, **order: object) -> None:
        """Returns when it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "replica": replica, **order}) + "\n")
        self._process.stdin.flush()
        self._hear()

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the stand-in replicas have died")
        return json.loads(line)


class Router:
    """The part of a router that follows events: one tree, a subscription for every replica."""

    def __init__(self, ports: Sequence[Sequence[int]], vocabulary: Vocabulary) -> None:
        self.tree = PrefixTree()
        self.index = KvIndex(self.tree, vocabulary)
        self.vocabulary = vocabulary
        self.changed = asyncio.Event()
        self.context = zmq.asyncio.Context()
        self.http = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=None))
        pace = Pace()
        self.subscriptions = [
            KvSubscription(
                ReplicaConfig(
                    id=f"r{number}",
                    url=f"http://127.0.0.1:{http}",
                    kv_events=KvEventsConfig(
                        endpoint=f"tcp://127.0.0.1:{events}", replay=f"tcp://127.0.0.1:{replay}"
                    ),
                ),
                self.index, self.context, self.http, self._on_change, pace=pace,
            )
            for number, (http, events, replay) in enumerate(ports)
        ]  # fmt: skip

    def _on_change(self, _: SubscriptionStatus) -> None:
        self.changed.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()

    def check_exact(self, number: int, events: Sequence[BlockStored]) -> None:
        """Raises SystemExit when the index does not say what this replica holds."""
        replica = f"r{number}"
        held = sum(len(event.block_hashes) for event in events)
        if self.tree.held_blocks(replica) != held:
            raise SystemExit(f"{replica}: {self.tree.held_blocks(replica)} blocks, not {held}")
        for tokens in prompts(events):
            prompt = self.vocabulary.detokenise(tokens) + b"\xff"
            found = self.tree.match((), prompt).confirmed.get(replica)
            if found is None or found[0] != len(tokens):
                raise SystemExit(f"{replica}: a prompt of {len(tokens)} tokens: {found}")

    async def close(self) -> None:
        await self.http.aclose()
        self.context.destroy(linger=0)


class Stalls:
    """How long the event loop kept others waiting: asks for a turn each millisecond."""

    def __init__(self) -> None:
        self.longest_s = 0.0

    async def watch(self) -> None:
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest_s = max(self.longest_s, time.perf_counter() - asked - 0.001)


def bench_decode(rounds: int) -> list[list[str]]:
    """µs a block, best of `rounds`."""
    rng = Random(1)
    rows = []
    for blocks in (1, 8, 256):
        events = [_stored(rng, blocks) for _ in range(max(1, 512 // blocks))]
        arrays = [["BlockStored", *_fields(event)] for event in events]
        for dialect, written in (("maps", events), ("arrays", arrays)):
            payload = msgspec.msgpack.encode([1.0, written, 0])
            # In turns, so that what else the machine does meets both.
            before, after = float("inf"), float("inf")
            for _ in range(rounds):
                before = min(before, _seconds(decode_batch_by_pieces, payload))
                after = min(after, _seconds(decode_batch, payload))
            before, after = before / (blocks * len(events)), after / (blocks * len(events))
            rows.append([dialect, str(blocks), f"{before * 1e6:.2f}", f"{after * 1e6:.2f}",
                         f"{1 / after:,.0f}", f"{before / after:.1f}x"])  # fmt: skip
    return rows


def _seconds(decode: Callable[[bytes], object], payload: bytes) -> float:
    start = time.perf_counter()
    decode(payload)
    return time.perf_counter() - start


def _stored(rng: Random, blocks: int) -> BlockStored:
    return BlockStored(
        block_hashes=[rng.getrandbits(64) for _ in range(blocks)],
        parent_block_hash=rng.getrandbits(64),
        token_ids=[rng.randrange(VOCABULARY_SIZE) for _ in range(blocks * 16)],
        block_size=16,
        medium="GPU",
        extra_keys=[None] * blocks,
        group_idx=0,
        kv_cache_spec_kind="full_attention",
    )


def _fields(event: BlockStored) -> list[Any]:
    return [
        event.block_hashes, event.parent_block_hash, event.token_ids, event.block_size, None,
        event.medium, None, event.extra_keys, event.group_idx, event.kv_cache_spec_kind,
    ]  # fmt: skip


async def bench_sync(publishers: Publishers, blocks: int) -> list[list[str]]:
    rng = Random(2)
    letters = b"abcdefghijklmnopqrstuvwxyz "
    vocabulary = Vocabulary(
        [bytes(rng.choices(letters, k=rng.randrange(1, 9))) for _ in range(VOCABULARY_SIZE)]
    )
    router = Router(publishers.ports, vocabulary)
    rows = await _parts_of_a_snapshot(router, publishers.ports)
    stalls = Stalls()
    watching = asyncio.create_task(stalls.watch())
    wall, cpu = time.perf_counter(), time.process_time()
    following = [asyncio.create_task(one.run()) for one in router.subscriptions]
    await router.until(lambda: all(one.status.synced for one in router.subscriptions))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    total = len(publishers.ports) * blocks
    for number in range(len(publishers.ports)):
        router.check_exact(number, cache(number + 1, blocks))
    rows += [
        [f"restart: {len(publishers.ports)} replicas, {total:,} blocks exact", f"{wall:.3f} s"],
        ["  CPU of the process", f"{cpu:.3f} s, {cpu / total * 1e6:.1f} µs a block"],
        ["  longest wait of others for the event loop", f"{stalls.longest_s * 1000:.1f} ms"],
    ]  # fmt: skip
    rows += await _heal(router, publishers, blocks)
    rows += await _live(router, publishers)
    for task in (*following, watching):
        task.cancel()
    await asyncio.gather(*following, watching, return_exceptions=True)
    await router.close()
    return rows


async def _parts_of_a_snapshot(router: Router, ports: Sequence[Sequence[int]]) -> list[list[str]]:
    """What getting all snapshots costs by itself, and of one of them: decoding, text, tree."""
    start = time.perf_counter()
    urls = [f"http://127.0.0.1:{one[0]}/kv_cache/snapshot" for one in ports]
    answers = await asyncio.gather(*(router.http.get(url) for url in urls))
    fetch_s = time.perf_counter() - start
    start = time.perf_counter()
    events = list(SnapshotReader(answers[0].content).events())
    decode_s = time.perf_counter() - start
    start = time.perf_counter()
    for event in events:
        router.vocabulary.detokenise(event.token_ids)
    text_s = time.perf_counter() - start
    start = time.perf_counter()
    KvIndex(PrefixTree(), router.vocabulary).apply("r", events)
    apply_s = time.perf_counter() - start
    size = len(answers[0].content) / 1e6
    return [
        [f"fetching all {len(urls)} snapshots, {size:.1f} MB each", f"{fetch_s:.3f} s"],
        ["one snapshot: decoding", f"{decode_s * 1000:.0f} ms"],
        ["one snapshot: into an index of its own", f"{apply_s * 1000:.0f} ms"],
        ["  of that: tokens to text", f"{text_s * 1000:.0f} ms"],
    ]


async def _heal(router: Router, publishers: Publishers, blocks: int) -> list[list[str]]:
    """Faults of replica 0, one after another."""
    status = router.subscriptions[0].status
    rows, seq, seed = [], -1, 1

    async def heal(name: str, sent: int) -> None:
        nonlocal seq
        seq += sent
        start = time.perf_counter()
        await asyncio.to_thread(publishers.tell, "publish", batches=1, lost=False)
        seq += 1
        await router.until(lambda: status.synced and status.seq == seq)
        rows.append([f"heal: {name}", f"{(time.perf_counter() - start) * 1000:.0f} ms"])
        events = [*cache(seed, blocks), *(batch(seed, one) for one in range(seq + 1))]
        router.check_exact(0, events)

    await heal("nothing was wrong", 0)
    for lost in (1, 100, 1000):
        await asyncio.to_thread(publishers.tell, "publish", batches=lost, lost=True)
        await heal(f"{lost} batches lost, replayed", lost)
    await asyncio.to_thread(publishers.tell, "publish", batches=1, lost=True)
    await asyncio.to_thread(publishers.tell, "forget")
    await heal("1 batch lost for good, snapshot", 1)
    seq, seed = -1, seed + SEEDS_A_LIFE
    start = time.perf_counter()
    before = status.epoch
    await asyncio.to_thread(publishers.tell, "restart")
    await router.until(lambda: status.synced and status.epoch != before)
    took_ms = (time.perf_counter() - start) * 1000
    rows.append(["heal: engine restarted, full again at once", f"{took_ms:.0f} ms"])
    await heal("nothing was wrong", 0)
    return rows


async def _live(router: Router, publishers: Publishers, batches: int = 3000) -> list[list[str]]:
    # Another replica than that of the faults, if there is one.
    live = len(router.subscriptions) - 1
    status = router.subscriptions[live].status
    last = batches - 1
    wall, cpu = time.perf_counter(), time.process_time()
    telling = asyncio.to_thread(
        publishers.tell, "publish", replica=live, batches=batches, lost=False
    )
    sent = asyncio.create_task(telling)
    await router.until(lambda: status.seq == last)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    await sent
    name = f"live: {batches} batches of {BATCH_BLOCKS} blocks in {wall:.2f} s"
    return [[name, f"{cpu / batches * 1e6:.0f} µs CPU a batch"]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Benchmark of the router's KV-event following.")
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--blocks", type=int, default=25_000, help="in each replica's cache")
    arguments = parser.parse_args()
    if arguments.replicas < 1 or arguments.blocks <= SYSTEM_BLOCKS:
        parser.error(f"at least one replica, and more than {SYSTEM_BLOCKS} blocks in each")
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}\n")
    head = ["dialect", "blocks an event", "piece by piece, µs", "structs, µs", "blocks/s", "ratio"]
    print(*table(head, bench_decode(100)), "", sep="\n")
    # As the router sets it: router/app.py says why.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)
    with ExitStack() as stack:
        publishers = Publishers(stack, arguments.replicas, arguments.blocks)
        rows = uvloop.run(bench_sync(publishers, arguments.blocks))
    print(*table(["what", ""], rows), sep="\n")


if __name__ == "__main__":
    main()
