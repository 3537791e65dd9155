"""When a simulated device's steps end, on a clock of the test's."""

import pytest

from replica.core.plan import SamplingParams, SequenceSlice, StepPlan
from replica.core.timing import PRESETS, Timing
from replica.simulated.answers import Answers
from replica.simulated.runner import SimulatedRunner

TIMING = Timing(base_s=0.010, token_s=0.001, pair_s=0.0, sequence_s=0.002, held_s=0.0)


class Clock:
    """Stands still but for sleeps, each of which is late by `late_s`, or sleeps `share` only."""

    def __init__(self, late_s: float = 0.0, share: float = 1.0) -> None:
        self.now = 100.0
        self.late_s = late_s
        self.share = share
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds * self.share + self.late_s


def make_runner(clock: Clock, timing: Timing = TIMING) -> SimulatedRunner:
    answers = Answers([1, 2, 3], num_blocks=8, block_size=16)
    return SimulatedRunner(
        timing, answers, vocab_size=10, num_blocks=8, clock=lambda: clock.now, sleep=clock.sleep
    )


def step(tokens: int, start: int = 0) -> StepPlan:
    one = SequenceSlice(
        sequence_id=1,
        token_ids=[1] * tokens,
        start=start,
        block_table=[0, 1, 2],
        sampling=SamplingParams(),
    )
    return StepPlan(slices=[one])


def test_a_step_takes_what_the_timing_says() -> None:
    clock = Clock()
    runner = make_runner(clock)
    runner.start(step(20)).result()
    assert clock.now - 100 == pytest.approx(0.010 + 0.020)
    runner.start(step(1, 20)).result()
    assert clock.now - 100 == pytest.approx(0.030 + 0.012)


def test_a_step_started_ahead_begins_when_the_one_before_ends() -> None:
    clock = Clock()
    runner = make_runner(clock)
    first, second = runner.start(step(20)), runner.start(step(1, 20))
    first.result()
    assert clock.now - 100 == pytest.approx(0.030)
    second.result()
    assert clock.now - 100 == pytest.approx(0.042)


def test_the_hosts_work_and_late_sleeps_cost_nothing_while_a_step_is_ahead() -> None:
    clock = Clock(late_s=0.001)
    runner = make_runner(clock)
    ahead = runner.start(step(20))
    for n in range(10):
        now, ahead = ahead, runner.start(step(1, 20 + n))
        now.result()
        clock.now += 0.004
    ahead.result()
    # The last sleep is late; what came before is not added up.
    assert clock.now - 100 == pytest.approx(0.030 + 10 * 0.012 + 0.001)


def test_a_step_that_the_host_is_late_for_begins_when_it_is_started() -> None:
    clock = Clock()
    runner = make_runner(clock)
    runner.start(step(20)).result()
    clock.now += 5.0
    runner.start(step(1, 20)).result()
    assert clock.now - 105 == pytest.approx(0.030 + 0.012)


def test_a_result_taken_after_the_end_does_not_wait() -> None:
    clock = Clock()
    ahead = make_runner(clock).start(step(20))
    clock.now += 1.0
    ahead.result()
    assert clock.sleeps == []


def test_a_sleep_that_ends_early_is_gone_on_with() -> None:
    clock = Clock(share=0.9)
    make_runner(clock).start(step(20)).result()
    assert clock.now - 100 == pytest.approx(0.030)
    assert len(clock.sleeps) > 1


def test_slowness_is_a_factor_of_everything() -> None:
    slow = PRESETS["h100-8b"].timing.slowed(3.0)
    assert slow.step_s(step(20)) == pytest.approx(3 * PRESETS["h100-8b"].timing.step_s(step(20)))
