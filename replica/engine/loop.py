"""The engine's loop: take messages, schedule, run, apply, publish, answer. It never waits for HTTP.

Idle, it sleeps in one poll; busy, it looks at its messages between two steps. A runner that can
has the next step before the last one's result is looked at, so that the device never waits for us:

    host      schedule 2, start 2 │ wait 1, apply 1, answer │ schedule 3, start 3 │ wait 2 …
    device    ── 1 ───────────────────────── │ ── 2 ─────────────────────────────── │ ── 3 …
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import zmq

from protocol.kv_events import Snapshot
from protocol.load_report import LoadReport
from replica.core.limits import QueueFull, Refused
from replica.core.plan import SamplingParams, Step, StepPlan
from replica.core.scheduler import Scheduler
from replica.core.sequence import SequenceOutput, SequenceRequest
from replica.engine.messages import (
    Abort,
    FromEngine,
    PrefixCacheReset,
    Ready,
    Refusal,
    ResetPrefixCache,
    Shutdown,
    SnapshotTaken,
    Stats,
    StepOutputs,
    Submit,
    TakeSnapshot,
    ToEngine,
    TokenOutput,
    decode_to_engine,
    encode,
)
from replica.engine.publisher import EventPublisher, LoadPublisher
from replica.engine.step_log import StepLog


class Runner(Protocol):
    """What computes a step: `replica.runner.ModelRunner`, or a fake."""

    @property
    def vocab_size(self) -> int:
        """Token ids are in [0, vocab_size)."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        ...

    @property
    def steps_in_flight_max(self) -> int:
        """How many steps to start before the first one's result is taken: 1 or 2."""
        ...

    @property
    def compiled_kernels(self) -> int:
        """Kernels compiled since the start. Once it is ready, there should be no more of them."""
        ...

    def start(self, plan: StepPlan) -> Step: ...


