"""A device in real time that computes nothing: a step ends when the timing says.

    host     start 1, start 2 │ result 1: sleeps ……… │ apply, start 3 │ result 2: sleeps …
    device   ── 1 ───────────────────────────────── │ ── 2 ───────────────────────────── │ ── 3 …

A step begins when it is started or when the one before has ended, whichever is later, as on a real
device: what the host does meanwhile costs no time, unless it takes longer than the step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from replica.core.plan import STEPS_IN_FLIGHT_MAX, Step, StepPlan, StepResult
from replica.core.timing import Timing
from replica.simulated.answers import Answers


class SimulatedRunner:
    """`replica.engine.loop.Runner`. One thread at a time may call `start`."""

    steps_in_flight_max = STEPS_IN_FLIGHT_MAX
    compiled_kernels = 0

    def __init__(
        self,
        timing: Timing,
        answers: Answers,
        *,
        vocab_size: int,
        num_blocks: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """
        Args:
            clock: Seconds, monotonic.
            sleep: Returns after so many seconds of that clock, or later.
        """
        self.vocab_size = vocab_size
        self.num_blocks = num_blocks
        self._timing = timing
        self._answers = answers
        self._clock = clock
        self._sleep = sleep
        self._free_at_s = 0.0

    def start(self, plan: StepPlan) -> Step:
        self._free_at_s = max(self._clock(), self._free_at_s) + self._timing.step_s(plan)
        return _RunningStep(self._answers.of(plan), self._free_at_s, self._clock, self._sleep)


@dataclass(frozen=True, slots=True)
class _RunningStep:
    outcome: StepResult
    ends_at_s: float
    clock: Callable[[], float]
    sleep: Callable[[float], None]

    def result(self) -> StepResult:
        while (left_s := self.ends_at_s - self.clock()) > 0:
            self.sleep(left_s)
        return self.outcome
