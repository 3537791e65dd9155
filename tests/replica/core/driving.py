"""What the core's tests share: a small scheduler, a way to run it, and a reader of its events."""

from collections import deque
from collections.abc import Iterable

from protocol.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KvEvent
from replica.core.block_pool import BlockPool
from replica.core.evictions import EVICTIONS, EvictionName
from replica.core.limits import SchedulerLimits
from replica.core.plan import FinishedStep, SamplingParams, StepPlan
from replica.core.queue_orders import QueueOrderName
from replica.core.scheduler import Scheduler
from replica.core.sequence import Finish, SequenceOutput, SequenceRequest
from tests.support.fake_runner import FakeRunner

BLOCK_SIZE = 4
GREEDY = SamplingParams(temperature=0.0)


def make_scheduler(
    *,
    blocks: int = 64,
    batched_tokens: int = 32,
    running: int = 8,
    waiting: int = 64,
    model_len: int = 200,
    prefix_cache: bool = True,
    block_size: int = BLOCK_SIZE,
    eviction: EvictionName = "reuse",
    queue_order: QueueOrderName = "response_ratio",
) -> Scheduler:
    limits = SchedulerLimits(
        max_batched_tokens=batched_tokens,
        max_running_sequences=running,
        max_waiting_sequences=waiting,
        max_model_len=model_len,
        prefix_cache=prefix_cache,
    )
    pool = BlockPool(blocks, block_size, EVICTIONS[eviction](blocks))
    return Scheduler(limits=limits, pool=pool, queue_order=queue_order)


def request(
    sequence_id: int, prompt: Iterable[int], max_tokens: int = 8, **fields: object
) -> SequenceRequest:
    return SequenceRequest(
        sequence_id=sequence_id,
        prompt_token_ids=list(prompt),
        sampling=GREEDY,
        max_tokens=max_tokens,
        **fields,  # type: ignore[arg-type]
    )


class Answers:
    """The tokens every sequence got so far, and how it ended."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, Finish] = {}
        self.cached: dict[int, int] = {}

    def add(self, outputs: Iterable[SequenceOutput]) -> None:
        for output in outputs:
            assert output.sequence_id not in self.finish, "output after the end"
            self.tokens.setdefault(output.sequence_id, []).append(output.token_id)
            self.cached[output.sequence_id] = output.cached_tokens
            if output.finish is not None:
                self.finish[output.sequence_id] = output.finish


class Pipeline:
    """Plans and applies steps with every invariant checked, so many in flight at most.

    Attributes:
        now: Seconds; a step takes one.
    """

    def __init__(
        self, scheduler: Scheduler, runner: FakeRunner, answers: Answers, in_flight_max: int = 1
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.answers = answers
        self.in_flight_max = in_flight_max
        self.in_flight: deque[FinishedStep] = deque()
        self.now = 0.0

    def plan(self) -> StepPlan | None:
        self.now += 1.0
        plan = self.scheduler.schedule(self.now)
        self.scheduler.check()
        if plan is not None:
            assert plan.num_tokens <= self.scheduler.limits.max_batched_tokens
            self.in_flight.append(self.runner.start(plan))
        return plan

    def apply(self) -> None:
        step = self.in_flight.popleft()
        self.answers.add(self.scheduler.apply(step.result(), self.now))
        self.scheduler.check()

    def step(self) -> bool:
        """False when there was nothing to do."""
        planned = self.plan() is not None
        applied = bool(self.in_flight)
        while self.in_flight and (not planned or len(self.in_flight) >= self.in_flight_max):
            self.apply()
        return planned or applied

    def settle(self) -> None:
        while self.in_flight:
            self.apply()


def step(scheduler: Scheduler, runner: FakeRunner, answers: Answers) -> bool:
    """One step, planned and applied; False when there was nothing to do."""
    return Pipeline(scheduler, runner, answers).step()


def run_all(
    scheduler: Scheduler,
    requests: Iterable[SequenceRequest],
    runner: FakeRunner | None = None,
    in_flight_max: int = 1,
) -> Answers:
    """Submits `requests` at once and runs until all have ended."""
    runner = runner or FakeRunner(scheduler.pool.block_size)
    answers = Answers()
    for one in requests:
        scheduler.submit(one, 0.0)
    pipeline = Pipeline(scheduler, runner, answers, in_flight_max)
    while pipeline.step():
        pass
    assert scheduler.pool.held_blocks == 0
    return answers


class EventMirror:
    """What a router would believe after the events: name → (parent, tokens, extra keys)."""

    def __init__(self) -> None:
        self.blocks: dict[object, tuple[object, tuple[int, ...], object]] = {}

    def apply(self, events: Iterable[KvEvent]) -> None:
        for event in events:
            if isinstance(event, AllBlocksCleared):
                self.blocks.clear()
            elif isinstance(event, BlockRemoved):
                for name in event.block_hashes:
                    del self.blocks[name]
            else:
                assert isinstance(event, BlockStored)
                self._store(event)

    def _store(self, event: BlockStored) -> None:
        size = event.block_size
        assert len(event.token_ids) == size * len(event.block_hashes)
        assert event.extra_keys is None or len(event.extra_keys) == len(event.block_hashes)
        parent = event.parent_block_hash
        for index, name in enumerate(event.block_hashes):
            assert name not in self.blocks, "stored twice"
            assert parent is None or parent in self.blocks, "stored below nothing"
            tokens = tuple(event.token_ids[index * size : (index + 1) * size])
            extra = None if event.extra_keys is None else event.extra_keys[index]
            self.blocks[name] = (parent, tokens, None if extra is None else tuple(extra))
            parent = name


def cached_truth(pool: BlockPool) -> set[object]:
    """The names of all blocks the pool can find, from its own tables."""
    return {key.hash for key in pool._keys if key is not None}
