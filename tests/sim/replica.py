"""A replica's process: it answers HTTP from an engine, crashes, freezes, and comes back empty.

Four kinds: ours (snapshot, goes on from token ids); one like vLLM (replays only, goes on from text)
and one like SGLang (a snapshot of names, its life in topics); and a plain one (no events).
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import TYPE_CHECKING

from replica.core.sequence import SequenceOutput
from tests.sim.answering import Answering, ServerConnection
from tests.sim.engine import Batch, Engine, EngineSpec
from tests.sim.journal import Journal
from tests.sim.network import Network, Process

if TYPE_CHECKING:
    from tests.sim.pubsub import SimSubscriber


class Kind(Enum):
    OURS = "ours"
    VLLM = "vllm"
    SGLANG = "sglang"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """
    Attributes:
        has_replay: Whether missed batches can be asked for.
        loads_s: From a process's start to the first request it can take.
        clock_s: By how much its clock is off.
    """

    kind: Kind
    engine: EngineSpec
    has_replay: bool
    loads_s: float
    clock_s: float


class SimReplica:
    """
    Attributes:
        life: How many times its process has been started.
        up: Whether its process is there.
        ready: Whether its engine has loaded.
        published: Every text that it ever told to hold, in any of its lives.
    """

    def __init__(
        self, name: str, spec: ReplicaSpec, network: Network, rng: Random, journal: Journal
    ) -> None:
        self.name = name
        self.spec = spec
        self.network = network
        self.rng = rng
        self.life = 0
        self.up = self.ready = self.frozen = False
        self.clock_s = spec.clock_s
        self.subscribers: dict[SimSubscriber, None] = {}
        self.published: set[bytes] = set()
        self.answering: dict[int, Answering] = {}
        self._journal = journal
        self._thawed = asyncio.Event()
        self.start()

    def start(self) -> None:
        """A new process, its cache empty."""
        assert not self.up
        self.life += 1
        self.up, self.ready, self.frozen = True, False, False
        self._thawed = asyncio.Event()
        self._thawed.set()
        self.process = Process(self.name)
        epoch = f"{self.name}-{self.life}"
        topic = b""
        if self.spec.kind is Kind.SGLANG:
            topic = b"kv-events\x00sgl-kv-epoch=" + epoch.encode()
        self.engine = Engine(
            self.spec.engine,
            self.network.loop,
            self.rng,
            epoch=epoch,
            topic=topic,
            wall_clock=lambda: self.network.loop.time() + self.clock_s,
            on_output=self._output,
            on_batch=self._batch,
        )
        self.network.start(self.process, lambda: ServerConnection(self))
        self.network.loop.call_later(self.spec.loads_s, self._loaded, self.life)
        self._journal.add(self.name, f"starts, life {self.life}")

    def _loaded(self, life: int) -> None:
        if life == self.life and self.up:
            self.ready = True

    def crash(self) -> None:
        """SIGKILL, or a device that fell off the bus."""
        if not self.up:
            return
        self._journal.add(self.name, "crashes")
        self.up = self.ready = self.frozen = False
        self.engine.die()
        self.answering.clear()
        self.network.kill(self.process)
        for subscriber in list(self.subscribers):
            subscriber.disconnect()
        self._thawed.set()

    def freeze(self) -> None:
        """SIGSTOP: it is there, and does nothing."""
        if self.up and not self.frozen:
            self._journal.add(self.name, "freezes")
            self.frozen = self.process.frozen = self.engine.frozen = True
            self._thawed.clear()

    def thaw(self) -> None:
        if self.up and self.frozen:
            self._journal.add(self.name, "thaws")
            self.frozen = False
            self._thawed.set()
            self.process.thaw()
            self.engine.thaw()

    async def until_thawed(self) -> None:
        await self._thawed.wait()

    @property
    def buffer(self) -> "deque[Batch]":
        return self.engine.buffer

    def snapshot(self) -> tuple[int, bytes]:
        """Status and body of GET /kv_cache/snapshot."""
        if self.spec.kind is not Kind.OURS:
            return 404, b""
        return (200, self.engine.snapshot()) if self.ready else (503, b"")

    def touch(self) -> None:
        """Somebody else asks it something that nobody has asked before: it has news."""
        if self.ready:
            prompt = [
                self.rng.randrange(32, 127) for _ in range(2 * self.spec.engine.block_size + 1)
            ]
            self.engine.submit(prompt, 1)

    def _output(self, output: SequenceOutput) -> None:
        answering = self.answering.get(output.sequence_id)
        if answering is not None:
            answering.output(output)

    def _batch(self, batch: Batch) -> None:
        self.published.update(self.engine.texts.values())
        if self.spec.kind is Kind.PLAIN:
            return
        self._journal.add(self.name, f"publishes batch {batch.seq}")
        frames = [batch.topic, batch.seq.to_bytes(8, "big"), batch.payload]
        for subscriber in list(self.subscribers):
            subscriber.send(frames)

    def check(self) -> None:
        if self.up:
            self.engine.check()
