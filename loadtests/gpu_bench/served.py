"""A model as the engine serves it, stepped by a measurement: scheduler, runner, steps in flight."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from replica.core.block_pool import BlockPool
from replica.core.limits import SchedulerLimits
from replica.core.plan import SamplingParams, Step
from replica.core.scheduler import Scheduler
from replica.core.sequence import SequenceRequest
from replica.runner import ModelRunner

_GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Served:
    """What `replica.engine.loop` does, without messages.

    Attributes:
        first_token_s: When each sequence had its first token, by id; seconds of `clock`.
        generated: Tokens of all sequences.
    """

    runner: ModelRunner
    max_batched_tokens: int
    max_running_sequences: int
    prefix_cache: bool = True
    clock: Callable[[], float] = time.perf_counter
    first_token_s: dict[int, float] = field(default_factory=dict)
    generated: int = 0

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(
            limits=SchedulerLimits(
                max_batched_tokens=self.max_batched_tokens,
                max_running_sequences=self.max_running_sequences,
                max_waiting_sequences=100_000,
                max_model_len=self.runner.max_model_len,
                prefix_cache=self.prefix_cache,
            ),
            pool=BlockPool(self.runner.num_blocks, self.runner.block_size),
        )
        self._in_flight: deque[Step] = deque()
        self._submitted = 0
        self._random = torch.Generator().manual_seed(0)

    def prompt(self, tokens: int) -> list[int]:
        """Random ones, others at each call."""
        ids = torch.randint(self.runner.vocab_size, (tokens,), generator=self._random)
        return [int(one) for one in ids.tolist()]

    def submit(self, prompt: list[int], max_tokens: int) -> int:
        """Its id."""
        self._submitted += 1
        self._scheduler.submit(
            SequenceRequest(
                sequence_id=self._submitted,
                prompt_token_ids=prompt,
                sampling=_GREEDY,
                max_tokens=max_tokens,
            ),
            self.clock(),
        )
        return self._submitted

    @property
    def all_decode(self) -> bool:
        """Nobody waits, and every sequence has had its first token."""
        started = len(self.first_token_s) == self._submitted
        return started and self._scheduler.num_waiting == 0

    def step(self) -> bool:
        """Plans and starts one, and takes a result where as many are in flight as may be; False
        when nothing is left to do."""
        plan = self._scheduler.schedule(self.clock())
        if plan is not None:
            self._in_flight.append(self.runner.start(plan))
            if len(self._in_flight) < self.runner.steps_in_flight_max:
                return True
        if not self._in_flight:
            return False
        outputs = self._scheduler.apply(self._in_flight.popleft().result(), self.clock())
        now = self.clock()
        for output in outputs:
            self.first_token_s.setdefault(output.sequence_id, now)
        self.generated += len(outputs)
        self._scheduler.take_events()
        return True

    def finish(self) -> None:
        while self.step():
            pass
