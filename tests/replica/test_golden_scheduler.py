"""Scheduler and real network together: tokens equal transformers' however the work is cut."""

from pathlib import Path
from random import Random

import pytest
import torch

from replica.core.plan import SamplingParams
from replica.runner import ModelRunner
from tests.support.stepped_engine import Engine
from tests.support.tiny_models import (
    TINY_MODELS,
    embedded_model_path,
    reference_tokens,
    save_tiny_model,
)

BLOCK_SIZE = 8
COUNT = 64


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
    assert engine.run(PROMPTS, COUNT) == tiny[1]
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
    assert engine.run(PROMPTS, COUNT) == tiny[1]
    assert engine.scheduler.counters.prefix_hits == 0


@pytest.mark.parametrize("max_batched_tokens", [8, 13])
def test_tiny_chunks_give_the_same_tokens(tiny: Tiny, max_batched_tokens: int) -> None:
    engine = Engine(load(tiny[0]), blocks=200, max_batched_tokens=max_batched_tokens)
    assert engine.run(PROMPTS, COUNT) == tiny[1]
    assert engine.scheduler.counters.steps > COUNT + 10


def test_singles_one_after_the_other_give_the_same_tokens_cold_and_warm(tiny: Tiny) -> None:
    engine = Engine(load(tiny[0]), blocks=200, max_running_sequences=1)
    assert engine.run(PROMPTS, COUNT) == tiny[1]
    cold = engine.scheduler.counters.prefix_hits
    assert engine.run(PROMPTS, COUNT) == tiny[1]
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
    assert engine.run(PROMPTS, COUNT) == tiny[1]
    assert engine.scheduler.counters.preemptions >= 3
    assert engine.scheduler.counters.recomputed_tokens > 0
    # What was cached at first admission is what is told, whatever a preemption finds later.
    assert all(len(told) == 1 for told in engine.cached.values())


def test_sequences_that_join_and_leave_mid_way_change_nothing_for_others(tiny: Tiny) -> None:
    engine = Engine(load(tiny[0], 40), blocks=40, max_batched_tokens=24)
    random = Random(5)
    for number, prompt in enumerate(PROMPTS):
        engine.submit(number, prompt, COUNT)
        engine.submit(100 + number, random.choices(range(512), k=20), COUNT)
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
    alone.submit(0, PROMPTS[-1], COUNT, sampling=sampling)
    engine = Engine(load(tiny[0], TIGHT), blocks=TIGHT, max_batched_tokens=9)
    for number, prompt in enumerate(PROMPTS[:-1], start=1):
        engine.submit(number, prompt, COUNT)
    engine.submit(100, PROMPTS[-1], COUNT, sampling=sampling)
    assert engine.finish()[-1] == alone.finish()[0]
    assert engine.scheduler.counters.preemptions >= 3


def test_the_embedded_model_preempted_chunked_and_cached_gives_the_tokens_of_a_plain_run() -> None:
    """(That a plain run gives transformers' is in test_golden: this is the half that is quick.)"""
    runner = ModelRunner.load(
        embedded_model_path(), dtype="float32", block_size=BLOCK_SIZE, num_blocks=2 * TIGHT
    )
    prompts = prompts_of(runner.vocab_size)[-2:]
    plain = Engine(runner, blocks=2 * TIGHT, prefix_cache=False).run(prompts, COUNT)
    engine = Engine(runner, blocks=TIGHT, max_batched_tokens=32)
    assert engine.run(prompts, COUNT) == plain
    assert engine.scheduler.counters.preemptions > 0
    assert engine.scheduler.counters.prefix_hits > 0
