"""Random lives of a scheduler against models that tell the truth.

The truths: every sequence's tokens worked out without blocks (`expected_tokens`); a runner that
reads its KV back through the block tables; and a mirror that knows only the published events.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from replica.core.evictions import EVICTIONS, EvictionName
from replica.core.limits import NeverFits, QueueFull
from replica.core.queue_orders import QUEUE_ORDERS, QueueOrderName
from replica.core.sequence import Finish, SequenceRequest
from tests.replica.core.driving import (
    GREEDY,
    Answers,
    EventMirror,
    Pipeline,
    cached_truth,
    make_scheduler,
)
from tests.support.fake_runner import FakeRunner, expected_tokens, hashed_token

# Few distinct prompts with long common prefixes, and few distinct tokens: much is shared.
ROOTS = st.sampled_from([(0,) * 24, (1, 2) * 12, (1, 2) * 6 + (3,) * 20])
PROMPTS = st.builds(
    lambda root, cut, tail: [*root[:cut], *tail],
    ROOTS,
    st.integers(0, 32),
    st.lists(st.integers(0, 3), min_size=1, max_size=6),
)
NEXT_TOKEN = hashed_token(4)


class SchedulerLife(RuleBasedStateMachine):
    @initialize(
        blocks=st.integers(4, 24),
        block_size=st.sampled_from([1, 2, 4, 8]),
        running=st.integers(1, 5),
        spare_tokens=st.integers(0, 20),
        prefix_cache=st.sampled_from([True, True, True, False]),
        in_flight_max=st.integers(1, 2),
        eviction=st.sampled_from(list(EVICTIONS)),
        queue_order=st.sampled_from(list(QUEUE_ORDERS)),
    )
    def start(
        self,
        blocks: int,
        block_size: int,
        running: int,
        spare_tokens: int,
        prefix_cache: bool,
        in_flight_max: int,
        eviction: EvictionName,
        queue_order: QueueOrderName,
    ) -> None:
        self.scheduler = make_scheduler(
            blocks=blocks,
            block_size=block_size,
            running=running,
            waiting=6,
            batched_tokens=running + spare_tokens,
            model_len=48,
            prefix_cache=prefix_cache,
            eviction=eviction,
            queue_order=queue_order,
        )
        self.answers = Answers()
        runner = FakeRunner(block_size, NEXT_TOKEN)
        self.pipeline = Pipeline(self.scheduler, runner, self.answers, in_flight_max)
        self.mirror = EventMirror()
        self.requests: dict[int, SequenceRequest] = {}
        self.aborted: set[int] = set()

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 20),
        stop=st.sampled_from([frozenset(), frozenset({2})]),
        salt=st.sampled_from([None, None, None, "a"]),
    )
    def submit(
        self, prompt: list[int], max_tokens: int, stop: frozenset[int], salt: str | None
    ) -> None:
        one = SequenceRequest(
            sequence_id=len(self.requests),
            prompt_token_ids=prompt,
            sampling=GREEDY,
            max_tokens=max_tokens,
            stop_token_ids=stop,
            cache_salt=salt,
        )
        try:
            self.scheduler.submit(one, self.pipeline.now)
        except QueueFull:
            taken = self.scheduler.num_waiting + self.scheduler.num_running
            assert taken == 6 + self.scheduler.limits.max_running_sequences
        except NeverFits:
            capacity = self.scheduler.pool.total_blocks * self.scheduler.pool.block_size
            assert len(prompt) + max_tokens - 1 > min(capacity, 47)
        else:
            self.requests[one.sequence_id] = one

    @rule(count=st.integers(1, 6))
    def run_steps(self, count: int) -> None:
        for _ in range(count):
            self.pipeline.step()

    @rule(data=st.data())
    @precondition(lambda self: self.requests)
    def abort(self, data: st.DataObject) -> None:
        self._abort(data.draw(st.sampled_from(sorted(self.requests))))

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.has_work)
    def abort_while_a_step_is_in_flight(self, data: st.DataObject) -> None:
        plan = self.pipeline.plan()
        assert plan is not None or self.pipeline.in_flight
        victims = data.draw(
            st.sets(st.sampled_from([part.sequence_id for part in plan.slices]), max_size=2)
            if plan is not None
            else st.just(set())
        )
        for sequence_id in victims - self.answers.finish.keys():
            self._abort(sequence_id)
        self.scheduler.check()
        self.pipeline.apply()

    @rule()
    def settle(self) -> None:
        self.pipeline.settle()

    @rule()
    def reset_prefix_cache(self) -> None:
        self.pipeline.settle()
        self.scheduler.reset_prefix_cache()

    @invariant()
    def everything_holds(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.scheduler.check()
        self.mirror.apply(self.scheduler.take_events())
        assert self.mirror.blocks.keys() == cached_truth(self.scheduler.pool)
        late = EventMirror()
        late.apply(self.scheduler.snapshot())
        assert late.blocks == self.mirror.blocks
        for sequence_id, tokens in self.answers.tokens.items():
            one = self.requests[sequence_id]
            assert tokens == expected_tokens(one.prompt_token_ids, GREEDY, len(tokens), NEXT_TOKEN)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        while self.pipeline.step():
            pass
        assert self.scheduler.pool.held_blocks == 0
        assert self.answers.finish.keys() | self.aborted == self.requests.keys()
        for sequence_id, finish in self.answers.finish.items():
            one, tokens = self.requests[sequence_id], self.answers.tokens[sequence_id]
            stopped = tokens[-1] in one.stop_token_ids
            assert (finish is Finish.STOP) == stopped
            full = len(tokens) == one.max_tokens or len(one.prompt_token_ids) + len(tokens) == 48
            assert stopped or full
            assert not set(tokens[:-1]) & one.stop_token_ids

    def _abort(self, sequence_id: int) -> None:
        alive = sequence_id not in self.answers.finish and sequence_id not in self.aborted
        assert self.scheduler.abort(sequence_id) == alive
        if alive:
            self.aborted.add(sequence_id)


SchedulerLife.TestCase.settings = settings(
    max_examples=400, stateful_step_count=30, deadline=None, derandomize=True
)
TestSchedulerLife = SchedulerLife.TestCase
