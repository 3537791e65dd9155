"""A scheduler and a runner stepped by hand, as the engine steps them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from replica.core.block_pool import BlockPool
from replica.core.limits import SchedulerLimits
from replica.core.plan import SamplingParams, Step
from replica.core.scheduler import Scheduler
from replica.core.sequence import Finish, SequenceRequest
from replica.runner import ModelRunner


@dataclass
class Engine:
    """The engine's loop without messages: every step checked, every token kept by sequence."""

    runner: ModelRunner
    blocks: int
    max_batched_tokens: int = 4096
    max_running_sequences: int = 8
    prefix_cache: bool = True
    in_flight: deque[Step] = field(default_factory=deque)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    finishes: dict[int, Finish] = field(default_factory=dict)
    cached: dict[int, set[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            limits=SchedulerLimits(
                max_batched_tokens=self.max_batched_tokens,
                max_running_sequences=self.max_running_sequences,
                max_waiting_sequences=100,
                max_model_len=512,
                prefix_cache=self.prefix_cache,
            ),
            pool=BlockPool(self.blocks, self.runner.block_size),
        )

    def submit(
        self,
        sequence_id: int,
        prompt: Sequence[int],
        count: int,
        sampling: SamplingParams | None = None,
    ) -> None:
        self.tokens[sequence_id] = []
        self.cached[sequence_id] = set()
        request = SequenceRequest(
            sequence_id=sequence_id,
            prompt_token_ids=list(prompt),
            sampling=sampling or SamplingParams(temperature=0.0),
            max_tokens=count,
        )
        self.scheduler.submit(request, 0.0)

    def step(self) -> bool:
        """One step; False when there was nothing to do."""
        plan = self.scheduler.schedule(0.0)
        if plan is not None:
            assert plan.num_tokens <= self.max_batched_tokens
            self.in_flight.append(self.runner.start(plan))
            if len(self.in_flight) < self.runner.steps_in_flight_max:
                return True
        if not self.in_flight:
            return False
        for output in self.scheduler.apply(self.in_flight.popleft().result(), 0.0):
            self.tokens[output.sequence_id].append(output.token_id)
            self.cached[output.sequence_id].add(output.cached_tokens)
            if output.finish is not None:
                self.finishes[output.sequence_id] = output.finish
        self.scheduler.check()
        return True

    def finish(self) -> list[list[int]]:
        """Steps until idle; every sequence's tokens, by id."""
        while self.step():
            pass
        assert self.scheduler.pool.held_blocks == 0
        return [self.tokens[sequence_id] for sequence_id in sorted(self.tokens)]

    def run(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        for number, prompt in enumerate(prompts):
            self.submit(number, prompt, count)
        return self.finish()
