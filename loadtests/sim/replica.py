"""A replica in virtual time: the engine's own scheduler and block pool, and a clock for a device.

    idle ── submit ─▶ step ── its end ─▶ step … ── nothing but decodes left ─▶ coasting ─▶ step …
                                                       └─ cut short by whoever is submitted

Coasting takes many steps of decodes at once; a request that comes meanwhile waits for the end of
the step that runs then, as it would without.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from loadtests.sim.request import SimRequest
from loadtests.sim.router import Load
from protocol.kv_events import KvEvent
from replica.core import sequence as engine
from replica.core.block_pool import BlockPool
from replica.core.coast import coast, coast_steps_max
from replica.core.evictions import EVICTIONS, EvictionName
from replica.core.limits import NeverFits, SchedulerLimits
from replica.core.plan import SamplingParams, SequenceSlice, StepPlan, StepResult
from replica.core.queue_orders import QueueOrderName
from replica.core.scheduler import Scheduler
from replica.core.timing import Preset

_GREEDY = SamplingParams(temperature=0.0)
_MODEL_LEN = 1 << 30
# So that its events, and what it reports, are never much older than those of a real replica.
_COAST_S_MAX = 1.0
# Answers' tokens: from here up, and below 2³². Prompts' are other ones.
_ANSWERS_FROM = 1 << 31

At = Callable[[float, Callable[[float], None]], None]
"""Has something called at a virtual time."""


@dataclass(frozen=True, slots=True)
class FirstToken:
    request: SimRequest


@dataclass(frozen=True, slots=True)
class Ended:
    """`lost`: its replica was; `refused`: its replica can never take it."""

    request: SimRequest
    cached_tokens: int
    lost: bool = False
    refused: bool = False


Outcome = FirstToken | Ended


@dataclass
class SimReplica:
    """One replica.

    Attributes:
        outcomes: Told what becomes of requests.
        published: Told its KV events, as they are made.
        computed_tokens: Prompt tokens computed so far, recomputed ones included.
    """

    preset: Preset
    block_size: int
    cache_blocks: int
    at: At
    outcomes: Callable[[Outcome, float], None]
    published: Callable[[list[KvEvent], float], None]
    eviction: EvictionName = "lru"
    queue_order: QueueOrderName = "response_ratio"
    computed_tokens: int = 0
    busy_s: float = 0.0
    _requests: dict[int, SimRequest] = field(default_factory=dict)
    _next_answer_token: int = _ANSWERS_FROM
    _ends_s: float = 0.0

    def __post_init__(self) -> None:
        self._begin_empty()

    def _begin_empty(self) -> None:
        self._scheduler = Scheduler(
            limits=SchedulerLimits(
                max_batched_tokens=self.preset.max_batched_tokens,
                max_running_sequences=self.preset.max_running,
                max_waiting_sequences=1 << 30,
                max_model_len=_MODEL_LEN,
            ),
            pool=BlockPool(
                self.cache_blocks, self.block_size, EVICTIONS[self.eviction](self.cache_blocks)
            ),
            queue_order=self.queue_order,
        )
        self._plan: StepPlan | None = None
        self._coast: _Coast | None = None
        self._somebody_new = False  # since the last plan was made
        # What is to be called at the end of what runs counts only while this is its number.
        self._run = 0

    def submit(self, request: SimRequest, now: float) -> None:
        try:
            self._scheduler.submit(
                engine.SequenceRequest(
                    sequence_id=request.number,
                    prompt_token_ids=request.prompt.tolist(),
                    sampling=_GREEDY,
                    max_tokens=request.output_tokens,
                ),
                now,
            )
        except NeverFits:
            self.outcomes(Ended(request, 0, refused=True), now)
            return
        self._requests[request.number] = request
        self._somebody_new = True
        if self._coast is not None:
            self._cut(self._coast, now)
        elif self._plan is None:
            self._next(now)

    def restart(self, now: float) -> None:
        """It comes back at once, empty; its requests have failed."""
        lost, self._requests = self._requests, {}
        run = self._run
        self._begin_empty()
        self._run = run + 1
        for request in lost.values():
            self.outcomes(Ended(request, 0, lost=True), now)

    @property
    def scheduler(self) -> Scheduler:
        """To look at, not to touch."""
        return self._scheduler

    def step_ends_s(self, now: float) -> float:
        """When the step that runs now ends; now if none does."""
        if self._coast is not None:
            done = self._coast.steps_within(now - self._coast.begun_at)
            return self._coast.end_of(min(done + 1, self._coast.steps))
        return now if self._plan is None else self._ends_s

    def load(self) -> Load:
        scheduler = self._scheduler
        return Load(
            running=scheduler.num_running,
            waiting=scheduler.num_waiting,
            waiting_tokens=scheduler.waiting_tokens,
            held_tokens=scheduler.pool.held_blocks * self.block_size,
        )

    def _next(self, now: float) -> None:
        """Begins what comes next, if anything does."""
        self._somebody_new = False
        plan = self._scheduler.schedule(now)
        self._plan = plan
        if plan is None:
            return
        seconds = self.preset.timing.step_s(plan)
        self._end_at(now + seconds, lambda at: self._step_ended(plan, at))
        self.busy_s += seconds

    def _end_at(self, when: float, then: Callable[[float], None]) -> None:
        self._run += 1
        self._ends_s = when
        run = self._run
        self.at(when, lambda at: then(at) if run == self._run else None)

    def _step_ended(self, plan: StepPlan, now: float) -> None:
        sampled = [None if one.sampling is None else self._next_token(one) for one in plan.slices]
        self.computed_tokens += sum(one.num_tokens for one in plan.slices if one.num_tokens > 1)
        outputs = self._scheduler.apply(StepResult(sampled=sampled), now)
        self._publish(now)
        for output in outputs:
            request = self._requests[output.sequence_id]
            if output.queue_time_s is not None:  # its first
                self.outcomes(FirstToken(request), now)
            if output.finish is not None:
                del self._requests[output.sequence_id]
                self.outcomes(Ended(request, output.cached_tokens), now)
        steps = 0 if self._somebody_new else coast_steps_max(self._scheduler, plan)
        if steps:
            self._begin_coast(steps, now)
        else:
            self._next(now)

    def _begin_coast(self, steps: int, now: float) -> None:
        sequences = self._scheduler.num_running
        held = sum(one.num_tokens for one in self._scheduler._running)
        timing = self.preset.timing
        first_s = timing.decode_s(sequences, held)
        growth_s = timing.held_s * sequences  # each step reads as many tokens more
        running = _Coast(now, first_s, growth_s, steps)
        running.steps = max(1, min(steps, running.steps_within(_COAST_S_MAX)))
        self._plan, self._coast = None, running
        self._end_at(running.end_of(running.steps), self._coast_ended)

    def _cut(self, running: "_Coast", now: float) -> None:
        """Ends with the step that runs now."""
        done = running.steps_within(now - running.begun_at)
        if done + 1 < running.steps:
            running.steps = done + 1
            self._end_at(running.end_of(running.steps), self._coast_ended)

    def _coast_ended(self, now: float) -> None:
        running, self._coast = self._coast, None
        assert running is not None
        self.busy_s += now - running.begun_at
        coast(self._scheduler, running.steps, self._answer)
        self._publish(now)
        self._next(now)

    def _next_token(self, part: SequenceSlice) -> int:
        request = self._requests[part.sequence_id]
        said = part.start + part.num_tokens - len(request.prompt)
        return self._tokens(request, said, 1)[0]

    def _answer(self, sequence: engine.Sequence, count: int) -> list[int]:
        request = self._requests[sequence.request.sequence_id]
        return self._tokens(request, sequence.num_generated, count)

    def _tokens(self, request: SimRequest, said: int, count: int) -> list[int]:
        """Tokens [said, said + count) of its answer."""
        if request.answer is not None:
            return request.answer[said : said + count].tolist()
        begin = self._next_answer_token
        self._next_answer_token += count
        return list(range(begin, begin + count))

    def _publish(self, now: float) -> None:
        events = self._scheduler.take_events()
        if events:
            self.published(events, now)

    def check(self) -> None:
        self._scheduler.check()
        assert len(self._requests) == self._scheduler.num_running + self._scheduler.num_waiting


@dataclass(slots=True)
class _Coast:
    """Steps of decodes from `begun_at` on; each takes `growth_s` more than the one before."""

    begun_at: float
    first_s: float
    growth_s: float
    steps: int

    def end_of(self, steps: int) -> float:
        return self.begun_at + steps * self.first_s + self.growth_s * steps * (steps - 1) / 2

    def steps_within(self, seconds: float) -> int:
        """Steps that are over after so long."""
        half = self.growth_s / 2
        if half == 0:
            return int(seconds / self.first_s)
        linear = self.first_s - half
        root = (linear * linear + 4 * half * seconds) ** 0.5
        return int((root - linear) / (2 * half))
