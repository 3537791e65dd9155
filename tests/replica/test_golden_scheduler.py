"""Scheduler and real network together: tokens equal transformers' however the work is cut."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import torch

from replica.core.block_pool import BlockPool
from replica.core.limits import SchedulerLimits
from replica.core.plan import SamplingParams, Step
from replica.core.scheduler import Scheduler
from replica.core.sequence import Finish, SequenceRequest
from replica.runner import ModelRunner
from tests.support.tiny_models import (
    TINY_MODELS,
    embedded_model_path,
    reference_tokens,
    save_tiny_model,
)

BLOCK_SIZE = 8
COUNT = 64


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
        count: int = COUNT,
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

    def run(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        for number, prompt in enumerate(prompts):
            self.submit(number, prompt)
        return self.finish()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def prompts_of(vocabulary: int) -> list[list[int]]:
    """Around a block's edges; the last three begin alike, whole blocks and a bit more."""
    own = [Random(length).choices(range(vocabulary), k=length) for length in (1, 7, 8, 9, 60)]
    prefix = Random(0).choices(range(vocabulary), k=5 * BLOCK_SIZE)
    return [*own, prefix, [*prefix, 3], prefix + Random(1).choices(range(vocabulary), k=30)]


PROMPTS = prompts_of(512)


@pytest.fixture(scope="module", params=TINY_MODELS, ids=TINY_MODELS)
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[int]]]:
    """A model's directory, and what transformers says after each of PROMPTS."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("tiny")
    model = save_tiny_model(directory, **TINY_MODELS[request.param])
    return directory, [reference_tokens(model, prompt, COUNT) for prompt in PROMPTS]


def load(directory: Path, blocks: int = 200) -> ModelRunner:
    runner = ModelRunner.load(directory, dtype="float32", block_size=BLOCK_SIZE, num_blocks=blocks)
    for cache in runner.kv_caches:
        cache.fill_(torch.nan)  # reading what nobody wrote would show
    return runner


Tiny = tuple[Path, list[list[int]]]

# Blocks for the longest alone (70 prompt tokens and 64 more) and not for two.
TIGHT = 20


def test_a_batch_in_whole_prompts_gives_transformers_tokens(tiny: Tiny) -> None:
    engine = Engine(load(tiny[0]), blocks=200)
    assert engine.run(PROMPTS) == tiny[1]
    assert engine.scheduler.counters.preemptions == 0
    assert engine.scheduler.counters.prefix_hits > 0


def test_steps_started_ahead_give_the_same_tokens_chunked_and_preempted(tiny: Tiny) -> None:
    runner = load(tiny[0], TIGHT)
    runner.steps_in_flight_max = 2
    engine = Engine(runner, blocks=TIGHT, max_batched_tokens=13)
    assert engine.run(PROMPTS) == tiny[1]
    assert engine.scheduler.counters.preemptions > 0


def test_without_prefix_cache_the_tokens_are_the_same(tiny: Tiny) -> None:
    engine = Engine(load(tiny[0]), blocks=200, prefix_cache=False)
    assert engine.run(PROMPTS) == tiny[1]
    assert engine.scheduler.counters.prefix_hits == 0


@pytest.mark.parametrize("max_batched_tokens", [8, 13])
def test_tiny_chunks_give_the_same_tokens(tiny: Tiny, max_batched_tokens: int) -> None:
    engine = Engine(load(tiny[0]), blocks=200, max_batched_tokens=max_batched_tokens)
    assert engine.run(PROMPTS) == tiny[1]
    assert engine.scheduler.counters.steps > COUNT + 10


def test_singles_one_after_the_other_give_the_same_tokens_cold_and_warm(tiny: Tiny) -> None:
    engine = Engine(load(tiny[0]), blocks=200, max_running_sequences=1)
    assert engine.run(PROMPTS) == tiny[1]
    cold = engine.scheduler.counters.prefix_hits
    assert engine.run(PROMPTS) == tiny[1]
    # Everything but the last block, or the last token when it begins one, is found again.
    whole_blocks = sum((len(prompt) - 1) // BLOCK_SIZE * BLOCK_SIZE for prompt in PROMPTS)
    assert engine.scheduler.counters.prefix_hits - cold == whole_blocks


@pytest.mark.parametrize("prefix_cache", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("max_batched_tokens", [4096, 11], ids=["whole", "chunked"])
def test_preempted_sequences_give_the_same_tokens(
    tiny: Tiny, prefix_cache: bool, max_batched_tokens: int
) -> None:
    engine = Engine(
        load(tiny[0], TIGHT),
        blocks=TIGHT,
        prefix_cache=prefix_cache,
        max_batched_tokens=max_batched_tokens,
    )
    assert engine.run(PROMPTS) == tiny[1]
    assert engine.scheduler.counters.preemptions >= 3
    assert engine.scheduler.counters.recomputed_tokens > 0
    # What was cached at first admission is what is told, whatever a preemption finds later.
    assert all(len(told) == 1 for told in engine.cached.values())


def test_sequences_that_join_and_leave_mid_way_change_nothing_for_others(tiny: Tiny) -> None:
    engine = Engine(load(tiny[0], 40), blocks=40, max_batched_tokens=24)
    random = Random(5)
    for number, prompt in enumerate(PROMPTS):
        engine.submit(number, prompt)
        engine.submit(100 + number, random.choices(range(512), k=20), count=COUNT)
        for _ in range(random.randrange(1, 9)):
            engine.step()
        engine.scheduler.abort(100 + number - 1)
        if number == 4:
            engine.scheduler.reset_prefix_cache()
    engine.finish()
    assert [engine.tokens[number] for number in range(len(PROMPTS))] == tiny[1]
    assert len(engine.tokens[100]) < COUNT  # it left before its end


def test_a_sampled_sequence_survives_preemption_and_company(tiny: Tiny) -> None:
    sampling = SamplingParams(temperature=0.8, top_p=0.9, top_k=50, seed=2**63 + 5)
    alone = Engine(load(tiny[0]), blocks=200)
    alone.submit(0, PROMPTS[-1], sampling=sampling)
    engine = Engine(load(tiny[0], TIGHT), blocks=TIGHT, max_batched_tokens=9)
    for number, prompt in enumerate(PROMPTS[:-1], start=1):
        engine.submit(number, prompt)
    engine.submit(100, PROMPTS[-1], sampling=sampling)
    assert engine.finish()[-1] == alone.finish()[0]
    assert engine.scheduler.counters.preemptions >= 3


def test_the_embedded_model_preempted_chunked_and_cached_gives_the_tokens_of_a_plain_run() -> None:
    """(That a plain run gives transformers' is in test_golden: this is the half that is quick.)"""
    runner = ModelRunner.load(
        embedded_model_path(), dtype="float32", block_size=BLOCK_SIZE, num_blocks=2 * TIGHT
    )
    prompts = prompts_of(runner.vocab_size)[-2:]
    plain = Engine(runner, blocks=2 * TIGHT, prefix_cache=False).run(prompts)
    engine = Engine(runner, blocks=TIGHT, max_batched_tokens=32)
    assert engine.run(prompts) == plain
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.prefix_hits > 0