class EngineLoop:
    """One scheduler, one runner, two message sockets. `run` returns after a Shutdown message.

    Owns none of the sockets, publishers and logs it is given.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        runner: Runner,
        requests: zmq.Socket[bytes],
        answers: zmq.Socket[bytes],
        events: EventPublisher,
        loads: LoadPublisher | None,
        steps: StepLog | None,
        epoch: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            requests: PULL, from the API process.
            answers: PUSH, to the API process.
            epoch: Names this life of the engine in snapshots.
            clock: Seconds, monotonic: the one that submissions are stamped by.
            wall_clock: Seconds since the epoch.
        """
        self._scheduler = scheduler
        self._runner = runner
        self._requests = requests
        self._answers = answers
        self._events = events
        self._loads = loads
        self._steps = steps
        self._epoch = epoch
        self._clock = clock
        self._wall_clock = wall_clock
        self._stopping = False
        # With its plan, and when it was started.
        self._in_flight: deque[tuple[StepPlan, float, Step]] = deque()

    def run(self) -> None:
        pool = self._scheduler.pool
        self._send(
            Ready(
                total_blocks=pool.total_blocks,
                block_size=pool.block_size,
                vocab_size=self._runner.vocab_size,
            )
        )
        self._send_outputs([])
        while True:
            self._take_messages()
            if self._stopping:
                return
            plan = self._scheduler.schedule(self._clock())
            if plan is not None:
                begun_s = self._clock()
                self._in_flight.append((plan, begun_s, self._runner.start(plan)))
            if plan is None or len(self._in_flight) == self._runner.steps_in_flight_max:
                self._finish_step()
            self._report_load()

    def _finish_step(self) -> None:
        """Takes the result of the oldest step in flight, if there is one."""
        if not self._in_flight:
            return
        plan, begun_s, step = self._in_flight.popleft()
        result = step.result()
        now = self._clock()
        if self._steps is not None:
            self._steps.ended(plan, begun_s, now)
        outputs = self._scheduler.apply(result, now)
        # Events first: whoever routes by them learns before the answer ends.
        self._publish_events()
        self._send_outputs(outputs)

    def _take_messages(self) -> None:
        """Handles what has arrived; with nothing to compute, waits for something to arrive."""
        aborted = False
        if not self._scheduler.has_work and not self._in_flight:
            now = self._clock()
            wait_ms = None if self._loads is None else int(self._loads.wait_s(now) * 1000) + 1
            self._requests.poll(wait_ms)
        while not self._stopping:
            try:
                payload = self._requests.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            message = decode_to_engine(payload)
            aborted |= isinstance(message, Abort)
            self._handle(message)
        if aborted and not self._scheduler.has_work:
            self._send_outputs([])  # so that the API process sees the blocks freed

    def _handle(self, message: ToEngine) -> None:
        match message:
            case Submit():
                self._submit(message)
            case Abort(sequence_id=sequence_id):
                self._scheduler.abort(sequence_id)
            case TakeSnapshot(call_id=call_id):
                self._publish_events()
                self._send(SnapshotTaken(call_id=call_id, snapshot=self._snapshot()))
            case ResetPrefixCache(call_id=call_id):
                while self._in_flight:
                    self._finish_step()
                self._scheduler.reset_prefix_cache()
                self._publish_events()
                self._send_outputs([])
                self._send(PrefixCacheReset(call_id=call_id))
            case Shutdown():
                self._stopping = True

    def _submit(self, message: Submit) -> None:
        request = SequenceRequest(
            sequence_id=message.sequence_id,
            prompt_token_ids=message.prompt_token_ids,
            sampling=SamplingParams(
                temperature=message.temperature,
                top_k=message.top_k,
                top_p=message.top_p,
                min_p=message.min_p,
                seed=message.seed,
            ),
            max_tokens=message.max_tokens,
            stop_token_ids=frozenset(message.stop_token_ids),
            cache_salt=message.cache_salt,
        )
        try:
            self._scheduler.submit(request, message.arrived_s)
        except Refused as refused:
            self._send(
                Refusal(
                    sequence_id=message.sequence_id,
                    message=str(refused),
                    try_later=isinstance(refused, QueueFull),
                )
            )

    def _snapshot(self) -> Snapshot:
        pool = self._scheduler.pool
        return Snapshot(
            epoch=self._epoch,
            seq=-1 if self._events.last_seq is None else self._events.last_seq,
            block_size=pool.block_size,
            total_blocks=pool.total_blocks,
            events=self._scheduler.snapshot(),
        )

    def _publish_events(self) -> None:
        self._events.publish(self._scheduler.take_events(), self._wall_clock())

    def _report_load(self) -> None:
        now = self._clock()
        if self._loads is None or self._loads.wait_s(now) > 0:
            return
        scheduler, pool = self._scheduler, self._scheduler.pool
        report = LoadReport(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            tokens=pool.held_blocks * pool.block_size,
            max_total_tokens=pool.total_blocks * pool.block_size,
            waiting_uncached_tokens=scheduler.waiting_tokens,
        )
        self._loads.publish(report, now)

    def _send_outputs(self, outputs: list[SequenceOutput]) -> None:
        self._send(
            StepOutputs(
                outputs=[
                    TokenOutput(
                        sequence_id=one.sequence_id,
                        token_id=one.token_id,
                        finish=None if one.finish is None else one.finish.value,
                        cached_tokens=one.cached_tokens,
                        queue_time_s=one.queue_time_s,
                    )
                    for one in outputs
                ],
                stats=stats_of(self._scheduler, self._runner.compiled_kernels),
            )
        )

    def _send(self, message: FromEngine) -> None:
        # Blocks only if the API process has stopped reading; when it dies, so do we.
        self._answers.send(encode(message))


def stats_of(scheduler: Scheduler, compiled_kernels: int) -> Stats:
    pool, counters = scheduler.pool, scheduler.counters
    return Stats(
        running=scheduler.num_running,
        waiting=scheduler.num_waiting,
        held_blocks=pool.held_blocks,
        cached_blocks=pool.cached_blocks,
        total_blocks=pool.total_blocks,
        prompt_tokens=counters.prompt_tokens,
        generated_tokens=counters.generated_tokens,
        prefix_queries=counters.prefix_queries,
        prefix_hits=counters.prefix_hits,
        preemptions=counters.preemptions,
        recomputed_tokens=counters.recomputed_tokens,
        steps=counters.steps,
        compiled_kernels=compiled_kernels,
    )
