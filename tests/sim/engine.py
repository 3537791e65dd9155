"""One life of a replica's engine: the real scheduler and block pool, a timer for a device.

In the order of `replica.engine.loop`: a step's events are published before its tokens are told, and
a snapshot shows what has been published. It keeps what it held after each batch: the truth that
the router's index is compared with.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import msgspec

from protocol.kv_events import (
    BlockStored,
    EventBatch,
    KvEvent,
    Snapshot,
    encode_batch,
    encode_snapshot,
)
from replica.core.block_pool import BlockPool
from replica.core.evictions import EVICTIONS, EvictionName
from replica.core.limits import SchedulerLimits
from replica.core.plan import SamplingParams, StepPlan, StepResult
from replica.core.scheduler import Scheduler
from replica.core.sequence import SequenceOutput, SequenceRequest
from tests.sim.loop import SimLoop
from tests.sim.model import ASSETS, next_token
from tests.support.byte_model import END

_GREEDY = SamplingParams(temperature=0.0)
_STEP_S, _TOKEN_S = 0.01, 0.0005
MODEL_LEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """
    Attributes:
        slowness: How many times as long as others a step takes.
        steps_in_flight: 1 or 2.
        buffer_batches: That a replay can have.
    """

    block_size: int
    total_blocks: int
    max_batched_tokens: int
    max_running: int
    max_waiting: int
    slowness: float
    steps_in_flight: int
    buffer_batches: int
    eviction: EvictionName


@dataclass(frozen=True, slots=True)
class Batch:
    seq: int
    topic: bytes
    payload: bytes


class Engine:
    """
    Attributes:
        buffer: The last batches.
        held_after: Names of the blocks it held, for each batch it has published.
        texts: What each block's text and all before it is, of all it ever published.
    """

    def __init__(
        self,
        spec: EngineSpec,
        loop: SimLoop,
        rng: Random,
        *,
        epoch: str,
        topic: bytes,
        wall_clock: Callable[[], float],
        on_output: Callable[[SequenceOutput], None],
        on_batch: Callable[[Batch], None],
    ) -> None:
        self.spec = spec
        self.epoch = epoch
        self._topic = topic
        self.scheduler = Scheduler(
            limits=SchedulerLimits(
                max_batched_tokens=spec.max_batched_tokens,
                max_running_sequences=spec.max_running,
                max_waiting_sequences=spec.max_waiting,
                max_model_len=MODEL_LEN,
            ),
            pool=BlockPool(
                spec.total_blocks, spec.block_size, EVICTIONS[spec.eviction](spec.total_blocks)
            ),
        )
        self.last_seq = -1
        self.buffer: deque[Batch] = deque(maxlen=spec.buffer_batches)
        self.held_after: dict[int, frozenset[int]] = {-1: frozenset()}
        self.texts: dict[int, bytes] = {}
        self.frozen = False
        self._loop = loop
        self._rng = rng
        self._wall_clock = wall_clock
        self._on_output = on_output
        self._on_batch = on_batch
        self._alive = True
        self._in_flight: deque[StepPlan] = deque()
        self._device_free_at = 0.0
        self._overdue = 0  # steps that have ended while it was frozen
        self._wants_reset = False
        self._next_id = 0

    def submit(self, prompt: list[int], max_tokens: int, salt: str | None = None) -> int:
        """The sequence's number. Raises QueueFull, NeverFits."""
        number = self._next_id
        self._next_id += 1
        self.scheduler.submit(
            SequenceRequest(
                sequence_id=number,
                prompt_token_ids=prompt,
                sampling=_GREEDY,
                max_tokens=max_tokens,
                stop_token_ids=frozenset({END}),
                cache_salt=salt,
            ),
            self._loop.time(),
        )
        if not self._in_flight:
            self._start_steps()
        return number

    def abort(self, number: int) -> None:
        self.scheduler.abort(number)

    def reset_prefix_cache(self) -> None:
        """As soon as no step is in flight."""
        self._wants_reset = True
        if not self._in_flight:
            self._start_steps()

    def snapshot(self) -> bytes:
        self._publish()
        pool = self.scheduler.pool
        return encode_snapshot(
            Snapshot(
                epoch=self.epoch,
                seq=self.last_seq,
                block_size=pool.block_size,
                total_blocks=pool.total_blocks,
                events=self.scheduler.snapshot(),
            )
        )

    def placement(self) -> list[tuple[bytes, bytes]]:
        """SGLang's snapshot: the names of what it holds, after a batch of nothing."""
        self._publish()
        self._send([], self._topic + b"\x00sgl-kv-snapshot=barrier")
        records = [[None, [name]] for name in self.scheduler.pool._by_hash]
        header = [1, self.epoch, 0, self.last_seq + 1, self.last_seq, "barrier", len(records)]
        chunks = [(b"chunk", msgspec.msgpack.encode(records))] if records else []
        return [(b"header", msgspec.msgpack.encode(header)), *chunks, (b"end", b"")]

    def die(self) -> None:
        self._alive = False

    def thaw(self) -> None:
        self.frozen = False
        while self._overdue and self._alive:
            self._overdue -= 1
            self._finish_step()

    def _start_steps(self) -> None:
        """Gives the device what there is to do, as many steps ahead as it takes."""
        if self._wants_reset:
            if self._in_flight:
                return
            self._wants_reset = False
            self.scheduler.reset_prefix_cache()
            self._publish()
        while len(self._in_flight) < self.spec.steps_in_flight:
            plan = self.scheduler.schedule(self._loop.time())
            if plan is None:
                return
            self._in_flight.append(plan)
            seconds = (_STEP_S + _TOKEN_S * plan.num_tokens) * self.spec.slowness
            seconds *= 1.0 + 0.2 * self._rng.random()
            self._device_free_at = max(self._device_free_at, self._loop.time()) + seconds
            self._loop.call_at(self._device_free_at, self._step_ended)

    def _step_ended(self) -> None:
        if self._alive and self.frozen:
            self._overdue += 1
        elif self._alive:
            self._finish_step()

    def _finish_step(self) -> None:
        plan = self._in_flight.popleft()
        sampled = [
            None
            if one.sampling is None
            else self._sample(one.sequence_id, one.start + one.num_tokens)
            for one in plan.slices
        ]
        outputs = self.scheduler.apply(StepResult(sampled=sampled), self._loop.time())
        self._publish()
        self._start_steps()
        for output in outputs:
            self._on_output(output)

    def _sample(self, number: int, length: int) -> int:
        sequence = self.scheduler._sequences.get(number)
        if sequence is None or len(sequence.token_ids) < length:
            return END  # it was aborted, or has ended: the result is dropped
        return next_token(sequence.token_ids[:length])

    def _publish(self) -> None:
        events = self.scheduler.take_events()
        if not events:
            return
        for event in events:
            if isinstance(event, BlockStored):
                self._note_texts(event)
        self._send(events, self._topic)

    def _send(self, events: list[KvEvent], topic: bytes) -> None:
        self.last_seq += 1
        self.held_after[self.last_seq] = frozenset(self.scheduler.pool._by_hash)
        payload = encode_batch(EventBatch(ts=self._wall_clock(), events=events))
        batch = Batch(self.last_seq, topic, payload)
        self.buffer.append(batch)
        self._on_batch(batch)

    def _note_texts(self, event: BlockStored) -> None:
        parent = event.parent_block_hash
        text = b"" if parent is None else self.texts[int(parent)]
        texts = ASSETS.vocabulary.detokenise_blocks(event.token_ids, event.block_size)
        for name, addition in zip(event.block_hashes, texts, strict=True):
            text += addition
            self.texts[int(name)] = text

    def check(self) -> None:
        self.scheduler.check()
        limits = self.scheduler.limits
        most = limits.max_running_sequences + limits.max_waiting_sequences
        assert len(self.scheduler._sequences) <= most, "its queue is bounded"
