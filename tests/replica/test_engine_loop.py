"""The engine's loop on a clock of the test's: what comes while a step runs came then, not after."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq

from replica.core.block_pool import BlockPool
from replica.core.limits import SchedulerLimits
from replica.core.plan import FinishedStep, StepPlan
from replica.core.scheduler import Scheduler
from replica.core.timing import work_of
from replica.engine.loop import EngineLoop
from replica.engine.messages import (
    Shutdown,
    StepOutputs,
    Submit,
    ToEngine,
    TokenOutput,
    decode_from_engine,
    encode,
)
from replica.engine.publisher import EventPublisher
from replica.engine.step_log import StepLog, read_step_times
from tests.support.fake_runner import FakeRunner

STEP_S = 1.0


@dataclass
class Engine:
    """A loop whose steps take a second each, and what is sent to it while they run.

    Attributes:
        during: By the number of the step, from 0 on: the messages that arrive while it runs.
        plans: The steps, in order.
    """

    requests: "zmq.Socket[bytes]"
    answers: "zmq.Socket[bytes]"
    into: "zmq.Socket[bytes]"
    out: "zmq.Socket[bytes]"
    during: dict[int, list[ToEngine]] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)
    now_s: float = 0.0

    def run(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        first: Submit,
        steps: StepLog | None = None,
    ) -> list[TokenOutput]:
        """All outputs, when the last step that `during` names is over."""
        engine = self

        class Stepping(FakeRunner):
            def start(self, plan: StepPlan) -> FinishedStep:
                for message in engine.during.get(len(engine.plans), []):
                    engine.into.send(encode(message))
                engine.plans.append(plan)
                engine.now_s += STEP_S
                return super().start(plan)

        runner = Stepping(4)
        self.into.send(encode(first))
        limits = SchedulerLimits(
            max_batched_tokens=8,
            max_running_sequences=8,
            max_waiting_sequences=8,
            max_model_len=256,
        )
        events = EventPublisher(context, None)
        EngineLoop(
            scheduler=Scheduler(limits=limits, pool=BlockPool(64, 4)),
            runner=runner,
            requests=self.requests,
            answers=self.answers,
            events=events,
            loads=None,
            steps=steps,
            epoch="epoch-1",
            clock=lambda: self.now_s,
        ).run()
        events.close()
        outputs = []
        while self.out.poll(0):
            message = decode_from_engine(self.out.recv())
            if isinstance(message, StepOutputs):
                outputs += message.outputs
        return outputs


@pytest.fixture
def context() -> "Iterator[zmq.Context[zmq.Socket[bytes]]]":
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def engine(context: "zmq.Context[zmq.Socket[bytes]]") -> Engine:
    ends = []
    for name, of_engine, of_api in (
        ("requests", zmq.PULL, zmq.PUSH),
        ("answers", zmq.PUSH, zmq.PULL),
    ):
        there = context.socket(of_api)
        there.bind(f"inproc://{name}")
        here = context.socket(of_engine)
        here.connect(f"inproc://{name}")
        ends += [here, there]
    requests, into, answers, out = ends
    return Engine(requests=requests, answers=answers, into=into, out=out)


def submit(sequence_id: int, tokens: int, arrived_s: float) -> Submit:
    return Submit(
        sequence_id=sequence_id,
        arrived_s=arrived_s,
        prompt_token_ids=[100 * sequence_id + n for n in range(tokens)],
        max_tokens=1,
        stop_token_ids=[],
        temperature=0.0,
        top_p=1.0,
        top_k=None,
        min_p=0.0,
        seed=0,
    )


def test_the_wait_of_a_request_counts_from_when_it_came(
    engine: Engine, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    engine.during = {0: [submit(1, 4, arrived_s=0.25)], 1: [Shutdown()]}
    outputs = engine.run(context, submit(0, 8, arrived_s=0.0))
    assert [(one.sequence_id, one.queue_time_s) for one in outputs] == [(0, 0.0), (1, 0.75)]


def test_a_short_prompt_that_came_during_a_step_goes_before_a_long_one_in_the_next(
    engine: Engine, context: "zmq.Context[zmq.Socket[bytes]]"
) -> None:
    engine.during = {0: [submit(1, 2, arrived_s=0.25)], 1: [Shutdown()]}
    engine.run(context, submit(0, 40, arrived_s=0.0))
    computed = [[(one.sequence_id, one.num_tokens) for one in plan.slices] for plan in engine.plans]
    assert computed == [[(0, 8)], [(1, 2), (0, 6)]]


def test_what_each_step_took_is_logged(
    engine: Engine, context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    path = tmp_path / "steps.jsonl"
    log = StepLog(str(path))
    engine.during = {0: [submit(1, 2, arrived_s=0.25)], 1: [Shutdown()]}
    engine.run(context, submit(0, 40, arrived_s=0.0), log)
    log.close()
    steps = read_step_times(path)
    assert [one.seconds for one in steps] == [STEP_S, STEP_S]
    assert [one.work for one in steps] == [work_of(plan) for plan in engine.plans]
